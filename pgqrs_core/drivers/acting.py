"""As which role our sessions act: that which the tables belong to, where they may.

The owner of a table decides what else runs when it is used: a trigger, a default, a view in its place. It runs with the
rights of the role that uses the table. So a session that has the rights of the owner and more puts the rest aside, by
`set role`, when it is opened. What needs the rest, making roles for instance, has the flag ``login`` in the catalogue of
statements.

Code that is out to harm can take the role back, for PostgreSQL lets no session give up for good what its login may do. A
superuser's session therefore uses the tables only if all code on them belongs to a superuser, or to PostgreSQL.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from pgqrs_core.drivers.session import local_settings
from pgqrs_core.errors import NotPermitted
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from pgqrs_core.effects import Execute

__all__ = ["Acting", "Owner", "act", "act_async", "setting"]

#: Seconds after which a superuser's session that acts as itself asks again whom the tables belong to.
_ASK_AGAIN: Final = 60.0
#: The table whose owner counts, and what changes whom it belongs to.
_FIRST: Final = "queues"
_CHANGES: Final = frozenset({"hand_over", "drop_shared", "drop_schema", "close_schema", "drop_role"})


class Owner:
    """Whom the tables of a schema belong to, as far as the sessions of one pool are concerned."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        #: Rises when that may have changed.
        self.generation = 0


class Acting:
    """As which role one session acts.

    Args:
        owner: of the pool.
        role: the role, or None for the one that logged in.
        is_superuser: whether it logged in as one.
    """

    __slots__ = ("_generation", "_until", "is_superuser", "owner", "role")

    def __init__(self, owner: Owner, role: str | None, *, is_superuser: bool) -> None:
        self.owner = owner
        self.role = role
        self.is_superuser = is_superuser
        self._generation = owner.generation
        self._until = time.monotonic() + _ASK_AGAIN if is_superuser and role is None else None

    def holds(self) -> bool:
        """Tell whether the session may go on as it is; else open another one."""
        if self._generation != self.owner.generation:
            return False
        return self._until is None or time.monotonic() < self._until

    def note(self, effect: Execute) -> None:
        """A statement has been run: let all sessions ask again, if it may have changed whom the tables belong to."""
        if effect.query.name in _CHANGES and effect.names.get("table", _FIRST) == _FIRST:
            self.owner.generation += 1


def setting(role: str | None) -> bytes:
    """Return the statement that lets a session act as ``role``, None for as it began. A role that has gone is not taken."""
    if role is None:
        return b"reset role"
    text = "select pg_catalog.set_config('role', rolname, false) from pg_catalog.pg_roles where rolname = {}"
    return sql.SQL(text).format(sql.Literal(role)).as_bytes(None)


def act(connection: psycopg.Connection[Any], owner: Owner, *, pooled: bool) -> Acting:
    """Let a new session act as the role that the tables belong to, where it may.

    Behind a pooler that is set with each statement.

    Raises:
        NotPermitted: it is a superuser's, and code of others is on the tables.
    """
    with connection.transaction() if pooled else nullcontext():
        if pooled:
            connection.execute(local_settings(0))
        acting = _acting(
            connection, owner, connection.execute(_statement("acting_role"), {"schema": owner.schema}).fetchone()
        )
        if acting.role is not None and acting.is_superuser:
            found = connection.execute(_statement("foreign_code"), {"schema": owner.schema}).fetchall()
            _refuse(found, connection.info.user, acting)
    if not pooled and acting.role is not None:
        connection.execute(setting(acting.role))
    return acting


async def act_async(connection: psycopg.AsyncConnection[Any], owner: Owner, *, pooled: bool) -> Acting:
    """As `act`."""
    async with connection.transaction() if pooled else nullcontext():
        if pooled:
            await connection.execute(local_settings(0))
        cursor = await connection.execute(_statement("acting_role"), {"schema": owner.schema})
        acting = _acting(connection, owner, await cursor.fetchone())
        if acting.role is not None and acting.is_superuser:
            cursor = await connection.execute(_statement("foreign_code"), {"schema": owner.schema})
            _refuse(await cursor.fetchall(), connection.info.user, acting)
    if not pooled and acting.role is not None:
        await connection.execute(setting(acting.role))
    return acting


def _acting(connection: psycopg.BaseConnection[Any], owner: Owner, row: tuple[Any, ...] | None) -> Acting:
    if row is None:
        return Acting(owner, None, is_superuser=connection.info.parameter_status("is_superuser") == "on")
    return Acting(owner, row[0], is_superuser=row[1])


def _statement(name: str) -> bytes:
    return sql.SQL(queries[name].text).format().as_bytes(None)


def _refuse(found: Sequence[tuple[Any, ...]], user: str, acting: Acting) -> None:
    if found:
        raise NotPermitted(
            f"code that belongs to no superuser would run with the rights of one: {', '.join(row[0] for row in found)}",
            user=user,
            schema=acting.owner.schema,
            duty="admin",
            remedy=f"Log in as a role that was granted {acting.role} and is no superuser, or remove that code. A trigger "
            "may stay if its function belongs to a superuser: once you have read it, `alter function … owner to …`.",
        )
