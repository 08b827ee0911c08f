"""Blocks in which publishing is not what it is elsewhere: in the caller's own transaction, or all at once.

::

    with in_transaction(connection):
        task.delay(order_id)

What is published there, by whatever Kombu or Celery call in this thread, task or greenlet, is written on the caller's
connection: it is delivered if and when the caller commits, and never if he rolls back.

This module is imported together with Kombu, so it imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pgqrs_kombu.gathering import Gathering

__all__ = ["MAX_SIZE", "batch", "current_batch", "current_connection", "in_transaction"]

#: Messages that are gathered before they are written.
MAX_SIZE: Final = 1_000

_connection: ContextVar[object] = ContextVar("pgqrs_kombu_connection", default=None)
_batch: ContextVar[Gathering | None] = ContextVar("pgqrs_kombu_batch", default=None)


@contextmanager
def in_transaction(connection: object) -> Iterator[None]:
    """Let everything that is published in this block join the transaction of ``connection``.

    Args:
        connection: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session`` on the psycopg driver, or a Django
            connection, to the database that holds the queues.

    Consumers that wait are woken after the commit where SQLAlchemy or Django tell of it, and else find what was published
    within about a second: a notification in the transaction would make its commit hold a lock of the whole database.
    Declarations of queues are not part of the transaction, and stay.

    Raises:
        InvalidArgument: at the first publish, if it is none of these, or is closed.
    """
    token = _connection.set(connection)
    try:
        yield
    finally:
        _connection.reset(token)


def current_connection() -> object:
    """Return the connection to publish on, or None for the broker's own."""
    return _connection.get()


@contextmanager
def batch(max_size: int = MAX_SIZE) -> Iterator[Gathering]:
    """Write everything that is published in this block together, at its end: one commit, all or nothing.

    ::

        with batch():
            for order in orders:
                send_invoice.delay(order)

    It holds for whatever Kombu or Celery call in this thread, task or greenlet; within `in_transaction` it is written on
    the caller's connection. If the block raises, nothing is published. A block within another belongs to the outer one.

    Args:
        max_size: messages after which they are written before the end, so that memory is bounded; these then stay.

    Raises:
        Unavailable: at the end, if the server is away. Nothing was stored.
        BatchPublishError: at the end, if the server went away during the commit; it may or may not have taken place.
    """
    from pgqrs_kombu.gathering import Gathering

    outer = _batch.get()
    if outer is not None:
        yield outer
        return
    mine = Gathering(max_size)
    token = _batch.set(mine)
    try:
        yield mine
    finally:
        _batch.reset(token)
    mine.flush()


def current_batch() -> Gathering | None:
    """Return what gathers the messages of this block, if anything does."""
    return _batch.get()
