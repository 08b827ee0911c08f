"""The asyncio driver: performs effects on psycopg's asynchronous connections.

Its twin is :mod:`pgqrs_core.drivers.sync`; whatever decides anything belongs to neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqrs_core.drivers import session
from pgqrs_core.drivers.borrowed import Loan
from pgqrs_core.drivers.faults import RETRY, STALE, cannot_connect, refused, translate
from pgqrs_core.drivers.patience import AsyncConnection, limit_of
from pgqrs_core.drivers.session import Link, Shelf
from pgqrs_core.drivers.statements import NO_ROWS, Statements, has_rows, prepare_adapters
from pgqrs_core.effects import Effect, Execute, Op, Rows, Wait
from pgqrs_core.errors import PgqrsError, ServerError, TimedOut, Unavailable
from pgqrs_core.figures import PoolUsage

__all__ = ["Connections", "drive", "open_link", "perform", "perform_borrowed"]

T = TypeVar("T")
AsyncLink = Link["AsyncConnection", "psycopg.AsyncCursor[Any]"]


async def drive(op: Op[T], perform: Callable[[Effect], Awaitable[Any]]) -> T:
    """Run an operation to its end, answering each effect by ``perform``."""
    reply: Any = None
    try:
        effect = next(op)
        while True:
            try:
                reply = await perform(effect)
            except PgqrsError as error:
                effect = op.throw(error)
            else:
                effect = op.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        op.close()


async def perform(link: AsyncLink, statements: Statements, effect: Execute, *, timeout: float, target: str) -> Rows:
    """Run one statement on a connection of ours."""
    connection = link.connection
    query = effect.query
    text = statements.render(effect).named
    try:
        unusual = query.flags & session.UNUSUAL
        if "patient" in unusual:
            connection.limit = None
        if link.pooled:
            return await _perform_pooled(connection, text, effect, timeout)
        if unusual:
            async with _special(connection, unusual, timeout):
                cursor = await connection.execute(text, effect.params or None)
        elif effect.params or effect.queues:
            cursor = await link.cursor.execute(text, effect.params or None, prepare=link.prepared is None, binary=True)
        else:
            cursor = await connection.execute(text)
        return await cursor.fetchall() if has_rows(cursor) else NO_ROWS
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, query, statements, connection, target=target) from error
    finally:
        connection.limit = limit_of(timeout)


async def _perform_pooled(
    connection: psycopg.AsyncConnection[Any], text: bytes, effect: Execute, timeout: float
) -> Rows:
    """Run one statement behind a transaction pooler, where a session is lent by the transaction."""
    query = effect.query
    settings = session.local_settings(timeout, relaxed=query.relaxed, flags=query.flags)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        if query.flags & session.UNUSUAL:
            await connection.execute(settings)
        cursor = await connection.execute(text, effect.params or None)
    elif "alone" in query.flags:
        cursor = await connection.execute(text)
    else:
        # Not in a pipeline: PgBouncer 1.18 at times keeps the server's connection after one.
        async with connection.transaction():
            await connection.execute(settings)
            cursor = await connection.execute(text, effect.params or None, binary=True)
    return await cursor.fetchall() if has_rows(cursor) else NO_ROWS


@asynccontextmanager
async def _special(connection: AsyncConnection, flags: frozenset[str], timeout: float) -> AsyncIterator[None]:
    """Lift what would hinder a long or an unusual statement, and put it back."""
    wanted = {"patient": "statement_timeout = 0", "bitmap": "enable_bitmapscan = on"}
    before = {"patient": f"statement_timeout = {round(timeout * 1000)}", "bitmap": "enable_bitmapscan = off"}
    for flag in flags & wanted.keys():
        await connection.execute(f"set {wanted[flag]}".encode())
    try:
        yield
    finally:
        if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.INERROR:
            for flag in flags & before.keys():
                await connection.execute(f"set {before[flag]}".encode())


async def perform_borrowed(
    loan: Loan[psycopg.AsyncConnection[Any]], statements: Statements, effect: Effect, target: str
) -> Rows:
    """Run one statement on the caller's connection, with cursor, rows and adapters of our own."""
    if isinstance(effect, Wait):
        raise AssertionError("an operation must not wait inside the caller's transaction")
    connection = loan.connection
    try:
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        prepare_adapters(cursor)
        await cursor.execute(statements.render(effect).named, effect.params or None, binary=bool(effect.params))
        return loan.note(effect, await cursor.fetchall() if has_rows(cursor) else NO_ROWS)
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect.query, statements, connection, target=target) from error


async def open_link(conninfo: str, *, target: str, query_timeout: float, relaxed: bool) -> AsyncLink:
    """Connect and set the session up."""
    try:
        connection = await AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise cannot_connect(error, target=target) from error
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
            await connection.execute(session.session_settings(query_timeout).encode())
            if relaxed:
                await connection.execute(b"set synchronous_commit = off")
    except psycopg.Error as error:
        await connection.close()
        raise cannot_connect(error, target=target) from error
    return Link(connection, connection.cursor(), pooled=pooled, relaxed=relaxed)


class Connections:
    """A small pool. It connects in the caller's task, so that a failure is the caller's to see, with its reason.

    Args:
        conninfo: a libpq connection string.
        target: what errors call the server; never holds a secret.
        limit: the most connections open at once.
        keep: how many stay open when idle.
        patience: seconds to wait for a free one at the limit.
        query_timeout: seconds after which the server cancels a statement; 0 for never.
    """

    def __init__(
        self, conninfo: str, *, target: str, limit: int, keep: int, patience: float, query_timeout: float
    ) -> None:
        self._conninfo = conninfo
        self._patience = patience
        self._query_timeout = query_timeout
        self._shelf: Shelf[AsyncConnection, psycopg.AsyncCursor[Any]] = Shelf(limit=limit, keep=keep)
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False
        self.target = target

    async def run(self, effect: Execute, statements: Statements) -> Rows:
        """Run one statement, committed by itself."""
        for retries in (2, 1, 0):
            link = await self.get(relaxed=effect.query.wants)
            try:
                rows = await perform(link, statements, effect, timeout=self._query_timeout, target=self.target)
            except ServerError as error:
                if error.sqlstate in STALE:
                    await link.connection.close()
                elif error.sqlstate not in RETRY:
                    raise
                if not retries:
                    raise
            else:
                link.doubt.resolve(self.target)
                return rows
            finally:
                await self.put(link)
        raise AssertionError("unreachable")

    async def transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        """Run an operation in one transaction, again from the start after a conflict."""
        for retries in (2, 1, 0):
            link = await self.get(relaxed=False)
            try:
                async with _transaction(link, self.target):
                    if link.pooled:
                        await link.connection.execute(session.local_settings(self._query_timeout))

                    async def answer(effect: Effect, link: AsyncLink = link) -> Rows:
                        if isinstance(effect, Wait):
                            raise AssertionError("an operation must not wait inside a transaction")
                        return await perform(link, statements, effect, timeout=self._query_timeout, target=self.target)

                    return await drive(make(), answer)
            except ServerError as error:
                if not retries or error.sqlstate not in RETRY:
                    raise
            finally:
                await self.put(link)
        raise AssertionError("unreachable")

    async def open(self, *, relaxed: bool) -> AsyncLink:
        """Open a connection outside the pool's count, for somebody who keeps it."""
        return await open_link(self._conninfo, target=self.target, query_timeout=self._query_timeout, relaxed=relaxed)

    async def get(self, *, relaxed: bool | None) -> AsyncLink:
        """Take a connection whose commits wait for the disk, with ``relaxed`` need not, or with None of either kind.

        When to wait for one and when to open one more is said at `Shelf`.

        Raises:
            Unavailable: the server cannot be reached.
            TimedOut: none became free in time.
        """
        began = time.monotonic()
        while True:
            if self._closed:
                raise Unavailable("the client is closed", target=self.target)
            waited = time.monotonic() - began
            link = self._shelf.take(relaxed=relaxed)
            if link is not None:
                if link.is_alive():
                    return link
                self._shelf.closed(relaxed=link.relaxed)
                await link.connection.close()
            elif self._shelf.may_open(relaxed=relaxed, waited=waited):
                relaxed = bool(relaxed)
                surplus = self._shelf.opened(relaxed=relaxed)
                break
            elif waited >= self._patience:
                raise TimedOut(
                    f"no connection to {self.target} became free in {self._patience:g} s; raise max_connections",
                    target=self.target,
                )
            else:
                pause = self._shelf.turn(relaxed=relaxed, waited=waited, patience=self._patience)
                await self._wait_for_one(pause)
        try:
            if surplus is not None:
                await surplus.connection.close()
            return await self.open(relaxed=relaxed)
        except BaseException:
            self._lost(relaxed=relaxed)
            raise

    async def put(self, link: AsyncLink) -> None:
        """Give a connection back. One that is not idle is closed: whoever had it was interrupted."""
        usable = link.is_idle()
        if usable and not self._closed and self._shelf.give(link):
            self._wake_all()
            return
        self._lost(relaxed=link.relaxed)
        await link.connection.close()

    async def close(self) -> None:
        """Close all idle connections, and the others when they come back."""
        self._closed = True
        idle = self._shelf.empty()
        self._wake_all()
        for link in idle:
            await link.connection.close()

    @property
    def total(self) -> int:
        """How many connections are open."""
        return self._shelf.total

    @property
    def usage(self) -> PoolUsage:
        """How many connections are open, how many of them idle, and how many there may be."""
        return self._shelf.usage

    async def _wait_for_one(self, seconds: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(turn)
        try:
            await asyncio.wait({turn}, timeout=seconds)
        finally:
            self._waiting.discard(turn)
            turn.cancel()

    def _wake_all(self) -> None:
        # Whoever waits wants one kind of connection; this may have been the other.
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)

    def _lost(self, *, relaxed: bool) -> None:
        self._shelf.closed(relaxed=relaxed)
        self._wake_all()


@asynccontextmanager
async def _transaction(link: AsyncLink, target: str) -> AsyncIterator[None]:
    try:
        async with link.connection.transaction():
            yield
        link.doubt.resolve(target)
    except psycopg.Error as error:
        raise translate(error, target=target, broken=link.connection.broken) from error
