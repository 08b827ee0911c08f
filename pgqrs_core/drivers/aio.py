"""The asyncio driver: performs effects on psycopg's asynchronous connections.

Its twin is :mod:`pgqrs_core.drivers.sync`; whatever decides anything belongs to neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqrs_core.cluster.environment import without_service
from pgqrs_core.drivers import session
from pgqrs_core.drivers.acting import Owner, act_async, setting
from pgqrs_core.drivers.borrowed import ARRAY_NULLS, Loan
from pgqrs_core.drivers.faults import cannot_connect, refused, translate
from pgqrs_core.drivers.locks import BRIEF, session_wait
from pgqrs_core.drivers.patience import AsyncConnection, limit_of
from pgqrs_core.drivers.rows import fetched_async, load_rows
from pgqrs_core.drivers.session import Link
from pgqrs_core.drivers.statements import (
    NO_ROWS,
    Statements,
    has_rows,
    in_encoding_of,
    prepare_adapters,
    prepare_borrowed,
)
from pgqrs_core.effects import Effect, Execute, Op, Rows, Transact, Wait
from pgqrs_core.errors import NotPermitted, PgqrsError, Unavailable
from pgqrs_core.secret import forget_frames

__all__ = ["drive", "open_link", "perform", "perform_borrowed", "transaction"]

T = TypeVar("T")
AsyncLink = Link["AsyncConnection", "psycopg.AsyncCursor[Any]"]


async def drive(
    op: Op[T],
    perform: Callable[[Effect], Awaitable[Any]],
    give_back: Callable[[list[Execute]], Awaitable[None]] | None = None,
) -> T:
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
                reply = await perform(effect)
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
            await give_back(claims)
        raise
    finally:
        op.close()


async def perform(
    link: AsyncLink, statements: Statements, effect: Execute, *, timeout: float, target: str, lock_wait: float = BRIEF
) -> Rows:
    """Run one statement on a connection of ours. With the flag ``lock_timeout`` it waits ``lock_wait`` s for a lock."""
    connection = link.connection
    query = effect.query
    text = statements.render(effect).named
    try:
        unusual = query.unusual
        if "patient" in unusual:
            connection.limit = None
        if link.pooled:
            rows = await _perform_pooled(link, text, effect, timeout, lock_wait)
            if effect.hand is not None:
                effect.hand[:] = rows
            return rows
        if unusual:
            async with _special(link, unusual, timeout, lock_wait):
                cursor = await connection.execute(text, effect.params or None)
            link.acting.note(effect)
        elif effect.hand is not None:
            return await _perform_claim(link.cursor, text, effect)
        elif effect.params or effect.queues:
            cursor = await link.cursor.execute(text, effect.params or None, prepare=not effect.once, binary=True)
        else:
            cursor = await connection.execute(text)
        return await fetched_async(cursor) if has_rows(cursor) else NO_ROWS
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect, statements, connection, target=target) from error
    finally:
        if query.unusual:
            connection.limit = limit_of(timeout)


async def _perform_claim(cursor: psycopg.AsyncCursor[Any], text: bytes, effect: Execute) -> Rows:
    """Run a claim. When it is cancelled psycopg waits for its end, and what it took after all is noted."""
    hand = effect.hand
    assert hand is not None
    before = cursor.pgresult
    try:
        await cursor.execute(text, effect.params, binary=True, prepare=True)
    finally:
        result = cursor.pgresult
        if result is not None and result is not before and result.ntuples:
            hand[:] = load_rows(cursor.connection, result)
    return hand


async def _perform_pooled(link: AsyncLink, text: bytes, effect: Execute, timeout: float, lock_wait: float) -> Rows:
    """Run one statement behind a transaction pooler, where a session is lent by the transaction."""
    query, connection, role = effect.query, link.connection, link.acting.role
    settings = session.local_settings(timeout, relaxed=query.relaxed, flags=query.flags, lock_wait=lock_wait, role=role)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        if query.unusual:
            await connection.execute(settings)
        cursor = await connection.execute(text, effect.params or None)
        if role is not None and "login" in query.flags:
            await connection.execute(session.local_settings(timeout, role=role))
    elif "alone" in query.flags:
        cursor = await connection.execute(text)
    else:
        # Not in a pipeline: PgBouncer 1.18 at times keeps the server's connection after one.
        async with connection.transaction():
            await connection.execute(settings)
            cursor = await connection.execute(text, effect.params or None, binary=True)
    return await fetched_async(cursor) if has_rows(cursor) else NO_ROWS


@asynccontextmanager
async def _special(link: AsyncLink, flags: frozenset[str], timeout: float, lock_wait: float) -> AsyncIterator[None]:
    """Lift what would hinder a long or an unusual statement, and put it back."""
    connection, role = link.connection, link.acting.role
    wait = session_wait(relaxed=link.relaxed)
    wanted = {"patient": session.timeouts(0, "0"), "bitmap": b"set enable_bitmapscan = on"}
    before = {"patient": session.timeouts(timeout, wait), "bitmap": b"set enable_bitmapscan = off"}
    if role is not None:
        wanted["login"], before["login"] = setting(None), setting(role)
    for flag in flags & wanted.keys():
        await connection.execute(wanted[flag])
    try:
        if "lock_timeout" in flags:
            # For the transaction, never for the session: what the session has of its own must come back.
            idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
            async with connection.transaction() if idle else nullcontext():
                await connection.execute(f"set local lock_timeout = {round(lock_wait * 1000)}".encode())
                yield
        else:
            yield
    finally:
        if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.INERROR:
            for flag in flags & before.keys():
                await connection.execute(before[flag])


async def perform_borrowed(
    loan: Loan[psycopg.AsyncConnection[Any]], statements: Statements, effect: Effect, target: str
) -> Any:
    """Run one statement on the caller's connection, with cursor, rows and adapters of our own."""
    if isinstance(effect, Wait):
        raise AssertionError("an operation must not wait inside the caller's transaction")
    connection = loan.connection
    if isinstance(effect, Transact):
        try:
            if not connection.autocommit:
                # Else the block would be the transaction itself, and commit it.
                await connection.execute(b"select")
            async with connection.transaction():
                return await drive(effect.make(), lambda part: perform_borrowed(loan, statements, part, target))
        except psycopg.Error as error:
            raise translate(error, target=target, broken=connection.broken) from error
    try:
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        prepare_borrowed(cursor)
        if loan.needs_array_nulls(effect):
            await cursor.execute(ARRAY_NULLS)
            loan.check_array_nulls(await cursor.fetchone())
        text = in_encoding_of(connection, statements.render(effect).named)
        await cursor.execute(text, effect.params or None, binary=bool(effect.params))
        if connection.pgconn.pipeline_status:
            return loan.note(effect, await _fetch_in_pipeline(cursor))
        return loan.note(effect, await fetched_async(cursor) if has_rows(cursor) else NO_ROWS)
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect, statements, connection, target=target) from error


async def _fetch_in_pipeline(cursor: psycopg.AsyncCursor[Any]) -> Rows:
    """Wait for the answer to a statement: in the caller's pipeline mode it has only been sent."""
    try:
        return await fetched_async(cursor)
    except psycopg.ProgrammingError:
        if cursor.pgresult is None or has_rows(cursor):
            raise
        return NO_ROWS


async def open_link(conninfo: str, *, target: str, query_timeout: float, relaxed: bool, owner: Owner) -> AsyncLink:
    """Connect and set the session up, to act as the role that the tables belong to where it may.

    Raises:
        Unavailable: the server cannot be reached.
        NotPermitted: it would be a superuser's, and code of others is on the tables.
    """
    try:
        with without_service(conninfo):
            connection = await AsyncConnection.connect(conninfo, client_encoding="utf8", autocommit=True)
    except psycopg.Error as error:
        raise cannot_connect(error, target=target) from forget_frames(error)
    except BaseException as error:
        # Frames of psycopg's hold the password.
        raise forget_frames(error) from error.__cause__
    connection.limit = limit_of(query_timeout)
    try:
        prepare_adapters(connection)
        row = await (await connection.execute(session.BACKEND)).fetchone()
        pooled = row is None or row[0] != connection.info.backend_pid
        if pooled:
            session.announce_pooler(target)
            connection.prepare_threshold = None
        else:
            connection.prepared_max = session.PREPARED_MAX
            await connection.execute(session.session_settings(query_timeout, relaxed=relaxed).encode())
            if relaxed:
                await connection.execute(b"set synchronous_commit = off")
        acting = await act_async(connection, owner, pooled=pooled)
    except psycopg.Error as error:
        await connection.close()
        raise cannot_connect(error, target=target) from error
    except NotPermitted:
        await connection.close()
        raise
    return Link(connection, connection.cursor(), pooled=pooled, relaxed=relaxed, acting=acting)


@asynccontextmanager
async def transaction(link: AsyncLink, *, timeout: float, target: str) -> AsyncIterator[None]:
    """Let everything in the block commit together; roll back if it raises.

    Not psycopg's own: what that counts is wrong for good when an exception strikes within it, and the server's word is not.
    """
    connection = link.connection
    try:
        await connection.execute(b"begin")
        if link.pooled:
            await connection.execute(session.local_settings(timeout, role=link.acting.role))
        yield
        await connection.execute(b"commit")
        link.doubt.resolve(target)
    except psycopg.Error as error:
        raise translate(error, target=target, broken=connection.broken) from error
    finally:
        if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            # Whoever cannot be rolled back is not idle, and is closed.
            with contextlib.suppress(psycopg.Error):
                await connection.execute(b"rollback")
