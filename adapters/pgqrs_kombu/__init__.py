"""pgqrs as a broker for Kombu and Celery: the transport ``pgqrs://``.

Importing this package makes the scheme known; with the package installed Celery finds it without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqrs_kombu.registration import register

if TYPE_CHECKING:
    from pgqrs_kombu.compat import BatchPublishError
    from pgqrs_kombu.outbox import batch, in_transaction

__all__ = ["BatchPublishError", "batch", "in_transaction"]

register()


def __getattr__(name: str) -> Any:
    """Import what is asked for: Kombu imports this package always, and a driver should come only with its use."""
    if name in __all__:
        from pgqrs_kombu import compat, outbox

        return getattr(compat if name == "BatchPublishError" else outbox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
