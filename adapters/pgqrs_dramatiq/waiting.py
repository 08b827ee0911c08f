"""How a thread waits for a row that another process will write: a result, or an event of a barrier.

Whoever waits is noted in the database, so that the writer sends a NOTIFY in its own transaction, to the one connection on
which this process listens. One thread then reads for all who wait, and wakes each by a lock of C, which no exception of
Dramatiq's can leave half held. A notification that is lost, or a connection that hangs, is made up for by polls on another
connection, every few seconds and before a wait ends.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgqrs_core.errors import PgqrsError
from pgqrs_core.interrupts import FAILURES
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue, QueueOptions
from pgqrs_core.outages import OUTAGES
from pgqrs_core.polling import LAST_READ, Poller
from pgqrs_core.sql import Query
from pgqrs_core.subscriptions import Subscription
from pgqrs_core.supervision import start_timer
from pgqrs_dramatiq import operations
from pgqrs_dramatiq.sql import queries

if TYPE_CHECKING:
    from pgqrs_dramatiq.database import Database

__all__ = ["EVENTS", "RESULTS", "Kind", "wait_for"]

_log = get_logger("pgqrs.dramatiq")

#: For how many seconds a process is noted as waiting, and after how many it says so again.
NOTED: Final = 120.0
RENEW: Final = 60.0
#: Seconds for which a thread waits at a stretch: only in between can Dramatiq end its actor.
_TURN: Final = 0.25
#: Seconds until the next try when the server is away.
_RETRY: Final = 0.5

_CLOSED: Final = object()


class Kind(NamedTuple):
    """What is waited for: how it is read, and how it is looked for."""

    name: str
    read: Query
    probe: Query


RESULTS: Final = Kind("results", queries["read_results"], queries["results_probe"])
EVENTS: Final = Kind("events", queries["read_events"], queries["events_probe"])


def wait_for(database: Database, kind: Kind, key: str, timeout: float | None) -> Any:
    """Return the value of a key as soon as there is one; None if there is none after ``timeout`` seconds.

    Raises:
        SchemaError: the tables are missing or do not fit.
        Unavailable: the server cannot be reached at the beginning. If it goes away later, the wait goes on.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        value = _awaiter(database, kind).wait(key, deadline)
        if value is not _CLOSED:
            return value


def _awaiter(database: Database, kind: Kind) -> Awaiter:
    def make() -> Awaiter:
        database.prepare(own_tables=True)
        return Awaiter(database, kind)

    return database.call(lambda: database.belonging(kind.name, make))


class _Latch:
    __slots__ = ("_done", "value")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self.value: Any = None

    def open(self, value: Any) -> None:
        self.value = value
        self._done.release()

    def wait(self, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            if self._done.acquire(timeout=min(left, _TURN)):
                return True
        return False


class Awaiter:
    """All threads of this process that wait for one kind of row."""

    def __init__(self, database: Database, kind: Kind) -> None:
        self._engine = database.engine
        self._database = database
        self._deputies = database.deputies
        self._kind = kind
        # A number of its own among those that may ring, below those of others.
        self._listener = -(secrets.randbits(30) + 2**30 - 1)
        self._number = Queue(self._listener, "", "", QueueOptions())
        wakeups = self._engine.wakeups
        wakeups.probes[self._listener] = kind.probe
        self._subscription = Subscription(wakeups, lambda: self._deputies.submit(self._look))
        self._poller = Poller(self._poll, name="pgqrs-dramatiq-poll", log=_log)
        self._lock = threading.Lock()
        self._waiting: dict[str, set[_Latch]] = {}
        self._closed = False

    def wait(self, key: str, deadline: float | None) -> Any:
        """Return the value of a key, None if there is none in time, or `_CLOSED`."""
        while True:
            latch = _Latch()
            until = time.monotonic() + RENEW
            if self._database.call(lambda latch=latch: self._begin(key, latch)):  # type: ignore[misc]
                return latch.value
            try:
                if latch.wait(until if deadline is None else min(deadline, until)):
                    return latch.value
                if deadline is not None and time.monotonic() >= deadline:
                    # It may be there although nothing was heard of it.
                    self._database.call(lambda: self._poller.poll(LAST_READ))
                    return latch.value
            finally:
                self._deputies.submit(lambda latch=latch: self._end(key, latch))  # type: ignore[misc]

    def close(self) -> None:
        """Wake all who wait, without a value; they begin anew."""
        with self._lock:
            self._closed = True
            latches = [latch for some in self._waiting.values() for latch in some]
            self._waiting = {}
            self._subscription.close()
        for latch in latches:
            latch.open(_CLOSED)
        self._poller.close()

    def _begin(self, key: str, latch: _Latch) -> bool:
        """Wait from now on, unless the value is there already."""
        with self._lock:
            if self._closed:
                latch.value = _CLOSED
                return True
            self._waiting.setdefault(key, set()).add(latch)
        try:
            rows = self._engine.run(operations.await_keys, [key], self._listener, NOTED, self._kind.read)
        except PgqrsError:
            self._end(key, latch)
            raise
        self._deliver(rows)
        with self._lock:
            waits = latch in self._waiting.get(key, ())
            if waits:
                self._subscription.rest([self._number])
        if waits:
            self._poller.start()
        else:
            # Whoever handed it out, here or elsewhere, may have done so before the note was made.
            self._deputies.submit(lambda: self._forget([key]))
        return not waits

    def _end(self, key: str, latch: _Latch) -> None:
        """Wait no more; the last one for a key takes the note back."""
        with self._lock:
            left = self._waiting.get(key)
            if left is None:
                return
            left.discard(latch)
            if left:
                return
            del self._waiting[key]
        self._forget([key])

    def _look(self) -> None:
        """Read for all who wait."""
        with self._lock:
            self._subscription.rise()
            keys = list(self._waiting)
        if not keys:
            return
        try:
            # Notes are not safe from a crash of the server, so they are looked after, too.
            self._deliver(self._engine.run(operations.await_keys, keys, self._listener, NOTED, self._kind.read))
        except FAILURES as error:
            text = "%s cannot be read, and are tried again: %s"
            OUTAGES.warn(self._engine.connections.target, error, _log, text, self._kind.name)
            start_timer(_RETRY, lambda: self._deputies.submit(self._look), name="pgqrs-dramatiq-look")
            return
        # Some may have been handed out meanwhile, and their notes taken back before these were made.
        self._forget(keys)
        with self._lock:
            if self._waiting and not self._closed:
                self._subscription.rest([self._number])

    def _poll(self) -> bool:
        """Read for all who wait, beside the connection that listens; tell whether any do."""
        with self._lock:
            keys = list(self._waiting)
        if keys:
            self._deliver(self._engine.run(operations.read_keys, keys, self._kind.read))
            self._forget(keys)
        return bool(keys)

    def _deliver(self, rows: Any) -> None:
        """Wake those who wait for these rows."""
        with self._lock:
            found = [(latch, value) for key, value in rows for latch in self._waiting.pop(key, ())]
        for latch, value in found:
            latch.open(value)

    def _forget(self, keys: list[str]) -> None:
        """Take the notes back on keys that nobody waits for any more."""
        with self._lock:
            gone = [key for key in keys if key not in self._waiting]
        if not gone:
            return
        try:
            self._engine.run(operations.await_no_more, gone, self._listener)
        except PgqrsError as error:
            _log.debug("a note of who waits stays until it is out of date: %s", error)
