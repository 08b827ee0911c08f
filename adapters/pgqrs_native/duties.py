"""What both workers do, as courses: claim, write outcomes, keep house. What they do it with is the workers' own."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.errors import PgqrsError, QueueNotFound, Unavailable
from pgqrs_core.operations.maintenance import elect, maintain, resign
from pgqrs_core.operations.traffic import incoming
from pgqrs_core.this_process import this_process
from pgqrs_native.courses import Course
from pgqrs_native.load import Load
from pgqrs_native.roster import Roster
from pgqrs_native.routing import Outcome, Task, note_refused, sort_out
from pgqrs_native.settler import portions
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

_log = logging.getLogger("pgqrs.worker")


class Duties(Roster):
    """The courses of a worker, for one that can wait, guard its load, and begin tasks."""

    def __init__(self, client: Client | AsyncClient, **settings: Any) -> None:
        super().__init__(client.config, client.engine.plugins, **settings)
        self._engine: Any = client.engine
        self._keeper = client.keeper
        self._house = client.config.queue.cleanup_interval_seconds
        self._load = Load(self._concurrency + self._prefetch)
        self._marks = MarksShelf()
        self._aside = Aside(_log)

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
        pause = FIRST_CLAIM
        hungry = list(names)
        while not self._load.stopping:
            if not (yield from self._room()):
                continue
            try:
                hungry = yield from self._look_into(hungry)
                pause = FIRST_CLAIM
                if not hungry:
                    hungry = yield from self._wait(names)
            except PgqrsError as error:
                _log.warning("cannot claim, next try in %.1f s: %s", pause, error)
                yield self._until(self._stops, pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, TICK)
                hungry = list(names)

    def _room(self) -> Course[int]:
        """Wait for room; return for how many messages there is. After a tick, little is better than none."""
        load = self._load
        yield self._until(lambda: load.stopping or load.is_light, TICK)
        return load.room

    def _look_into(self, names: list[str]) -> Course[list[str]]:
        """Claim from queues; return those that may hold more. One that has gone is none of the others' business."""
        more = []
        for name in names:
            try:
                if (yield from self._claim_from(name)):
                    more.append(name)
            except Unavailable:
                raise
            except PgqrsError as error:
                self._aside.put(name, error, TICK if isinstance(error, QueueNotFound) else PAUSE)
        return more

    def _claim_from(self, name: str) -> Course[bool]:
        """Claim what there is room for, and begin it; tell whether the queue may hold more."""
        room = yield from self._room()
        if not room:
            return True
        engine = self._engine
        limit = min(room, CLAIM)
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
            )
        finally:
            self._marks.give(queue.id, marks)
        if not found:
            return False
        tasks, refused = sort_out(
            self._routes, queue, found, plugins=engine.plugins, claimed_at=time.time(), lease_seconds=lease
        )
        with self._changing() as load:
            more = load.take(queue, found, limit)
        messages = [message for task in tasks for message in task.messages]
        self._keeper.hold(queue, [message.lease for message in messages], lease, marker(messages))
        self._begin(tasks)
        if refused:
            note_refused(refused, _log)
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
        pause = FIRST_WRITE
        load = self._load
        while True:
            yield self._until(lambda: bool(load.pending) or load.is_done)
            with self._changing():
                outcomes = load.take_pending()
            if not outcomes:
                return
            failed = yield from self._write(outcomes)
            if not failed:
                pause = FIRST_WRITE
            elif load.abandoned:
                # Without an outcome they come back when their leases end.
                self._keeper.drop(outcome.message.lease for outcome in failed)
                return
            else:
                yield self._until(lambda: load.abandoned, pause)
                pause = min(pause * 2, LONGEST_WRITE)

    def _write(self, outcomes: list[Outcome]) -> Course[list[Outcome]]:
        """Write outcomes; return those that could not be written yet, which are pending again."""
        engine = self._engine
        done = sum(outcome.action == "none" for outcome in outcomes)
        self._keeper.drop(outcome.message.lease for outcome in outcomes if outcome.action == "none")
        failed: list[Outcome] = []
        for portion in portions(outcomes):
            try:
                yield engine.run(portion.write, engine.plugins, engine.doorbell)
            except Unavailable as error:
                _log.warning("%d outcomes could not be written yet: %s", len(portion.outcomes), error)
                failed += portion.outcomes
                continue
            except Exception:
                # Trying again would not help; without an outcome the messages come back when their leases end.
                _log.exception("%d outcomes (%s) cannot be written", len(portion.outcomes), portion.action)
            else:
                portion.note_lost(_log)
            self._keeper.drop(outcome.message.lease for outcome in portion.outcomes)
            done += len(portion.outcomes)
        with self._changing() as load:
            load.settle(done, failed)
        return failed

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
            except PgqrsError as error:
                _log.warning("housekeeping is put off: %s", error)
        if elected:
            with contextlib.suppress(PgqrsError):
                yield engine.run(resign, me)
