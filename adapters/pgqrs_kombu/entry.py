"""Where Kombu finds the transport: the version of Kombu is looked at before anything of it is used."""

from __future__ import annotations

from pgqrs_core.requirements import require

require("kombu", "kombu")

from pgqrs_kombu.transport import Transport  # noqa: E402

__all__ = ["Transport"]
