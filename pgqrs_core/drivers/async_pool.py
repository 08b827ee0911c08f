"""A pool of asynchronous connections, for one event loop. Its twin is :mod:`pgqrs_core.drivers.pool`."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from pgqrs_core.drivers import aio, rights
from pgqrs_core.drivers.acting import Owner
from pgqrs_core.drivers.aio import AsyncLink
from pgqrs_core.drivers.commits import Errands
from pgqrs_core.drivers.faults import MOST_CONFLICTS, RETRY, STALE
from pgqrs_core.drivers.locks import Attempts, Turns, blockers_of, released, who_blocks
from pgqrs_core.drivers.missing import explained, is_missing, which_are_missing
from pgqrs_core.drivers.patience import AsyncConnection
from pgqrs_core.drivers.shelf import Shelf, Slot
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Effect, Execute, Op, Rows, Transact, Wait
from pgqrs_core.errors import NotPermitted, PgqrsError, ReadOnly, ServerError, TableLocked, Unavailable
from pgqrs_core.figures import PoolUsage
from pgqrs_core.installations import Installation

__all__ = ["Connections"]

T = TypeVar("T")


class Connections:
    """A small pool. It connects in the caller's task, so that a failure is the caller's to see, with its reason.

    Args:
        conninfo: a libpq connection string.
        target: what errors call the server; never holds a secret.
        schema: the schema of our tables, whose owner sessions act as.
        limit: the most connections open at once.
        keep: how many stay open when idle.
        patience: seconds to wait for a free one at the limit.
        query_timeout: seconds after which the server cancels a statement; 0 for never.
        longest_idle: seconds after which an idle connection is closed; 0 for never.
        claims: tells whether this process waits for messages: then it keeps the connection on which it claims.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        target: str,
        schema: str,
        limit: int,
        keep: int,
        patience: float,
        query_timeout: float,
        longest_idle: float = 0.0,
        claims: Callable[[], bool] = lambda: False,
    ) -> None:
        self._conninfo = conninfo
        self._patience = patience
        self._query_timeout = query_timeout
        self._shelf: Shelf[AsyncConnection, psycopg.AsyncCursor[Any]] = Shelf(
            limit=limit, keep=keep, longest=longest_idle
        )
        self._claims = claims
        self._timer: asyncio.TimerHandle | None = None
        self._errands = Errands()
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False
        self.target = target
        self._owner = Owner(schema)

    async def run(self, effect: Execute, statements: Statements) -> Rows:
        """Run one statement, committed by itself."""
        try:
            return await self._run(effect, statements)
        except NotPermitted as error:
            raise await self.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise await self.explained(error, statements) from error.__cause__
            raise

    async def explained(self, error: ServerError, statements: Statements) -> PgqrsError:
        """Return what it means that a table is missing, or the error as it is where that cannot be asked for."""
        try:
            rows = await self._run(which_are_missing(statements.schema), statements)
        except PgqrsError:
            return error
        return explained(error, rows, Installation(self.target, statements.schema))

    async def named(self, error: NotPermitted, statements: Statements) -> NotPermitted:
        """Return the error with the name of the role to grant, or as it is where that cannot be asked for."""
        try:
            return rights.named(error, await self._run(rights.who_may(statements.schema), statements))
        except PgqrsError:
            return error

    async def _run(self, effect: Execute, statements: Statements) -> Rows:
        retries, turns = MOST_CONFLICTS, None
        while True:
            link = await self.get(relaxed=effect.query.wants)
            try:
                rows = await aio.perform(link, statements, effect, timeout=self._query_timeout, target=self.target)
                link.doubt.resolve(self.target)
            except TableLocked as error:
                await self.put(link)
                turns = turns or Turns(effect, self._query_timeout)
                turns.after(error, self.target)
            except PgqrsError as error:
                again = await self._may_try_again(link, error)
                await self.put(link)
                if not (again and retries):
                    raise
                retries -= 1
            except BaseException:
                # Cancelled at some await: what state the session is in nobody knows.
                await self._drop(link)
                raise
            else:
                await self.put(link)
                return rows

    async def transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        """Run an operation in one transaction, again from the start after a conflict, or when a table was locked.

        Raises:
            TableLocked: a table stayed locked; the error says by whom.
        """
        try:
            return await self._transact(make, statements)
        except NotPermitted as error:
            raise await self.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise await self.explained(error, statements) from error.__cause__
            raise

    async def _transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        retries, attempts = MOST_CONFLICTS, Attempts()
        while True:
            link = await self.get(relaxed=False)
            try:
                async with aio.transaction(link, timeout=self._query_timeout, target=self.target):
                    return await self._drive_in(link, make(), statements, attempts.wait)
            except TableLocked as error:
                locked = released(error)
            except PgqrsError as error:
                # The commit may conflict, too.
                if not (await self._may_try_again(link, error) and retries):
                    raise
                retries -= 1
                continue
            except BaseException:
                # A failure of the caller's, or an interrupt within our own code: they cannot be told apart.
                await link.connection.close()
                raise
            finally:
                await self.put(link)
            known = await self._explain(locked, statements)
            await asyncio.sleep(attempts.pause_after(known))

    async def _drive_in(self, link: AsyncLink, op: Op[T], statements: Statements, lock_wait: float) -> T:
        """Run an operation in the transaction of a connection; its own transactions become savepoints."""

        async def answer(effect: Effect) -> Any:
            if isinstance(effect, Wait):
                raise AssertionError("an operation must not wait inside a transaction")
            if isinstance(effect, Transact):
                async with link.connection.transaction():
                    # Not `answer` itself, as in the blocking pool.
                    return await self._drive_in(link, effect.make(), statements, lock_wait)
            return await aio.perform(
                link, statements, effect, timeout=self._query_timeout, target=self.target, lock_wait=lock_wait
            )

        return await aio.drive(op, answer)

    async def _explain(self, error: TableLocked, statements: Statements) -> TableLocked:
        """Return the error with the sessions that are in the way, or as it is where they cannot be asked for."""
        try:
            rows = await self.run(who_blocks(statements.schema, error.tables), statements)
        except PgqrsError:
            return error
        found = TableLocked(statements.schema, error.tables, blockers_of(rows))
        found.__cause__ = error.__cause__
        return found

    async def open(self, *, relaxed: bool) -> AsyncLink:
        """Open a connection outside the pool's count, for somebody who keeps it."""
        return await aio.open_link(
            self._conninfo, target=self.target, query_timeout=self._query_timeout, relaxed=relaxed, owner=self._owner
        )

    async def get(self, *, relaxed: bool | None) -> AsyncLink:
        """Take a connection whose commits wait for the disk, with ``relaxed`` need not, or with None of either kind.

        When to wait for one and when to open one more is said at `Shelf`.

        Raises:
            Unavailable: the server cannot be reached.
            TimedOut: none became free in time; the error says whether they are in use, or being opened.
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
                await self._drop(link)
                continue
            reserved = self._shelf.reserve(relaxed=relaxed, waited=waited)
            if reserved is not None:
                return await self._open_in(*reserved)
            if self._shelf.is_too_late(waited, self._patience):
                raise self._shelf.none_in_time(self.target, waited)
            await self._wait_for_one(self._shelf.turn(relaxed=relaxed, waited=waited, patience=self._patience))

    async def put(self, link: AsyncLink) -> None:
        """Give a connection back. One that is not idle is closed: whoever had it was interrupted."""
        if link.is_idle() and not self._closed and self._shelf.give(link):
            self._wake_all()
            if self._timer is None and self._shelf.closes_idle:
                self._set_timer()
            return
        await self._drop(link)

    def _set_timer(self) -> None:
        pause = self._shelf.next_expiry()
        if pause is None:
            self._timer = None
            return
        close = weakref.WeakMethod(self._close_idle)
        # By a weak reference: a pool that is dropped is not to live until then.
        self._timer = asyncio.get_running_loop().call_later(pause, lambda: (method := close()) and method())

    def _close_idle(self) -> None:
        """Close what has been idle for too long, and come again while something is idle."""
        expired = self._shelf.expired(claims=self._claims())
        if expired:
            self._wake_all()
            self._errands.start(_close_all(expired))
        self._set_timer()

    async def close(self) -> None:
        """Close all idle connections, and the others when they come back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
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

    async def _open_in(self, slot: Slot, surplus: AsyncLink | None) -> AsyncLink:
        """Open a connection in a place of its own, after closing the one whose place it takes."""
        try:
            if surplus is not None:
                await surplus.connection.close()
            link = await self.open(relaxed=slot.relaxed)
        except BaseException:
            self._free(slot)
            raise
        link.opened_in = slot.opened()
        link.slot = slot
        return link

    async def _may_try_again(self, link: AsyncLink, error: PgqrsError) -> bool:
        """Tell whether a refused statement may succeed if it is run once more, and close what would refuse it again."""
        if isinstance(error, ReadOnly):
            # Others were opened when this one was, to the same server. What a new one is told holds.
            for other in (link, *self._shelf.empty()):
                await other.connection.close()
            return not link.fresh
        if not isinstance(error, ServerError):
            return False
        # The tables may belong to another role by now: the next session asks.
        as_owner = isinstance(error, NotPermitted) and link.acting.role is not None
        if error.sqlstate in STALE or as_owner:
            await link.connection.close()
            return not (as_owner and link.fresh)
        return error.sqlstate in RETRY

    async def _drop(self, link: AsyncLink) -> None:
        await link.connection.close()
        self._free(link.slot)

    def _free(self, slot: Slot) -> None:
        self._shelf.free(slot)
        self._wake_all()


async def _close_all(links: list[AsyncLink]) -> None:
    for link in links:
        await link.connection.close()
