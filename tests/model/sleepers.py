"""The wake-ups of the simulation: what `pgqrs_core.wakeups` does with a thread and a connection, done with an actor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from steps import Sleep

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute
from pgqrs_core.errors import Unavailable
from pgqrs_core.sql import queries
from pgqrs_core.watch import MARK_SECONDS, POLL, Agenda, Party, Watch

if TYPE_CHECKING:
    from world import Actor, Process, World

__all__ = ["Sleepers"]


class Sleepers:
    """Those of one program who wait, and the connection that wakes them; as `pgqrs_core.wakeups` does it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = world.chance.randrange(1, 1 << 30)
        self.watch = Watch(world.clock)
        self._waiting: list[tuple[Process, Party, float]] = []
        self._process: Process | None = None
        self._nudged = False

    def wait(self, process: Process, patience: float) -> None:
        """Let a process sleep until there is something, or its patience is over."""
        process.waits_since = self._world.now
        party = Party(self.watch, (self._world.queue,))
        self._waiting.append((process, party, self._world.now + patience))
        self._world.at(patience, self._tell)
        if self._process is None:
            self._process = self._world.start(self._run(), mortal=False)
        else:
            self._wake()

    def rang(self, number: int) -> None:
        """A notification has arrived."""
        self.watch.rang(number)
        self._tell()
        self._wake()

    def _tell(self) -> None:
        now = self._world.now
        for item in list(self._waiting):
            process, party, deadline = item
            if party.is_over() or now >= deadline or not process.alive:
                self._waiting.remove(item)
                party.leave()
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
                self.watch.lost()
                self._tell()
            else:
                if not (agenda.mark or agenda.probe or self._nudged):
                    # A real clock moves on by itself.
                    yield Sleep(min(max(agenda.sleep, 0.001), 2 * POLL))
            self._nudged = False

    def _follow(self, agenda: Agenda) -> Actor:
        if agenda.unmark:
            yield Execute(queries["unwatch"], {"queue_ids": numbers(agenda.unmark), "consumer": self._number})
        if agenda.mark:
            ids = numbers(agenda.mark)
            yield Execute(queries["watch"], {"queue_ids": ids, "consumer": self._number, "seconds": MARK_SECONDS})
            self.watch.marked(agenda.mark)
            self._tell()
        if agenda.probe:
            rows = yield Execute(queries["probe"], queues=tuple(agenda.probe))
            self.watch.probed(agenda.probe, rows, 0.0)
            self._tell()
