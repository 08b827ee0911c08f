"""Where what a broker enqueues goes for the time of a ``with`` block: onto the caller's connection, or into a batch.

A scope belongs to one broker, and to the thread, task or greenlet that entered it: see `pgqrs_core.scopes`.
"""

from __future__ import annotations

from typing import Final

from pgqrs_core.scopes import Scopes

__all__ = ["SCOPES"]

SCOPES: Final = Scopes("pgqrs_dramatiq_scope")
