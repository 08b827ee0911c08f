"""Where what a broker enqueues goes for the time of a ``with`` block: onto the caller's connection, or into a batch.

A scope belongs to one broker and to one thread, task or greenlet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pgqrs_dramatiq.publishing import Parcel

__all__ = ["current_batch", "current_connection", "scope"]


class _Scope(NamedTuple):
    broker: object
    connection: object
    batch: list[Parcel] | None
    outer: _Scope | None


_current: ContextVar[_Scope | None] = ContextVar("pgqrs_dramatiq_scope", default=None)


@contextmanager
def scope(broker: object, *, connection: object = None, batch: list[Parcel] | None = None) -> Iterator[None]:
    """Let what ``broker`` enqueues in this block join ``connection``'s transaction, or gather in ``batch``."""
    token = _current.set(_Scope(broker, connection, batch, _current.get()))
    try:
        yield
    finally:
        _current.reset(token)


def current_connection(broker: object) -> object:
    """Return the caller's connection to enqueue on, or None for the broker's own."""
    return _find(broker, 1)


def current_batch(broker: object) -> list[Parcel] | None:
    """Return the batch to add to, or None."""
    found: list[Parcel] | None = _find(broker, 2)
    return found


def _find(broker: object, field: int) -> Any:
    current = _current.get()
    while current is not None:
        if current.broker is broker and current[field] is not None:
            return current[field]
        current = current.outer
    return None
