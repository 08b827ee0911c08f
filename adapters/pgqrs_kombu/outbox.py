"""Blocks in which publishing is not what it is elsewhere: in the caller's own transaction, or all at once.

::

    with in_transaction(connection):
        task.delay(order_id)

What is published there, by whatever Kombu or Celery call in this thread, task or greenlet, is written on the caller's
connection: it is delivered if and when the caller commits, and never if it rolls back. See `pgqrs_core.scopes` for what
counts as the block.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pgqrs_core.logs import get_logger
from pgqrs_core.scopes import Scope, Scopes

if TYPE_CHECKING:
    from pgqrs_kombu.gathering import Gathering

__all__ = ["MAX_SIZE", "batch", "current_scope", "gather", "in_transaction"]

_log = get_logger("pgqrs.kombu")

#: Messages that are gathered before they are written.
MAX_SIZE: Final = 1_000

_scopes: Final = Scopes("pgqrs_kombu_scope")


@contextmanager
def in_transaction(connection: object) -> Iterator[None]:
    """Let everything that is published in this block join the transaction of ``connection``.

    Args:
        connection: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session`` on the psycopg driver, or a Django
            connection, to the database that holds the queues.

    Consumers that wait are woken after the commit where SQLAlchemy or Django tell of it, and else find what was published
    within about a second: a notification in the transaction would make its commit hold a lock of the whole database.
    Declarations of queues are not part of the transaction, and stay.

    The block is what its own thread, greenlet or asyncio task runs. Other tasks, threads, greenlets and callbacks publish
    by themselves, at once, also if they were started in the block.

    Raises:
        InvalidArgument: at the first publish, if it is none of these, or is closed.
    """
    with _scopes.enter(_scopes, connection=connection):
        yield


@contextmanager
def batch(max_size: int = MAX_SIZE) -> Iterator[Gathering]:
    """Write everything that is published in this block together, at its end: one commit, all or nothing.

    ::

        with batch():
            for order in orders:
                send_invoice.delay(order)

    It holds for whatever Kombu or Celery call in this thread, task or greenlet; within `in_transaction` it is written on
    the caller's connection. If the block raises, nothing is published. A block within another belongs to the outer one,
    unless there is an `in_transaction` between them. Other tasks, threads, greenlets and callbacks publish by themselves,
    at once, also if they were started in the block.

    Args:
        max_size: messages after which they are written before the end, so that memory is bounded; these then stay.

    Raises:
        kombu.exceptions.OperationalError: at the end, if the server is away. Nothing was stored.
        pgqrs_kombu.BatchPublishError: at the end, if the server went away during the commit; it may or may not have taken
            place. Kombu 5.7 and newer have it as `kombu.exceptions.BatchPublishError`.
    """
    outer = current_scope()
    if outer is not None and outer.batch is not None:
        yield outer.batch
        return
    with gather(max_size) as mine:
        yield mine
    mine.flush()


@contextmanager
def gather(max_size: int = MAX_SIZE, members: Container[str] | None = None) -> Iterator[Gathering]:
    """Gather what is published in this block, for the caller to flush; nothing, if the block raises.

    Args:
        max_size: as in `batch`.
        members: the ids of the tasks to gather; other messages are published as they would be outside.
    """
    from pgqrs_kombu.gathering import Gathering

    outer = current_scope()
    mine = Gathering(max_size, None if outer is None else outer.connection)
    try:
        with _scopes.enter(_scopes, connection=mine.connection, batch=mine, members=members):
            yield mine
    except GeneratorExit:
        # Every other exception is seen by the caller of the block.
        if mine:
            _log.warning(
                "%d messages of a batch were discarded: the generator that gathered them was closed", len(mine)
            )
        raise
    finally:
        mine.end()


def current_scope(member: str | None = None) -> Scope | None:
    """Return what changes the publishing of the running code, or None.

    Args:
        member: the id of the task to publish, if it is one.
    """
    return _scopes.find(_scopes, member)
