"""One connection per process on which sleeping consumers are woken. The asyncio twin is `pgqrs_core.async_wakeups`.

What to do when is decided in :mod:`pgqrs_core.watch`; here it is done. The connection listens on a channel of its own, by
which producers wake one process of many, and on the schema's, for the numbers of adapters. It marks and polls; whatever
breaks it, consumers fall back to looking for themselves until it is back.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pgqrs_core.arrays import numbers
from pgqrs_core.conditions import Condition
from pgqrs_core.doorbell import channel_of_sleeper, notification
from pgqrs_core.drivers import sync
from pgqrs_core.effects import Effect, Execute, Op, Rows, Wait
from pgqrs_core.errors import PgqrsError, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.many import ask_all
from pgqrs_core.outages import OUTAGES
from pgqrs_core.pipe import Pipe
from pgqrs_core.sql import queries
from pgqrs_core.supervision import join, start_thread
from pgqrs_core.waiter import Waiter
from pgqrs_core.watch import MARK_SECONDS, POLL, Agenda, Watch

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from pgqrs_core.drivers.statements import Statements
    from pgqrs_core.drivers.sync import SyncLink
    from pgqrs_core.messages import Queue
    from pgqrs_core.sql import Query
    from pgqrs_core.subscriptions import Subscription

__all__ = ["SPARE", "Shared", "Wakeups"]

_log = get_logger("pgqrs.wakeups")

#: A connection that waits for notifications is idle, and meant to be.
SPARE = "set idle_session_timeout = 0"
LONGEST_PAUSE = 5.0
_UNDEFINED_TABLE = "42P01"


class Shared:
    """What both have in common: the state, and the statements that the agenda turns into."""

    def __init__(self, statements: Statements, channel: str, *, listen: bool, timeout: float, target: str) -> None:
        self._statements = statements
        self._channel = channel
        self._listen = listen
        self._timeout = timeout
        self._target = target
        #: The number of this process in the database; another one for each connection, which holds a lock on it.
        self._consumer = 0
        self._arrived: deque[bytes | str] = deque()
        #: Queues, by number, that could not be looked at the last time.
        self._unseen: set[int] = set()
        #: Why the server refused the statements of this connection the last time.
        self._said = ""
        self.watch = Watch()
        self.watch.listening = listen
        #: How to look at the numbers that are no queue of the core's, see `pgqrs_core.watch`; adapters add theirs.
        self.probes: dict[int, Query] = {}
        #: Numbers on which the connection holds a shared lock while it listens, for others to see that this process lives.
        self.lifelines: set[int] = set()

    def _mark(self, ids: list[int]) -> Execute:
        marked = set(self.watch.marks())
        params = {
            "queue_ids": numbers(ids),
            "consumer": self._consumer,
            "seconds": MARK_SECONDS,
            "fresh": not marked.issuperset(ids),
        }
        return Execute(queries["watch"], params)

    def _unmark(self, ids: list[int], *, polled: bool) -> Execute:
        params = {"queue_ids": numbers(ids), "consumer": self._consumer, "polled": polled}
        return Execute(queries["unwatch"], params)

    def _pass_on(self, number: int, count: int) -> Execute:
        return notification(number, count, but=self._consumer)

    def _listen_text(self) -> sql.Composed:
        """Return what makes the connection listen under a new number, and lock it, so that others see that it lives."""
        self._consumer = secrets.randbits(62)
        # Shared, for the connection before this one may still hold them.
        lifelines = [
            sql.SQL("; select pg_advisory_lock_shared({})").format(number) for number in sorted(self.lifelines)
        ]
        return sql.SQL("{}; listen {}; listen {}; select pg_advisory_lock({})").format(
            sql.SQL(SPARE),
            sql.Identifier(self._channel),
            sql.Identifier(channel_of_sleeper(self._consumer)),
            sql.Literal(self._consumer),
        ) + sql.Composed(lifelines)

    def _take(self, pgconn: PGconn) -> None:
        """Note the notifications that have arrived, those that came with the answer to a statement included."""
        pgconn.consume_input()
        while (notice := pgconn.notifies()) is not None:
            self._arrived.append(notice.extra)
        while self._arrived:
            # The payload is never trusted: anybody may notify.
            with contextlib.suppress(ValueError):
                self._heed(self._arrived.popleft())

    def _heed(self, payload: bytes | str) -> None:
        """Note what a notification says: the number of a queue, or that and a word."""
        number, *words = payload.split()
        if not words:
            self.watch.rang(int(number))
        elif words[0] in (b"poll", "poll"):
            self.watch.renew(int(number))

    def _note(self, notice: psycopg.Notify) -> None:
        """Keep a notification that psycopg took while it waited for an answer."""
        self._arrived.append(notice.payload)

    def _look(self, queues: list[Queue]) -> Op[tuple[list[tuple[Any, ...]], dict[int, ServerError]]]:
        # A number below one has no table: one whose adapter has removed its statement is not looked at.
        special = {queue.id: probe for queue in queues if (probe := self.probes.get(queue.id)) is not None}
        known = [queue for queue in queues if queue.id > 0 or queue.id in special]
        return ask_all(queries["probe"], {}, known, special=special)

    def _has_reason_to_claim(self, effect: Wait) -> bool:
        """Tell whether to claim rather than to wait: something may have happened since the consumer last waited."""
        return effect.drained and not (effect.marks and self.watch.is_quiet(effect.queue, effect.marks.generation))

    @staticmethod
    def _learn(effect: Wait, generations: list[int]) -> None:
        """Note up to which generation the consumer knows of news: it is about to claim."""
        if effect.marks is not None:
            effect.marks.generation = generations[0] if generations else None

    @staticmethod
    def _turn(left: float) -> float:
        """Return for how many seconds to wait at a stretch: whatever happens to the connection, nobody sleeps longer."""
        return min(left, 2 * POLL)

    def _apart(self, queues: list[Queue]) -> list[list[Queue]]:
        """Return what to look at together: a queue that is locked, or was deleted, must not hold up the others."""
        sound = [queue for queue in queues if queue.id not in self._unseen]
        return [*([sound] if sound else []), *([queue] for queue in queues if queue.id in self._unseen)]

    def _without(self, queues: list[Queue], rows: Rows, failed: Mapping[int, ServerError]) -> Rows:
        """Return the answers; consumers of queues that cannot be read get none, so they claim and learn why."""
        names = {queue.id: queue.name for queue in queues}
        for number, error in failed.items():
            # What passes, and a table that is missing, the claim tells.
            passes = error.retryable or error.sqlstate == _UNDEFINED_TABLE
            level = logging.DEBUG if passes or number in self._unseen else logging.WARNING
            text = "queue %r cannot be looked at, its consumers claim instead; those of others are not concerned: %s"
            _log.log(level, text, names.get(number) or number, error)
        self._unseen.difference_update(queue.id for queue in queues)
        self._unseen.update(failed)
        return rows

    def _cost(self, queues: list[Queue], began: float) -> float:
        """Return how long a look took; to wait for a lock is no work."""
        waited = any(queue.id in self._unseen for queue in queues)
        return 0.0 if waited else self.watch.clock() - began

    def _report(self, error: Exception) -> None:
        """Log that the connection broke, once until it is back."""
        if isinstance(error, ServerError):
            # It is there, and refuses what is asked: the tables have gone, for instance.
            if self._said != str(error):
                self._said = str(error)
                _log.warning("consumers cannot be woken, and poll: %s", error)
            return
        text = "the wake-up connection broke, consumers poll until it is back: %s"
        OUTAGES.noticed(self, self._target, _log, text, error)

    def _note_connected(self) -> None:
        OUTAGES.over(self, self._target)


class Wakeups(Shared):
    """Wakes the threads of this process. The connection and its thread start with the first wait."""

    def __init__(
        self,
        connect: Callable[[], SyncLink],
        statements: Statements,
        channel: str,
        *,
        listen: bool,
        timeout: float,
        target: str,
    ) -> None:
        super().__init__(statements, channel, listen=listen, timeout=timeout, target=target)
        self._connect = connect
        self._news = Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pipe: Pipe | None = None
        self.subscriptions: set[Subscription] = set()

    def wait(self, effect: Wait) -> float:
        """Do as the effect says; return the patience left."""
        with self._news:
            if self._has_reason_to_claim(effect):
                return effect.patience
        left, _, generations = self._outwait((effect.queue,), effect.patience)
        self._learn(effect, generations)
        return left

    def wait_any(
        self, queues: Sequence[Queue], patience: float, interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, list[Queue]]:
        """Wait for news of any of ``queues``; return the patience left, and where to look.

        ``interrupted`` is asked whenever `interrupt` is called.
        """
        return self._outwait(queues, patience, interrupted)[:2]

    def _outwait(
        self, queues: Sequence[Queue], patience: float, interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, list[Queue], list[int]]:
        began = self.watch.clock()
        with self._news:
            if self._closing:
                return 0.0, [], []
            self._start()
            waiter = Waiter(self.watch, queues)
            generations: list[int] = []
            try:
                if waiter.urgent:
                    self._nudge()
                deadline = began + patience
                while not (self._closing or waiter.is_over() or interrupted()):
                    left = deadline - self.watch.clock()
                    if left <= 0 or (not self._news.wait(self._turn(left)) and self.watch.is_stale()):
                        break
                return max(deadline - self.watch.clock(), 0.0), waiter.where(), generations
            finally:
                generations += waiter.leave()

    def interrupt(self) -> None:
        """Let those who wait ask again whether they should."""
        with self._news:
            self._tell()

    def serve(self, subscription: Subscription, *, urgent: bool) -> None:
        """Tell a subscription of news from now on; the caller holds ``lock``."""
        self.subscriptions.add(subscription)
        if not self._closing:
            self._start()
            if urgent:
                self._nudge()

    @property
    def lock(self) -> Condition:
        """What serialises access to the watch."""
        return self._news

    def _tell(self) -> None:
        self._news.notify_all()
        for subscription in self.subscriptions:
            subscription.tell()

    def close(self) -> None:
        """End all waits, and the thread and its connection."""
        with self._news:
            self._closing = True
            self._tell()
            if self._thread is not None:
                self._nudge()
        join(self._thread)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._pipe = Pipe()
            self._thread = start_thread(self._run, name="pgqrs-wakeups")

    def _nudge(self) -> None:
        # A thread that has ended needs none, and has closed its pipe.
        if self._pipe is not None:
            self._pipe.write()

    def _run(self) -> None:
        pause = 0.1
        try:
            while not self._closing:
                try:
                    link = self._connect()
                except PgqrsError as error:
                    pause = self._rest(error, pause)
                    continue
                try:
                    self._prepare(link)
                    self._note_connected()
                    pause = 0.1
                    while not self._closing:
                        self._step(link)
                    self._farewell(link)
                except (PgqrsError, psycopg.Error, OSError) as error:
                    if not self._closing:
                        pause = self._rest(error, pause)
                finally:
                    link.connection.close()
        finally:
            OUTAGES.left(self, self._target)
            with self._news:
                assert self._pipe is not None
                self._pipe.close()

    def _rest(self, error: Exception, pause: float) -> float:
        self._report(error)
        with self._news:
            self.watch.lost()
            self._tell()
            self._news.wait_for(lambda: self._closing, pause)
        return min(pause * 2, LONGEST_PAUSE)

    def _prepare(self, link: SyncLink) -> None:
        with self._news:
            self.watch.listening = self._listen and not link.pooled
        if self.watch.listening:
            link.connection.add_notify_handler(self._note)
            link.connection.execute(self._listen_text())

    def _step(self, link: SyncLink) -> None:
        with self._news:
            agenda: Agenda = self.watch.agenda()
            self._tell()
        if agenda.unmark:
            self._execute(link, self._unmark(agenda.unmark, polled=agenda.polled))
        for number, count in agenda.pass_on.items():
            woken = self._execute(link, self._pass_on(number, count))
            with self._news:
                self.watch.passed_on(number, len(woken))
        if agenda.mark:
            rows = self._execute(link, self._mark(agenda.mark))
            with self._news:
                self.watch.marked(rows)
                self._tell()
        if agenda.probe:
            for queues in self._apart(agenda.probe):
                began = self.watch.clock()
                rows = self._probe(link, queues)
                with self._news:
                    self.watch.probed(queues, rows, self._cost(queues, began))
                    self._tell()
        if not agenda.works:
            self._sleep(link, agenda.sleep)
        with self._news:
            self._take(link.connection.pgconn)
            self._tell()

    def _sleep(self, link: SyncLink, seconds: float) -> None:
        assert self._pipe is not None
        self._pipe.wait(seconds, link.connection.pgconn.socket)

    def _probe(self, link: SyncLink, queues: list[Queue]) -> Rows:
        rows, failed = sync.drive(self._look(queues), lambda effect: self._execute(link, effect))
        return self._without(queues, rows, failed)

    def _execute(self, link: SyncLink, effect: Effect) -> Rows:
        assert isinstance(effect, Execute)
        return sync.perform(link, self._statements, effect, timeout=self._timeout, target=self._target)

    def _farewell(self, link: SyncLink) -> None:
        marks = self.watch.marks()
        if marks:
            self._execute(link, self._unmark(marks, polled=True))
