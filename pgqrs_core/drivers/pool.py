"""A pool of blocking connections. Its twin is :mod:`pgqrs_core.drivers.async_pool`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from pgqrs_core.drivers import session, sync
from pgqrs_core.drivers.faults import MOST_CONFLICTS, RETRY, STALE, translate
from pgqrs_core.drivers.locks import Attempts, Turns, blockers_of, who_blocks
from pgqrs_core.drivers.patience import Connection
from pgqrs_core.drivers.session import Shelf
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.drivers.sync import SyncLink
from pgqrs_core.effects import Effect, Execute, Op, Rows, Transact, Wait
from pgqrs_core.errors import PgqrsError, ServerError, TableLocked, TimedOut, Unavailable
from pgqrs_core.figures import PoolUsage

__all__ = ["Connections"]

T = TypeVar("T")


class Connections:
    """A small pool. It connects in the caller's thread, so that a failure is the caller's to see, with its reason.

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
        self._shelf: Shelf[Connection, psycopg.Cursor[Any]] = Shelf(limit=limit, keep=keep)
        # Taken for every statement, and by itself twice as quickly as through the condition.
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._waiting = 0
        self._closed = False
        self.target = target

    def run(self, effect: Execute, statements: Statements) -> Rows:
        """Run one statement, committed by itself."""
        conflicts, turns = 0, None
        while True:
            link = self.get(relaxed=effect.query.wants)
            try:
                rows = sync.perform(link, statements, effect, timeout=self._query_timeout, target=self.target)
            except TableLocked as error:
                turns = turns or Turns(effect, self._query_timeout)
                turns.after(error, self.target)
            except ServerError as error:
                if error.sqlstate in STALE:
                    link.connection.close()
                elif error.sqlstate not in RETRY:
                    raise
                conflicts += 1
                if conflicts > MOST_CONFLICTS:
                    raise
            else:
                link.doubt.resolve(self.target)
                return rows
            finally:
                self.put(link)

    def transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        """Run an operation in one transaction, again from the start after a conflict, or when a table was locked.

        Raises:
            TableLocked: a table stayed locked; the error says by whom.
        """
        conflicts, attempts = 0, Attempts()
        while True:
            try:
                with self._in_transaction() as link:
                    return self._drive_in(link, make(), statements, attempts.wait)
            except TableLocked as error:
                known = self._explain(error, statements)
                time.sleep(attempts.pause_after(known))
            except ServerError as error:
                conflicts += 1
                if conflicts > MOST_CONFLICTS or error.sqlstate not in RETRY:
                    raise

    def _drive_in(self, link: SyncLink, op: Op[T], statements: Statements, lock_wait: float) -> T:
        """Run an operation in the transaction of a connection; its own transactions become savepoints."""

        def answer(effect: Effect) -> Any:
            if isinstance(effect, Wait):
                raise AssertionError("an operation must not wait inside a transaction")
            if isinstance(effect, Transact):
                with link.connection.transaction():
                    return sync.drive(effect.make(), answer)
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
        with self._in_transaction() as link:
            # Whoever has it decides himself how long to wait.
            link.connection.execute(b"set local lock_timeout = 0")
            yield link.connection

    @contextmanager
    def _in_transaction(self) -> Iterator[SyncLink]:
        link = self.get(relaxed=False)
        try:
            with _transaction(link, self.target):
                if link.pooled:
                    link.connection.execute(session.local_settings(self._query_timeout))
                yield link
        finally:
            self.put(link)

    def open(self, *, relaxed: bool) -> SyncLink:
        """Open a connection outside the pool's count, for somebody who keeps it."""
        return sync.open_link(self._conninfo, target=self.target, query_timeout=self._query_timeout, relaxed=relaxed)

    def get(self, *, relaxed: bool | None) -> SyncLink:
        """Take a connection whose commits wait for the disk, with ``relaxed`` need not, or with None of either kind.

        When to wait for one and when to open one more is said at `Shelf`.

        Raises:
            Unavailable: the server cannot be reached.
            TimedOut: none became free in time.
        """
        began = time.monotonic()
        with self._lock:
            while True:
                if self._closed:
                    raise Unavailable("the client is closed", target=self.target)
                waited = time.monotonic() - began
                link = self._shelf.take(relaxed=relaxed)
                if link is not None:
                    if link.is_alive():
                        return link
                    self._shelf.closed(relaxed=link.relaxed)
                    link.connection.close()
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
                    self._waiting += 1
                    try:
                        self._free.wait(pause)
                    finally:
                        self._waiting -= 1
        try:
            if surplus is not None:
                surplus.connection.close()
            return self.open(relaxed=relaxed)
        except BaseException:
            self._lost(relaxed=relaxed)
            raise

    def put(self, link: SyncLink) -> None:
        """Give a connection back. One that is not idle is closed: whoever had it was interrupted."""
        usable = link.is_idle()
        with self._lock:
            if usable and not self._closed and self._shelf.give(link):
                if self._waiting:
                    self._free.notify_all()
                return
        link.connection.close()
        self._lost(relaxed=link.relaxed)

    def trim(self, keep: int) -> None:
        """Close idle durable connections beyond ``keep``: a burst opens as many as it needs, and leaves them behind."""
        with self._lock:
            spare = self._shelf.spare(keep)
        for link in spare:
            link.connection.close()

    def close(self) -> None:
        """Close all idle connections, and the others when they come back."""
        with self._lock:
            self._closed = True
            idle = self._shelf.empty()
            self._free.notify_all()
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

    def _lost(self, *, relaxed: bool) -> None:
        with self._lock:
            self._shelf.closed(relaxed=relaxed)
            self._free.notify_all()


@contextmanager
def _transaction(link: SyncLink, target: str) -> Iterator[None]:
    try:
        with link.connection.transaction():
            yield
        link.doubt.resolve(target)
    except psycopg.Error as error:
        raise translate(error, target=target, broken=link.connection.broken) from error
