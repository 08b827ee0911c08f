"""Publishing inside the caller's own transaction.

::

    with in_transaction(connection):
        task.delay(order_id)

What is published there, by whatever Kombu or Celery call in this thread, task or greenlet, is written on the caller's
connection: it is delivered if and when the caller commits, and never if he rolls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["current_connection", "in_transaction"]

_connection: ContextVar[object] = ContextVar("pgqrs_kombu_connection", default=None)


@contextmanager
def in_transaction(connection: object) -> Iterator[None]:
    """Let everything that is published in this block join the transaction of ``connection``.

    Args:
        connection: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session`` on the psycopg driver, or a Django
            connection, to the database that holds the queues.

    Consumers find what was published within a second of the commit: a notification would hold a lock of the whole
    database until then. Declarations of queues are not part of the transaction, and stay.

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
