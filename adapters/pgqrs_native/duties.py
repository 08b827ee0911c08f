"""What both workers do, as courses: claim, write outcomes, keep house. What they do it with is the workers' own."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal

from pgqrs_core.backoff import Backoff
from pgqrs_core.errors import PgqrsError, QueueNotFound, TimedOut, Unavailable
from pgqrs_core.interrupts import FAILURES, is_failure
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.operations.maintenance import elect, maintain, resign
from pgqrs_core.operations.settle import is_of_one_row, is_perhaps_of_one, is_refusal_that_passes, unlocked
from pgqrs_core.operations.traffic import incoming
from pgqrs_core.outages import OUTAGES
from pgqrs_core.this_process import this_process
from pgqrs_native.courses import Course
from pgqrs_native.load import Load
from pgqrs_native.roster import Roster, WorkerStopped
from pgqrs_native.routing import Outcome, Task, note_refused, sort_out
from pgqrs_native.settler import Portion, portions
from pgqrs_native.shared import Aside, MarksShelf, check_archives, marker
from pgqrs_native.traffic import ADAPTER

if TYPE_CHECKING:
    from pgqrs_native.async_client import AsyncClient
    from pgqrs_native.client import Client

__all__ = ["LATE", "TICK", "Duties"]

#: Messages claimed by one statement at most.
CLAIM: Final = 200
#: Seconds of idleness after which a worker looks whether it was stopped.
TICK: Final = 5.0
#: Seconds for which a queue is left alone after an error of its own.
PAUSE: Final = 0.5
#: Seconds to wait after an error before the first next try; the waits double up to a limit.
FIRST_CLAIM: Final = 0.1
FIRST_WRITE: Final = 0.05
LONGEST_WRITE: Final = 1.0
LATE: Final = "the worker was stopped before the handler finished"

_log = get_logger("pgqrs.worker")


def _limit(room: int, batch: int | None) -> int:
    """Return how many messages to claim: of a queue that is handled in batches, as many as fill some of them."""
    if batch is None:
        return min(room, CLAIM)
    limit = min(room, max(CLAIM, batch))
    return limit - limit % batch if limit > batch else limit


class Duties(Roster):
    """The courses of a worker, for one that can wait, guard its load, and begin tasks."""

    def __init__(self, client: Client | AsyncClient, **settings: Any) -> None:
        super().__init__(client.config, client.engine.plugins, **settings)
        self._engine: Any = client.engine
        self._keeper = client.keeper
        self._house = client.config.queue.cleanup_interval_seconds
        self._load = Load(self._concurrency + self._prefetch)
        self._marks = MarksShelf()
        self._has_run = False
        self._said: set[tuple[str, str]] = set()
        self._aside = Aside(_log, TICK)
        #: Queues that refuse outcomes for a reason that passes.
        self._refused = Backoff(FIRST_WRITE, LONGEST_WRITE)

    # What the workers do each in their own way

    @abstractmethod
    def _until(self, so: Callable[[], bool], seconds: float | None = None) -> Any:
        """Wait until it is so, at most ``seconds``; it can become so in `_changing` only."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[Load]:
        """Guard a change of the load; whoever waits for one looks again."""

    @abstractmethod
    def _begin(self, tasks: list[Task]) -> None:
        """Have handlers called, as soon as there are hands."""

    def _stops(self) -> bool:
        return self._load.stopping

    def _report(self, outcomes: Iterable[Outcome]) -> None:
        with self._changing() as load:
            load.report(outcomes)

    def _start_running(self) -> None:
        """Note that it runs.

        Raises:
            WorkerStopped: it was stopped, or runs already.
        """
        if self._load.stopping or self._has_run:
            raise WorkerStopped("it was stopped" if self._load.stopping else "it runs already")
        self._has_run = True
        self._load.expect_batches(self._routes.largest_batch)

    # Claiming

    def _opening(self) -> Course[list[str]]:
        """Look up the queues; return their names."""
        known = []
        for name in self._served():
            known.append((yield self._engine.queue(name)))  # noqa: PERF401 - no comprehension may yield
        check_archives(known, self._success)
        return [queue.name for queue in known]

    def _claiming(self, names: list[str]) -> Course[None]:
        """Claim from queues that may hold something, and wait for news of them when none does, until stopped."""
        pause, target = FIRST_CLAIM, self._engine.connections.target
        hungry = list(names)
        while not self._load.stopping:
            if not (yield from self._room()):
                continue
            try:
                hungry = yield from self._look_into(hungry)
                OUTAGES.over(self, target)
                pause = FIRST_CLAIM
                if not hungry:
                    hungry = yield from self._wait(names)
            except PgqrsError as error:
                if isinstance(error, Unavailable) and not isinstance(error, TimedOut):
                    OUTAGES.noticed(self, target, _log, "cannot claim until the server is back: %s", error)
                else:
                    _log.warning("cannot claim, next try in %.1f s: %s", pause, error)
                yield self._until(self._stops, pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, TICK)
                hungry = list(names)
        OUTAGES.left(self, target)

    def _room(self) -> Course[int]:
        """Wait for room; return for how many messages there is. After a tick, little is better than none."""
        load = self._load
        yield self._until(lambda: load.stopping or load.is_light, TICK)
        return load.room

    def _look_into(self, names: list[str]) -> Course[list[str]]:
        """Claim from queues; return those that may hold more. One that has gone is none of the others' business."""
        more = []
        for name in names:
            known = self._engine.known(name)
            if known is not None and self._keeper.is_failing(known):
                self._aside.rest(name, PAUSE)
                continue
            try:
                if (yield from self._claim_from(name)):
                    more.append(name)
                self._aside.works(name)
            except PgqrsError as error:
                if isinstance(error, Unavailable) and not isinstance(error, TimedOut):
                    raise
                self._aside.put(name, error, TICK if isinstance(error, QueueNotFound) else PAUSE)
        return more

    def _claim_from(self, name: str) -> Course[bool]:
        """Claim what there is room for, and begin it; tell whether the queue may hold more."""
        room = yield from self._room()
        if not room:
            return True
        engine = self._engine
        limit = _limit(room, self._routes.batch_of(name))
        queue = yield engine.queue(name)
        lease = queue.options.lease_seconds
        marks = self._marks.take(queue.id)
        try:
            found = yield engine.on(
                name,
                incoming,
                marks,
                limit=limit,
                lease=lease,
                patience=0.0,
                plugins=engine.plugins,
                adapter=ADAPTER,
                managed=True,
                on_unknown=self._on_unknown,
            )
        finally:
            self._marks.give(queue.id, marks)
        if not found:
            return False
        tasks, refused = sort_out(
            self._routes,
            queue,
            found,
            plugins=engine.plugins,
            claimed_at=time.time(),
            lease_seconds=lease,
            on_unknown=self._on_unknown,
        )
        with self._changing() as load:
            more = load.take(queue, found, limit)
        messages = [message for task in tasks for message in task.messages]
        self._keeper.hold(queue, [message.lease for message in messages], lease, marker(messages))
        self._begin(tasks)
        if refused:
            note_refused(refused, _log, self._said)
            self._report(refused)
        return more

    def _wait(self, names: list[str]) -> Course[list[str]]:
        """Wait for news of the queues; return those to look into."""
        engine = self._engine
        queues = []
        for name in self._aside.others(names):
            try:
                # What was last known will do: a claim looks anew, and an idle worker asks nothing.
                queues.append(engine.known(name) or (yield engine.queue(name)))
            except QueueNotFound as error:
                self._aside.put(name, error, TICK)
        _, where = yield engine.wakeups.wait_any(queues, self._aside.patience(TICK), self._stops)
        if not where and engine.wakeups.watch.is_stale():
            # The wake-up connection is silent: nobody will say where there is something.
            where = queues
        return [*(queue.name for queue in where), *self._aside.due()]

    # Settling

    def _settling(self) -> Course[None]:
        """Write outcomes as they come, until the last message is out of hand."""
        load = self._load
        while True:
            # A queue that refuses its outcomes for a while does not hold up those of others.
            yield self._until(lambda: self._is_writable() or load.is_done or load.abandoned, self._refused.pause())
            with self._changing():
                outcomes = load.take_pending(self._is_refused)
            if load.abandoned:
                # Without an outcome they come back when their leases end.
                left = [*outcomes, *load.take_pending()]
                self._keeper.drop(outcome.message.lease for outcome in left)
                return
            if outcomes:
                yield from self._write(outcomes)
            elif load.is_done:
                return

    def _is_refused(self, outcome: Outcome) -> bool:
        return self._refused.waits(outcome.message._queue.id)

    def _is_writable(self) -> bool:
        pending = self._load.pending
        return bool(pending) and not (self._refused and all(map(self._is_refused, pending)))

    def _write(self, outcomes: list[Outcome]) -> Course[None]:
        """Write outcomes. What could not be written yet is pending again; what never will be is let go of."""
        left = portions(outcomes)
        done = [outcome for outcome in outcomes if outcome.action == "none"]
        failed: list[Outcome] = []
        try:
            while left:
                portion = left[-1]
                written = yield from self._write_portion(portion)
                left.pop()
                if isinstance(written, list):
                    left[:0] = written
                    continue
                if written == "kept":
                    failed += portion.outcomes
                else:
                    done += portion.outcomes
        finally:
            # Also where the task is cancelled: of the portions that are left nothing is known to be written.
            failed += [outcome for portion in left for outcome in portion.outcomes]
            self._keeper.drop(outcome.message.lease for outcome in done)
            with self._changing() as load:
                load.settle(len(done), failed)

    def _write_portion(self, portion: Portion) -> Course[Literal["done", "kept"] | list[Portion]]:
        """Write outcomes of one kind and queue; tell whether that is done, to be tried again, or to be done in parts."""
        engine, queue = self._engine, portion.queue
        if self._refused.waits(queue.id):
            return "kept"
        try:
            yield engine.run(portion.write, engine.plugins, engine.doorbell)
        except BaseException as error:
            if not is_failure(error):
                raise
            count, text = len(portion.outcomes), error_text(error)
            if is_of_one_row(error) and (parts := (yield from self._apart(portion))):
                return parts
            if is_refusal_that_passes(error):
                if not self._refused.has_failed(queue.id):
                    _log.warning("%d outcomes of queue %r could not be written yet: %s", count, queue.name, text)
                self._refused.failed(queue.id)
                return "kept"
            if count > 1 and is_perhaps_of_one(error):
                return portion.halves()
            # Trying again would not help; without an outcome the message comes back when its lease ends.
            first = portion.outcomes[0].message
            what = "%d outcomes (%s) cannot be written, the first of %r: %s"
            _log.error(what, count, portion.action, first, text, exc_info=error, extra=first.log_fields)
        else:
            self._refused.succeeded(queue.id)
            portion.note_lost(_log)
        return "done"

    def _apart(self, portion: Portion) -> Course[list[Portion]]:
        """Return the outcomes of rows that others have locked, and the other ones; nothing if all or none are."""
        leases = [outcome.message.lease for outcome in portion.outcomes]
        try:
            free = yield self._engine.run(unlocked, portion.queue, leases)
        except PgqrsError:
            return []
        return portion.parts(free) if 0 < sum(free) < len(free) else []

    # Housekeeping

    def _keeping_house(self) -> Course[None]:
        """Do the housekeeping of the schema whenever this process is elected to, until stopped."""
        engine = self._engine
        me = secrets.randbits(62)
        elected = False
        while True:
            yield self._until(self._stops, self._house * random.uniform(0.8, 1.0))
            if self._load.stopping:
                break
            try:
                elected = yield engine.run(elect, me, 3 * self._house, this_process())
                if elected:
                    yield engine.run(maintain, engine.schema)
            except FAILURES as error:
                trace = None if isinstance(error, PgqrsError) else error
                if not OUTAGES.explains(error, engine.connections.target):
                    _log.warning("housekeeping is put off: %s", error_text(error), exc_info=trace)
        if elected:
            with contextlib.suppress(PgqrsError):
                yield engine.run(resign, me)
