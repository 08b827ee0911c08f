"""A pool of blocking connections. Its twin is :mod:`pgqrs_core.drivers.async_pool`.

An exception may strike a thread here between any two instructions (`PyThreadState_SetAsyncExc`, signal handlers). Locks are
therefore C's, taken by ``with``; a connection that was on its way to somebody or back is closed when its last reference
goes, and its place is free then; and who waits looks again by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from pgqrs_core.drivers import rights, sync
from pgqrs_core.drivers.acting import Owner
from pgqrs_core.drivers.faults import MOST_CONFLICTS, RETRY, STALE
from pgqrs_core.drivers.idle import CLOSER
from pgqrs_core.drivers.locks import Attempts, Turns, blockers_of, released, who_blocks
from pgqrs_core.drivers.missing import explained, is_missing, which_are_missing
from pgqrs_core.drivers.patience import Connection
from pgqrs_core.drivers.shelf import Shelf, Slot
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.drivers.sync import SyncLink
from pgqrs_core.effects import Effect, Execute, Op, Rows, Transact, Wait
from pgqrs_core.errors import NotPermitted, PgqrsError, ReadOnly, ServerError, TableLocked, Unavailable
from pgqrs_core.figures import PoolUsage
from pgqrs_core.installations import Installation

__all__ = ["Connections"]

T = TypeVar("T")


class Connections:
    """A small pool. It connects in the caller's thread, so that a failure is the caller's to see, with its reason.

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
        self._shelf: Shelf[Connection, psycopg.Cursor[Any]] = Shelf(limit=limit, keep=keep, longest=longest_idle)
        self._claims = claims
        #: Whether what is idle is looked after; the closer sets it.
        self.is_watched = False
        self._lock = threading.Lock()
        self._waiting: list[threading.Lock] = []
        self._closed = False
        self.target = target
        self._owner = Owner(schema)

    def run(self, effect: Execute, statements: Statements) -> Rows:
        """Run one statement, committed by itself."""
        try:
            return self._run(effect, statements)
        except NotPermitted as error:
            raise self.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise self.explained(error, statements) from error.__cause__
            raise

    def explained(self, error: ServerError, statements: Statements) -> PgqrsError:
        """Return what it means that a table is missing, or the error as it is where that cannot be asked for."""
        try:
            rows = self._run(which_are_missing(statements.schema), statements)
        except PgqrsError:
            return error
        return explained(error, rows, Installation(self.target, statements.schema))

    def named(self, error: NotPermitted, statements: Statements) -> NotPermitted:
        """Return the error with the name of the role to grant, or as it is where that cannot be asked for."""
        try:
            return rights.named(error, self._run(rights.who_may(statements.schema), statements))
        except PgqrsError:
            return error

    def _run(self, effect: Execute, statements: Statements) -> Rows:
        retries, turns = MOST_CONFLICTS, None
        while True:
            link = self.get(relaxed=effect.query.wants)
            try:
                rows = sync.perform(link, statements, effect, timeout=self._query_timeout, target=self.target)
                link.doubt.resolve(self.target)
            except TableLocked as error:
                self.put(link)
                turns = turns or Turns(effect, self._query_timeout)
                turns.after(error, self.target)
            except PgqrsError as error:
                again = self._may_try_again(link, error)
                self.put(link)
                if not (again and retries):
                    raise
                retries -= 1
            except BaseException:
                # Interrupted at some instruction: what state the session is in nobody knows.
                sync.salvage(link, effect)
                self._drop(link)
                raise
            else:
                self.put(link)
                return rows

    def transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        """Run an operation in one transaction, again from the start after a conflict, or when a table was locked.

        Raises:
            TableLocked: a table stayed locked; the error says by whom.
        """
        try:
            return self._transact(make, statements)
        except NotPermitted as error:
            raise self.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise self.explained(error, statements) from error.__cause__
            raise

    def _transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        retries, attempts = MOST_CONFLICTS, Attempts()
        while True:
            link = self.get(relaxed=False)
            try:
                with sync.transaction(link, timeout=self._query_timeout, target=self.target):
                    return self._drive_in(link, make(), statements, attempts.wait)
            except TableLocked as error:
                locked = released(error)
            except PgqrsError as error:
                # The commit may conflict, too.
                if not (self._may_try_again(link, error) and retries):
                    raise
                retries -= 1
                continue
            except BaseException:
                # A failure of the caller's, or an interrupt within our own code: they cannot be told apart.
                link.connection.close()
                raise
            finally:
                self.put(link)
            known = self._explain(locked, statements)
            time.sleep(attempts.pause_after(known))

    def _drive_in(self, link: SyncLink, op: Op[T], statements: Statements, lock_wait: float) -> T:
        """Run an operation in the transaction of a connection; its own transactions become savepoints."""

        def answer(effect: Effect) -> Any:
            if isinstance(effect, Wait):
                raise AssertionError("an operation must not wait inside a transaction")
            if isinstance(effect, Transact):
                with link.connection.transaction():
                    # Not `answer` itself: a function that refers to itself is a cycle, which would hold the connection, and
                    # its place if an exception strikes later, until the garbage collector comes by.
                    return self._drive_in(link, effect.make(), statements, lock_wait)
            return sync.perform(
                link, statements, effect, timeout=self._query_timeout, target=self.target, lock_wait=lock_wait
            )

        return sync.drive(op, answer)

    def _explain(self, error: TableLocked, statements: Statements) -> TableLocked:
        """Return the error with the sessions that are in the way, or as it is where they cannot be asked for."""
        try:
            rows = self.run(who_blocks(statements.schema, error.tables), statements)
        except PgqrsError:
            return error
        found = TableLocked(statements.schema, error.tables, blockers_of(rows))
        found.__cause__ = error.__cause__
        return found

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection for one transaction."""
        link = self.get(relaxed=False)
        try:
            with sync.transaction(link, timeout=self._query_timeout, target=self.target):
                # The caller decides how long to wait.
                link.connection.execute(b"set local lock_timeout = 0")
                yield link.connection
        except ReadOnly as error:
            self._may_try_again(link, error)
            raise
        finally:
            self.put(link)

    def open(self, *, relaxed: bool) -> SyncLink:
        """Open a connection outside the pool's count, for somebody who keeps it."""
        timeout = self._query_timeout
        return sync.open_link(
            self._conninfo, target=self.target, query_timeout=timeout, relaxed=relaxed, owner=self._owner
        )

    def get(self, *, relaxed: bool | None) -> SyncLink:
        """Take a connection whose commits wait for the disk, with ``relaxed`` need not, or with None of either kind.

        When to wait for one and when to open one more is said at `Shelf`.

        Raises:
            Unavailable: the server cannot be reached.
            TimedOut: none became free in time; the error says whether they are in use, or being opened.
        """
        began = 0.0
        while True:
            waited = time.monotonic() - began if began else 0.0
            surplus: SyncLink | None = None
            with self._lock:
                if self._closed:
                    raise Unavailable("the client is closed", target=self.target)
                link = self._shelf.take(relaxed=relaxed)
                if link is None:
                    reserved = self._shelf.reserve(relaxed=relaxed, waited=waited)
                    turn = threading.Lock()
                    late = reserved is None and self._shelf.is_too_late(waited, self._patience)
                    if reserved is None and not late:
                        turn.acquire()
                        self._waiting.append(turn)
            if link is not None:
                if link.is_alive():
                    return link
                self._drop(link)
            elif reserved is not None:
                slot, surplus = reserved
                return self._open_in(slot, surplus)
            elif late:
                raise self._shelf.none_in_time(self.target, waited)
            else:
                began = began or time.monotonic()
                pause = self._shelf.turn(relaxed=relaxed, waited=waited, patience=self._patience)
                turn.acquire(timeout=pause)

    def put(self, link: SyncLink) -> None:
        """Give a connection back. One that is not idle is closed: whoever had it was interrupted."""
        kept = False
        if link.is_idle():
            with self._lock:
                kept = not self._closed and self._shelf.give(link)
                if kept and self._waiting:
                    self._wake()
        if not kept:
            self._drop(link)
        elif not self.is_watched and self._shelf.closes_idle:
            CLOSER.watch(self)

    def close_idle(self) -> float | None:
        """Close what has been idle for too long; return in how many seconds to do so again, None if nothing is open."""
        with self._lock:
            expired = self._shelf.expired(claims=self._claims())
            pause = self._shelf.next_expiry()
            if expired:
                self._wake()
        for link in expired:
            link.connection.close()
        return pause

    def close(self) -> None:
        """Close all idle connections, and the others when they come back."""
        with self._lock:
            self._closed = True
            idle = self._shelf.empty()
            self._wake()
        for link in idle:
            link.connection.close()

    @property
    def total(self) -> int:
        """How many connections are open."""
        return self._shelf.total

    @property
    def usage(self) -> PoolUsage:
        """How many connections are open, how many of them idle, and how many there may be."""
        return self._shelf.usage

    def _open_in(self, slot: Slot, surplus: SyncLink | None) -> SyncLink:
        """Open a connection in a place of its own, after closing the one whose place it takes."""
        try:
            if surplus is not None:
                surplus.connection.close()
            link = self.open(relaxed=slot.relaxed)
        except BaseException:
            self._free(slot)
            raise
        link.opened_in = slot.opened()
        link.slot = slot
        return link

    def _may_try_again(self, link: SyncLink, error: PgqrsError) -> bool:
        """Tell whether a refused statement may succeed if it is run once more, and close what would refuse it again."""
        if isinstance(error, ReadOnly):
            # Others were opened when this one was, to the same server. What a new one is told holds.
            link.connection.close()
            with self._lock:
                idle = self._shelf.empty()
            for other in idle:
                other.connection.close()
            return not link.fresh
        if not isinstance(error, ServerError):
            return False
        # The tables may belong to another role by now: the next session asks.
        as_owner = isinstance(error, NotPermitted) and link.acting.role is not None
        if error.sqlstate in STALE or as_owner:
            link.connection.close()
            return not (as_owner and link.fresh)
        return error.sqlstate in RETRY

    def _drop(self, link: SyncLink) -> None:
        link.connection.close()
        self._free(link.slot)

    def _free(self, slot: Slot) -> None:
        with self._lock:
            self._shelf.free(slot)
            self._wake()

    def _wake(self) -> None:
        """Let those who wait look again: they may want another kind of connection. The caller holds the lock."""
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.release()
