"""The caller's own connection, whatever wraps it.

Operations on it join the caller's transaction: they commit and roll back with the caller's rows. Nothing is set, notified
or committed there.
"""

from __future__ import annotations

from typing import Any

import psycopg

from pgqrs_core.errors import InvalidArgument

__all__ = ["unwrap", "unwrap_async"]

_EXPECTED = "a psycopg connection, a SQLAlchemy Connection or Session on the psycopg driver, or a Django connection"


def unwrap(connection: object) -> psycopg.Connection[Any]:
    """Return the psycopg connection inside.

    Raises:
        InvalidArgument: if there is none, or it is closed.
    """
    found = _search(connection)
    if not isinstance(found, psycopg.Connection) or found.closed:
        raise InvalidArgument("connection", connection, f"{_EXPECTED}, open and not async")
    return found


async def unwrap_async(connection: object) -> psycopg.AsyncConnection[Any]:
    """Return the psycopg connection inside an asynchronous wrapper.

    Raises:
        InvalidArgument: if there is none, or it is closed.
    """
    found: Any = connection
    if not isinstance(found, psycopg.AsyncConnection):
        if _is_from(found, "sqlalchemy") and hasattr(found, "sync_session"):
            found = await found.connection()
        if hasattr(found, "get_raw_connection"):
            # SQLAlchemy commits only what it saw begin, and it does not see what we execute.
            if not found.in_transaction():
                await found.begin()
            found = (await found.get_raw_connection()).driver_connection
    if not isinstance(found, psycopg.AsyncConnection) or found.closed:
        raise InvalidArgument("connection", connection, f"{_EXPECTED}, open and async")
    return found


def _search(connection: Any) -> object:
    if isinstance(connection, psycopg.Connection):
        return connection
    if _is_from(connection, "sqlalchemy"):
        # A Session (or scoped_session) hands out its Connection; a Connection knows the driver's.
        if hasattr(connection, "get_bind") or hasattr(connection, "registry"):
            connection = connection.connection()
        # SQLAlchemy commits only what it saw begin, and it does not see what we execute.
        if hasattr(connection, "in_transaction") and not connection.in_transaction():
            connection.begin()
        return getattr(getattr(connection, "connection", None), "driver_connection", None)
    if hasattr(connection, "ensure_connection"):
        connection.ensure_connection()
        return getattr(connection, "connection", None)
    return None


def _is_from(value: object, package: str) -> bool:
    return type(value).__module__.partition(".")[0] == package
