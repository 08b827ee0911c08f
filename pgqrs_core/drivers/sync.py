"""The blocking driver: performs effects on psycopg connections.

Its twin is :mod:`pgqrs_core.drivers.aio`; whatever decides anything belongs to neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgqrs_core.drivers import session
from pgqrs_core.drivers.borrowed import Loan
from pgqrs_core.drivers.faults import RETRY, STALE, cannot_connect, refused, translate
from pgqrs_core.drivers.patience import Connection, limit_of
from pgqrs_core.drivers.prepared import Prepared, is_usable, wire
from pgqrs_core.drivers.session import Link, Shelf
from pgqrs_core.drivers.statements import NO_ROWS, Statements, has_rows, prepare_adapters
from pgqrs_core.effects import Effect, Execute, Op, Rows, Wait
from pgqrs_core.errors import PgqrsError, ServerError, TimedOut, Unavailable
from pgqrs_core.figures import PoolUsage

__all__ = ["Connections", "drive", "open_link", "perform", "perform_borrowed"]

T = TypeVar("T")
SyncLink = Link["Connection", "psycopg.Cursor[Any]"]


def drive(op: Op[T], perform: Callable[[Effect], Any]) -> T:
    """Run an operation to its end, answering each effect by ``perform``."""
    reply: Any = None
    try:
        effect = next(op)
        while True:
            try:
                reply = perform(effect)
            except PgqrsError as error:
                effect = op.throw(error)
            else:
                effect = op.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        op.close()


def perform(link: SyncLink, statements: Statements, effect: Execute, *, timeout: float, target: str) -> Rows:
    """Run one statement on a connection of ours."""
    connection = link.connection
    query = effect.query
    statement = statements.render(effect)
    try:
        if link.prepared is not None and (effect.params or effect.queues) and not query.flags & session.UNUSUAL:
            encoded = wire([effect.params[name] for name in statement.names])
            if encoded is not None:
                return link.prepared.execute(statement, *encoded)
        text = statement.named
        unusual = query.flags & session.UNUSUAL
        if "patient" in unusual:
            connection.limit = None
        if link.pooled:
            return _perform_pooled(connection, text, effect, timeout)
        if unusual:
            with _special(connection, unusual, timeout):
                cursor = connection.execute(text, effect.params or None)
        elif effect.params or effect.queues:
            cursor = link.cursor.execute(text, effect.params or None, prepare=link.prepared is None, binary=True)
        else:
            cursor = connection.execute(text)
        return cursor.fetchall() if has_rows(cursor) else NO_ROWS
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, query, statements, connection, target=target) from error
    finally:
        connection.limit = limit_of(timeout)


def _perform_pooled(connection: psycopg.Connection[Any], text: bytes, effect: Execute, timeout: float) -> Rows:
    """Run one statement behind a transaction pooler, where a session is lent by the transaction."""
    query = effect.query
    settings = session.local_settings(timeout, relaxed=query.relaxed, flags=query.flags)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        if query.flags & session.UNUSUAL:
            connection.execute(settings)
        cursor = connection.execute(text, effect.params or None)
    elif "alone" in query.flags:
        cursor = connection.execute(text)
    else:
        # Not in a pipeline: PgBouncer 1.18 at times keeps the server's connection after one.
        with connection.transaction():
            connection.execute(settings)
            cursor = connection.execute(text, effect.params or None, binary=True)
    return cursor.fetchall() if has_rows(cursor) else NO_ROWS


@contextmanager
def _special(connection: Connection, flags: frozenset[str], timeout: float) -> Iterator[None]:
    """Lift what would hinder a long or an unusual statement, and put it back."""
    wanted = {"patient": "statement_timeout = 0", "bitmap": "enable_bitmapscan = on"}
    before = {"patient": f"statement_timeout = {round(timeout * 1000)}", "bitmap": "enable_bitmapscan = off"}
    for flag in flags & wanted.keys():
        connection.execute(f"set {wanted[flag]}".encode())
    try:
        yield
    finally:
        if not connection.closed and connection.pgconn.transaction_status != TransactionStatus.INERROR:
            for flag in flags & before.keys():
                connection.execute(f"set {before[flag]}".encode())


def perform_borrowed(loan: Loan[psycopg.Connection[Any]], statements: Statements, effect: Effect, target: str) -> Rows:
    """Run one statement on the caller's connection, with cursor, rows and adapters of our own."""
    if isinstance(effect, Wait):
        raise AssertionError("an operation must not wait inside the caller's transaction")
    connection = loan.connection
    try:
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        prepare_adapters(cursor)
        cursor.execute(statements.render(effect).named, effect.params or None, binary=bool(effect.params))
        return loan.note(effect, cursor.fetchall() if has_rows(cursor) else NO_ROWS)
    except (psycopg.Error, UnicodeEncodeError) as error:
        raise refused(error, effect.query, statements, connection, target=target) from error


def open_link(conninfo: str, *, target: str, query_timeout: float, relaxed: bool) -> SyncLink:
    """Connect and set the session up."""
    try:
        connection = Connection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise cannot_connect(error, target=target) from error
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
            connection.execute(session.session_settings(query_timeout).encode())
            if relaxed:
                connection.execute(b"set synchronous_commit = off")
    except psycopg.Error as error:
        connection.close()
        raise cannot_connect(error, target=target) from error
    prepared = Prepared(connection) if not pooled and is_usable() else None
    if prepared is not None:
        # What psycopg prepares it deallocates after a rollback or a DROP, and ours with it.
        connection.prepare_threshold = None
    return Link(connection, connection.cursor(), pooled=pooled, relaxed=relaxed, prepared=prepared)


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
        self._free = threading.Condition()
        self._closed = False
        self.target = target

    def run(self, effect: Execute, statements: Statements) -> Rows:
        """Run one statement, committed by itself."""
        for retries in (2, 1, 0):
            link = self.get(relaxed=effect.query.wants)
            try:
                rows = perform(link, statements, effect, timeout=self._query_timeout, target=self.target)
            except ServerError as error:
                if error.sqlstate in STALE:
                    link.connection.close()
                elif error.sqlstate not in RETRY:
                    raise
                if not retries:
                    raise
            else:
                link.doubt.resolve(self.target)
                return rows
            finally:
                self.put(link)
        raise AssertionError("unreachable")

    def transact(self, make: Callable[[], Op[T]], statements: Statements) -> T:
        """Run an operation in one transaction, again from the start after a conflict."""
        for retries in (2, 1, 0):
            try:
                with self._in_transaction() as link:

                    def answer(effect: Effect, link: SyncLink = link) -> Rows:
                        if isinstance(effect, Wait):
                            raise AssertionError("an operation must not wait inside a transaction")
                        return perform(link, statements, effect, timeout=self._query_timeout, target=self.target)

                    return drive(make(), answer)
            except ServerError as error:
                if not retries or error.sqlstate not in RETRY:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection for one transaction."""
        with self._in_transaction() as link:
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
        return open_link(self._conninfo, target=self.target, query_timeout=self._query_timeout, relaxed=relaxed)

    def get(self, *, relaxed: bool | None) -> SyncLink:
        """Take a connection whose commits wait for the disk, with ``relaxed`` need not, or with None of either kind.

        When to wait for one and when to open one more is said at `Shelf`.

        Raises:
            Unavailable: the server cannot be reached.
            TimedOut: none became free in time.
        """
        began = time.monotonic()
        with self._free:
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
                    self._free.wait(pause)
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
        with self._free:
            if usable and not self._closed and self._shelf.give(link):
                self._free.notify_all()
                return
        link.connection.close()
        self._lost(relaxed=link.relaxed)

    def trim(self, keep: int) -> None:
        """Close idle durable connections beyond ``keep``: a burst opens as many as it needs, and leaves them behind."""
        with self._free:
            spare = self._shelf.spare(keep)
        for link in spare:
            link.connection.close()

    def close(self) -> None:
        """Close all idle connections, and the others when they come back."""
        with self._free:
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
        with self._free:
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
