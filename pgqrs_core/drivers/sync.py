"""The blocking driver: performs effects on psycopg connections.

Its twin is :mod:`pgqrs_core.drivers.aio`; whatever decides anything belongs to neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqrs_core.cluster.environment import without_service
from pgqrs_core.drivers import session
from pgqrs_core.drivers.acting import Owner, act, setting
from pgqrs_core.drivers.borrowed import ARRAY_NULLS, Loan
from pgqrs_core.drivers.faults import cannot_connect, refused, translate
from pgqrs_core.drivers.locks import BRIEF, session_wait
from pgqrs_core.drivers.patience import Connection, limit_of
from pgqrs_core.drivers.prepared import Prepared, is_usable, wire
from pgqrs_core.drivers.rows import fetched
from pgqrs_core.drivers.session import Link
from pgqrs_core.drivers.statements import (
    NO_ROWS,
    Statement,
    Statements,
    has_rows,
    in_encoding_of,
    prepare_adapters,
    prepare_borrowed,
)
from pgqrs_core.effects import Effect, Execute, Op, Rows, Transact, Wait
from pgqrs_core.errors import NotPermitted, PgqrsError, Unavailable
from pgqrs_core.secret import forget_frames

__all__ = ["drive", "open_link", "perform", "perform_borrowed", "salvage", "transaction"]

T = TypeVar("T")
SyncLink = Link["Connection", "psycopg.Cursor[Any]"]

#: Flags that leave a prepared plan as it is.
_LOCK_TIMEOUT: Final = frozenset({"lock_timeout"})

#: Seconds for which the end of an interrupted claim is awaited.
_SALVAGE: Final = 2.0


def drive(op: Op[T], perform: Callable[[Effect], Any], give_back: Callable[[list[Execute]], object] | None = None) -> T:
    """Run an operation to its end, answering each effect by ``perform``.

    If it is interrupted, ``give_back`` gets the claims whose messages nobody received.
    """
    reply: Any = None
    claims: list[Execute] = []
    try:
        effect = next(op)
        while True:
            if effect.hand is not None:
                claims.append(effect)
            try:
                reply = perform(effect)
            except PgqrsError as error:
                effect = op.throw(error)
            else:
                effect = op.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException as error:
        # Where the server is away there is nobody to give them back to: they come again when their leases end.
        if give_back is not None and claims and not isinstance(error, Unavailable):
            op.close()
            give_back(claims)
        raise
    finally:
        op.close()


def perform(
    link: SyncLink, statements: Statements, effect: Execute, *, timeout: float, target: str, lock_wait: float = BRIEF
) -> Rows:
    """Run one statement on a connection of ours. With the flag ``lock_timeout`` it waits ``lock_wait`` s for a lock."""
    connection = link.connection
    query = effect.query
    statement = statements.render(effect)
    try:
        unusual = query.unusual
        if not unusual and (rows := _prepared(link, statement, effect)) is not None:
            return rows if effect.hand is None else _noted(effect, rows)
        text = statement.named
        if "patient" in unusual:
            connection.limit = None
        if link.pooled:
            return _noted(effect, _perform_pooled(link, text, effect, timeout, lock_wait))
        if unusual:
            with _special(link, unusual, timeout, lock_wait):
                if unusual == _LOCK_TIMEOUT and (rows := _prepared(link, statement, effect)) is not None:
                    return rows
                cursor = connection.execute(text, effect.params or None)
            link.acting.note(effect)
        elif effect.params or effect.queues:
            prepare = link.prepared is None and not effect.once
            cursor = link.cursor.execute(text, effect.params or None, prepare=prepare, binary=True)
        else:
            cursor = connection.execute(text)
        return _noted(effect, fetched(cursor) if has_rows(cursor) else NO_ROWS)
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect, statements, connection, target=target) from error
    finally:
        if query.unusual:
            connection.limit = limit_of(timeout)


def _noted(effect: Execute, rows: Rows) -> Rows:
    if effect.hand is not None:
        effect.hand[:] = rows
    return rows


def salvage(link: SyncLink, effect: Execute) -> None:
    """After an interrupt: learn what a claim has taken, so that it can be given back."""
    if effect.hand is not None and not effect.hand and link.prepared is not None:
        with contextlib.suppress(psycopg.Error, IndexError):
            effect.hand[:] = link.prepared.finish(_SALVAGE)


def _prepared(link: SyncLink, statement: Statement, effect: Execute) -> Rows | None:
    """Run a statement the short way; None where it has to go the long one."""
    if link.prepared is None or effect.once or not (effect.params or effect.queues):
        return None
    encoded = wire(statement.names, effect.params)
    return None if encoded is None else link.prepared.execute(statement, *encoded)


def _perform_pooled(link: SyncLink, text: bytes, effect: Execute, timeout: float, lock_wait: float) -> Rows:
    """Run one statement behind a transaction pooler, where a session is lent by the transaction."""
    query, connection, role = effect.query, link.connection, link.acting.role
    settings = session.local_settings(timeout, relaxed=query.relaxed, flags=query.flags, lock_wait=lock_wait, role=role)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        if query.unusual:
            connection.execute(settings)
        cursor = connection.execute(text, effect.params or None)
        if role is not None and "login" in query.flags:
            connection.execute(session.local_settings(timeout, role=role))
    elif "alone" in query.flags:
        cursor = connection.execute(text)
    else:
        # Not in a pipeline: PgBouncer 1.18 at times keeps the server's connection after one.
        with connection.transaction():
            connection.execute(settings)
            cursor = connection.execute(text, effect.params or None, binary=True)
    return fetched(cursor) if has_rows(cursor) else NO_ROWS


@contextmanager
def _special(link: SyncLink, flags: frozenset[str], timeout: float, lock_wait: float) -> Iterator[None]:
    """Lift what would hinder a long or an unusual statement, and put it back."""
    connection, role = link.connection, link.acting.role
    wait = session_wait(relaxed=link.relaxed)
    wanted = {"patient": session.timeouts(0, "0"), "bitmap": b"set enable_bitmapscan = on"}
    before = {"patient": session.timeouts(timeout, wait), "bitmap": b"set enable_bitmapscan = off"}
    if role is not None:
        wanted["login"], before["login"] = setting(None), setting(role)
    for flag in flags & wanted.keys():
        connection.execute(wanted[flag])
    try:
        if "lock_timeout" in flags:
            # For the transaction, never for the session: what the session has of its own must come back.
            idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
            with connection.transaction() if idle else nullcontext():
                connection.execute(f"set local lock_timeout = {round(lock_wait * 1000)}".encode())
                yield
        else:
            yield
    finally:
        if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.INERROR:
            for flag in flags & before.keys():
                connection.execute(before[flag])


def perform_borrowed(loan: Loan[psycopg.Connection[Any]], statements: Statements, effect: Effect, target: str) -> Any:
    """Run one statement on the caller's connection, with cursor, rows and adapters of our own."""
    if isinstance(effect, Wait):
        raise AssertionError("an operation must not wait inside the caller's transaction")
    connection = loan.connection
    if isinstance(effect, Transact):
        try:
            if not connection.autocommit:
                # Else the block would be the transaction itself, and commit it.
                connection.execute(b"select")
            with connection.transaction():
                return drive(effect.make(), lambda part: perform_borrowed(loan, statements, part, target))
        except psycopg.Error as error:
            raise translate(error, target=target, broken=connection.broken) from error
    try:
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        prepare_borrowed(cursor)
        if loan.needs_array_nulls(effect):
            cursor.execute(ARRAY_NULLS)
            loan.check_array_nulls(cursor.fetchone())
        text = in_encoding_of(connection, statements.render(effect).named)
        cursor.execute(text, effect.params or None, binary=bool(effect.params))
        if connection.pgconn.pipeline_status:
            return loan.note(effect, _fetch_in_pipeline(cursor))
        return loan.note(effect, fetched(cursor) if has_rows(cursor) else NO_ROWS)
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect, statements, connection, target=target) from error


def _fetch_in_pipeline(cursor: psycopg.Cursor[Any]) -> Rows:
    """Wait for the answer to a statement: in the caller's pipeline mode it has only been sent."""
    try:
        return fetched(cursor)
    except psycopg.ProgrammingError:
        if cursor.pgresult is None or has_rows(cursor):
            raise
        return NO_ROWS


def open_link(conninfo: str, *, target: str, query_timeout: float, relaxed: bool, owner: Owner) -> SyncLink:
    """Connect and set the session up, to act as the role that the tables belong to where it may.

    Raises:
        Unavailable: the server cannot be reached.
        NotPermitted: it would be a superuser's, and code of others is on the tables.
    """
    try:
        with without_service(conninfo):
            connection = Connection.connect(conninfo, client_encoding="utf8", autocommit=True)
    except psycopg.Error as error:
        raise cannot_connect(error, target=target) from forget_frames(error)
    except BaseException as error:
        # Frames of psycopg's hold the password.
        raise forget_frames(error) from error.__cause__
    connection.limit = limit_of(query_timeout)
    try:
        prepare_adapters(connection)
        row = connection.execute(session.BACKEND).fetchone()
        pooled = row is None or row[0] != connection.info.backend_pid
        if pooled:
            session.announce_pooler(target)
            connection.prepare_threshold = None
        else:
            connection.prepared_max = session.PREPARED_MAX
            connection.execute(session.session_settings(query_timeout, relaxed=relaxed).encode())
            if relaxed:
                connection.execute(b"set synchronous_commit = off")
        acting = act(connection, owner, pooled=pooled)
    except psycopg.Error as error:
        connection.close()
        raise cannot_connect(error, target=target) from error
    except NotPermitted:
        connection.close()
        raise
    prepared = Prepared(connection) if not pooled and is_usable() else None
    if prepared is not None:
        # What psycopg prepares it deallocates after a rollback or a DROP, and ours with it.
        connection.prepare_threshold = None
    return Link(connection, connection.cursor(), pooled=pooled, relaxed=relaxed, acting=acting, prepared=prepared)


@contextmanager
def transaction(link: SyncLink, *, timeout: float, target: str) -> Iterator[None]:
    """Let everything in the block commit together; roll back if it raises.

    Not psycopg's own: what that counts is wrong for good when an exception strikes within it, and the server's word is not.
    """
    connection = link.connection
    try:
        connection.execute(b"begin")
        if link.pooled:
            connection.execute(session.local_settings(timeout, role=link.acting.role))
        yield
        connection.execute(b"commit")
        link.doubt.resolve(target)
    except psycopg.Error as error:
        raise translate(error, target=target, broken=connection.broken) from error
    finally:
        if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            # Whoever cannot be rolled back is not idle, and is closed.
            with contextlib.suppress(psycopg.Error):
                connection.execute(b"rollback")
