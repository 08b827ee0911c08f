"""The caller's own connection, whatever wraps it.

Operations on it join the caller's transaction: they commit and roll back with the caller's rows. Nothing is set, notified
or committed there. Whoever sleeps until there is work is told after the commit, by somebody else, where we hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import psycopg

from pgqrs_core.arrays import WithNulls
from pgqrs_core.drivers.commits import after_commit
from pgqrs_core.effects import Execute, Rows
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import Queue

__all__ = ["ARRAY_NULLS", "Loan", "borrow", "borrow_async"]

C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])

_EXPECTED = "a psycopg connection, a SQLAlchemy Connection or Session on the psycopg driver, or a Django connection"
_OF_PSYCOPG_3: Final = (
    "of psycopg 3: let SQLAlchemy 2.0 connect to postgresql+psycopg://, or give Django psycopg for psycopg2"
)

ARRAY_NULLS: Final = "select pg_catalog.current_setting('array_nulls')"


@dataclass(slots=True)
class Loan(Generic[C]):
    """A caller's connection for the time of one operation.

    Attributes:
        connection: psycopg's.
        owner: what commits it, and may tell: SQLAlchemy's ``Connection``, Django's wrapper, or psycopg's connection.
        awaited: the queues in which something was stored that a consumer sleeps for, and how many messages, by number.
    """

    connection: C
    owner: object
    awaited: dict[int, tuple[Queue, int]] = field(default_factory=dict)

    def note(self, effect: Execute, rows: Rows) -> Rows:
        """Remember whether anybody waits for what was stored, and return the rows."""
        if effect.tells and effect.queue is not None and rows and rows[0][1]:
            _, before = self.awaited.get(effect.queue.id, (effect.queue, 0))
            self.awaited[effect.queue.id] = effect.queue, before + len(rows)
        return rows

    @staticmethod
    def needs_array_nulls(effect: Execute) -> bool:
        """Tell whether a statement has a NULL in an array, which a connection may be set to take for a word."""
        return any(type(value) is WithNulls for value in effect.params.values())

    def check_array_nulls(self, row: Any) -> None:
        """Raise unless the connection reads such arrays as they are meant; ``row`` is the answer to `ARRAY_NULLS`.

        Raises:
            InvalidArgument: its ``array_nulls`` is off, which is not ours to change. Nothing was changed.
        """
        if row[0] not in ("on", b"on"):
            expected = "a connection whose array_nulls is on: execute `set array_nulls = on`"
            raise InvalidArgument("connection", self.owner, expected)

    def when_committed(self, ring: Callable[[Collection[tuple[Queue, int]]], object]) -> None:
        """Call ``ring`` with what is awaited, if anything is, once the caller has committed."""
        if self.awaited:
            after_commit(self.owner, lambda: ring(self.awaited.values()))


def borrow(connection: object) -> Loan[psycopg.Connection[Any]]:
    """Return the psycopg connection inside, and its owner.

    Raises:
        InvalidArgument: if there is none, or it is closed.
    """
    owner = _owner(connection)
    found = _inside(owner)
    if _is_from(found, "psycopg2") or _is_from(connection, "psycopg2"):
        raise InvalidArgument("connection", connection, _OF_PSYCOPG_3)
    if not isinstance(found, psycopg.Connection) or found.closed:
        raise InvalidArgument("connection", connection, f"{_EXPECTED}, open and not async")
    return Loan(found, owner)


async def borrow_async(connection: object) -> Loan[psycopg.AsyncConnection[Any]]:
    """Return the psycopg connection inside an asynchronous wrapper, and its owner.

    Raises:
        InvalidArgument: if there is none, or it is closed.
    """
    found: Any = connection
    owner: Any = connection
    if not isinstance(found, psycopg.AsyncConnection):
        if _is_from(found, "sqlalchemy") and hasattr(found, "sync_session"):
            found = await found.connection()
        if hasattr(found, "get_raw_connection"):
            # SQLAlchemy commits only what it saw begin, and it does not see what we execute.
            if not found.in_transaction():
                await found.begin()
            owner = found.sync_connection
            found = (await found.get_raw_connection()).driver_connection
    if not isinstance(found, psycopg.AsyncConnection) or found.closed:
        raise InvalidArgument("connection", connection, f"{_EXPECTED}, open and async")
    return Loan(found, owner)


def _owner(connection: Any) -> Any:
    """Return what commits, with a transaction begun where SQLAlchemy would see none."""
    if _is_from(connection, "sqlalchemy"):
        # A Session (or scoped_session) hands out its Connection; a Connection knows the driver's.
        if hasattr(connection, "get_bind") or hasattr(connection, "registry"):
            connection = connection.connection()
        # SQLAlchemy commits only what it saw begin, and it does not see what we execute.
        if hasattr(connection, "in_transaction") and not connection.in_transaction():
            if not hasattr(connection, "commit"):
                # Nothing would commit what is begun here, nor what the caller executes in it.
                expected = "in a transaction, which SQLAlchemy 1.4 begins `with connection.begin():`"
                raise InvalidArgument("connection", connection, expected)
            connection.begin()
    return connection


def _inside(owner: Any) -> object:
    if isinstance(owner, psycopg.Connection):
        return owner
    if _is_from(owner, "sqlalchemy"):
        return getattr(getattr(owner, "connection", None), "driver_connection", None)
    if hasattr(owner, "ensure_connection"):
        owner.ensure_connection()
        return getattr(owner, "connection", None)
    return None


def _is_from(value: object, package: str) -> bool:
    return type(value).__module__.partition(".")[0] == package
