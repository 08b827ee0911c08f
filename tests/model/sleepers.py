"""The wake-ups of the simulation: what `pgqrs_core.wakeups` does with a thread and a connection, done with an actor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from steps import Sleep

from pgqrs_core.arrays import numbers
from pgqrs_core.doorbell import notification
from pgqrs_core.effects import Execute
from pgqrs_core.errors import Unavailable
from pgqrs_core.sql import queries
from pgqrs_core.waiter import Waiter
from pgqrs_core.watch import MARK_SECONDS, POLL, Agenda, Watch

if TYPE_CHECKING:
    from world import Actor, Process, World

    from pgqrs_core.effects import Wait

__all__ = ["Sleepers"]


class Sleepers:
    """Those of one program who wait, and the connection that wakes them; as `pgqrs_core.wakeups` does it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.number = 0
        self._connect()
        self.watch = Watch(world.clock)
        self._waiting: list[tuple[Process, Waiter, float]] = []
        self._process: Process | None = None
        self._nudged = False

    def wait(self, process: Process, effect: Wait) -> None:
        """Let a process sleep until there is something, or its patience is over."""
        patience, marks = effect.patience, effect.marks
        queue = self._world.queue
        if effect.drained and not (marks is not None and self.watch.is_quiet(queue, marks.generation)):
            self._world.at(0.0, partial(self._world.go_on, process, patience))
            return
        process.marks = marks
        process.waits_since = self._world.now
        waiter = Waiter(self.watch, (self._world.queue,))
        self._waiting.append((process, waiter, self._world.now + patience))
        self._world.at(patience, self._tell)
        if self._process is None:
            self._process = self._world.start(self._run(), mortal=False)
        else:
            self._wake()

    def _connect(self) -> None:
        """Take another number, as each connection does."""
        self._world.server.living.discard(self.number)
        self.number = self._world.chance.randrange(1, 1 << 30)
        self._world.server.living.add(self.number)

    def hear(self, payload: str) -> None:
        """A notification has arrived."""
        number, *words = payload.split()
        (self.watch.renew if words else self.watch.rang)(int(number))
        self._tell()
        self._wake()

    def _tell(self) -> None:
        now = self._world.now
        for item in list(self._waiting):
            process, waiter, deadline = item
            if waiter.is_over() or now >= deadline or not process.alive:
                self._waiting.remove(item)
                (generation,) = waiter.leave()
                if process.marks is not None:
                    process.marks.generation = generation
                process.waits_since = None
                self._world.at(self._world.latency(), partial(self._world.go_on, process, max(deadline - now, 0.0)))

    def _wake(self) -> None:
        """Let the connection look at its agenda again, at once or as soon as it would nap."""
        self._nudged = True
        if self._process is not None:
            self._world.interrupt(self._process)

    def _run(self) -> Actor:
        while True:
            agenda = self.watch.agenda()
            self._tell()
            try:
                yield from self._follow(agenda)
            except Unavailable:
                self._connect()
                self.watch.lost()
                self._tell()
            else:
                if not (agenda.works or self._nudged):
                    # A real clock moves on by itself.
                    yield Sleep(min(max(agenda.sleep, 0.001), 2 * POLL))
            self._nudged = False

    def _follow(self, agenda: Agenda) -> Actor:
        me = self.number
        if agenda.unmark:
            ids = numbers(agenda.unmark)
            yield Execute(queries["unwatch"], {"queue_ids": ids, "consumer": me, "polled": agenda.polled})
        for number, count in agenda.pass_on.items():
            rows = yield notification(number, count, but=me)
            self.watch.passed_on(number, len(rows))
            self._tell()
        if agenda.mark:
            ids, fresh = numbers(agenda.mark), not set(self.watch.marks()).issuperset(agenda.mark)
            params = {"queue_ids": ids, "consumer": me, "seconds": MARK_SECONDS, "fresh": fresh}
            rows = yield Execute(queries["watch"], params)
            self.watch.marked(rows)
            self._tell()
        if agenda.probe:
            rows = yield Execute(queries["probe"], queues=tuple(agenda.probe))
            self.watch.probed(agenda.probe, rows, 0.0)
            self._tell()
