"""Where Celery finds the result backend: the version of Celery is looked at before anything of it is used."""

from __future__ import annotations

from pgqrs_core.requirements import require

require("celery", "celery")

from pgqrs_celery.backend import PgqrsBackend  # noqa: E402

__all__ = ["PgqrsBackend"]
