"""pgqrs for Dramatiq: broker, results and rate limits on one PostgreSQL database.

Names are loaded when they are first used: the plugin in this package describes it even where Dramatiq is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.requirements import require

if TYPE_CHECKING:
    from pgqrs_dramatiq.broker import PgqrsBroker
    from pgqrs_dramatiq.errors import Refused
    from pgqrs_dramatiq.inspection import MessageFailed
    from pgqrs_dramatiq.limits import PgqrsRateLimiterBackend
    from pgqrs_dramatiq.results import PgqrsResultBackend

__all__ = ["MessageFailed", "PgqrsBroker", "PgqrsRateLimiterBackend", "PgqrsResultBackend", "Refused"]

_MODULES: Final = {
    "MessageFailed": "inspection",
    "PgqrsBroker": "broker",
    "PgqrsRateLimiterBackend": "limits",
    "PgqrsResultBackend": "results",
    "Refused": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("dramatiq", "dramatiq")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    # Looked up once.
    globals()[name] = value
    return value
