"""One connection per process on which those who wait for results are woken.

What to do when is decided in :mod:`pgqrs_celery.interests`; here it is done, by one thread that starts with the first
wait and ends, with its connection, some seconds after the last one. Under gevent and eventlet it is a greenlet.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

import psycopg
from celery import states
from psycopg import sql

from pgqrs_celery import operations
from pgqrs_celery.interests import REGISTERED_SECONDS, Interests, Plan, Watcher
from pgqrs_core.conditions import Condition
from pgqrs_core.errors import PgqrsError
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.logs import get_logger
from pgqrs_core.outages import OUTAGES
from pgqrs_core.pipe import Pipe
from pgqrs_core.polling import LAST_READ, Poller
from pgqrs_core.supervision import join, start_thread
from pgqrs_core.wakeups import SPARE

if TYPE_CHECKING:
    from pgqrs_core.drivers.sync import SyncLink
    from pgqrs_core.effects import Rows
    from pgqrs_core.engine import Engine

__all__ = ["Listener"]

_log = get_logger("pgqrs.celery")

#: Seconds without anybody waiting after which the connection is closed.
LINGER: Final = 10.0
_LONGEST_PAUSE: Final = 5.0


def _is_final(row: Any) -> bool:
    return row[1] in states.READY_STATES


class Listener:
    """Wakes the threads of this process that wait for results. Thread-safe; survives a fork.

    Args:
        engine: whose database to listen in.
        linger: seconds after the last wait for which the connection is kept.
    """

    def __init__(self, engine: Engine, linger: float = LINGER) -> None:
        self._engine = engine
        self._linger = linger
        self._begin()
        begin_anew_in_children(self)

    def _begin(self) -> None:
        """Start with nothing."""
        self._news = Condition()
        self._interests = Interests()
        self._thread: threading.Thread | None = None
        self._link: SyncLink | None = None
        self._pipe: Pipe | None = None
        self._called_at = 0.0
        self._closing = False
        self._arrived: list[str] = []
        self._poller = Poller(self._poll, name="pgqrs-celery-poll", log=_log)
        #: Rises whenever something has changed for anybody who waits.
        self.generation = 0
        #: Another one when everything has been forgotten: what is still wanted must be watched again.
        self.epoch = secrets.randbits(62)

    def begin_anew(self) -> None:
        """In a forked child: forget the thread and the connection, which are the parent's."""
        self._begin()

    def watch(self, task_ids: Collection[str], watcher: Watcher) -> None:
        """Let ``watcher`` receive what becomes of these tasks."""
        with self._news:
            self._called_at = time.monotonic()
            self._interests.add(task_ids, watcher)
            self._start()
            self._nudge()
        self._poller.start()

    def unwatch(self, task_ids: Iterable[str], watcher: Watcher) -> None:
        """Take that back."""
        with self._news:
            self._interests.remove(task_ids, watcher)

    def wait(self, seen: int, timeout: float) -> int:
        """Wait until `generation` is past ``seen``, at most ``timeout`` seconds; return what it is now."""
        with self._news:
            self._called_at = time.monotonic()
            self._news.wait_for(lambda: self.generation != seen, timeout)
            return self.generation

    def read_once_more(self) -> None:
        """Read all that is waited for, on another connection: this one may hang. Waits `LAST_READ` seconds at most."""
        self._poller.poll(LAST_READ)

    def changed(self) -> None:
        """Wake all who wait: something has changed for one of them."""
        with self._news:
            self.generation += 1
            self._news.notify_all()

    def close(self) -> None:
        """End the threads and the connection. The next wait starts them again."""
        with self._news:
            self._closing = True
            self._nudge()
            thread = self._thread
            poller, self._poller = self._poller, Poller(self._poll, name="pgqrs-celery-poll", log=_log)
        join(thread)
        poller.close()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is there."""
        return self._link is not None

    def _start(self) -> None:
        if self._thread is None:
            self._pipe = Pipe()
            self._closing = False
            # A name of its own for each connection: what the one before takes back is not this one's.
            self._channel = f"pgqrs:celery:{secrets.token_hex(8)}"
            self._thread = start_thread(self._run, name="pgqrs-celery-results")

    def _nudge(self) -> None:
        # Without a thread there is nobody to nudge.
        if self._pipe is not None:
            self._pipe.write()

    def _run(self) -> None:
        pause = 0.1
        while not self._is_over():
            try:
                link = self._engine.connections.open(relaxed=True)
            except PgqrsError as error:
                pause = self._rest(error, pause)
                continue
            try:
                self._prepare(link)
                OUTAGES.over(self, self._engine.connections.target)
                while True:
                    if self._is_over(link):
                        return
                    self._step(link)
                    pause = 0.1
            except (PgqrsError, psycopg.Error, OSError) as error:
                pause = self._rest(error, pause)
            finally:
                self._link = None
                link.connection.close()

    def _is_over(self, link: SyncLink | None = None) -> bool:
        """Tell whether nobody waits any more, and leave in order if so."""
        with self._news:
            idle = time.monotonic() - self._called_at >= self._linger
            if not (self._closing or idle):
                return False
            registered, channel = self._interests.clear(), self._channel
            self.epoch = secrets.randbits(62)
            OUTAGES.left(self, self._engine.connections.target)
            assert self._pipe is not None
            self._pipe.close()
            self._pipe = self._thread = None
        if link is not None and registered and self._interests.listening:
            with contextlib.suppress(PgqrsError):
                self._engine.run_in(link.connection, operations.await_no_more, registered, channel)
        return True

    def _rest(self, error: Exception, pause: float) -> float:
        text = "the connection on which results are awaited broke, and is tried again: %s"
        OUTAGES.noticed(self, self._engine.connections.target, _log, text, error)
        assert self._pipe is not None
        # Somebody else who begins to wait is no reason to hurry.
        self._pipe.wait(pause)
        return min(pause * 2, _LONGEST_PAUSE)

    def _prepare(self, link: SyncLink) -> None:
        listening = self._engine.config.queue.enable_listen_notify and not link.pooled
        if listening:
            self._arrived.clear()
            link.connection.add_notify_handler(lambda notice: self._arrived.append(notice.payload))
            link.connection.execute(SPARE)
            link.connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
        self._link = link
        with self._news:
            self._interests.connected(listening=listening)

    def _step(self, link: SyncLink) -> None:
        news = self._take(link)
        with self._news:
            plan: Plan = self._interests.plan(time.monotonic(), news)
        run, connection = self._engine.run_in, link.connection
        if plan.unregister:
            run(connection, operations.await_no_more, plan.unregister, self._channel)
        if plan.register:
            run(connection, operations.await_results, plan.register, self._channel, REGISTERED_SECONDS)
        if not plan.read:
            self._sleep(link, min(plan.sleep, self._linger))
            return
        self._hand_on(run(connection, operations.read_results, plan.read))

    def _poll(self) -> bool:
        """Read all that is waited for beside this connection; tell whether anything is."""
        with self._news:
            wanted = self._interests.wanted
        if wanted:
            self._hand_on(self._engine.run(operations.read_results, wanted))
        return bool(wanted)

    def _hand_on(self, rows: Rows) -> None:
        with self._news:
            if self._interests.rows(rows, _is_final):
                self.generation += 1
                self._news.notify_all()

    def _sleep(self, link: SyncLink, seconds: float) -> None:
        assert self._pipe is not None
        self._pipe.wait(seconds, link.connection.pgconn.socket)

    def _take(self, link: SyncLink) -> set[str]:
        """Return the tasks of which notifications have arrived. Anybody may notify, so they are only hints."""
        if not self._interests.listening:
            return set()
        pgconn = link.connection.pgconn
        pgconn.consume_input()
        while (notice := pgconn.notifies()) is not None:
            self._arrived.append(notice.extra.decode("utf-8", "replace"))
        arrived, self._arrived = set(self._arrived), []
        return arrived
