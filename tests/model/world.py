"""Time, chance and faults of the simulation: runs actors, which are generators, one step at a time.

An actor yields what an operation yields, and besides `Sleep`, `Begin`, `Commit` and `Rollback`. Between any two steps
others run. All that is left to chance comes from one seed, so a number repeats a schedule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from fake import Blocked, FakeServer, Transaction
from sleepers import Sleepers
from steps import Begin, Commit, Number, Rollback, Sleep

from pgqrs_core.effects import Execute, Wait
from pgqrs_core.errors import Unavailable
from pgqrs_core.marks import SETTLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqrs_core.messages import Queue

__all__ = ["Actor", "Faults", "Process", "World"]

Actor: TypeAlias = Generator[Any, Any, None]


@dataclass(frozen=True)
class Faults:
    """How likely each statement meets a fault, and how long things take at most, in seconds."""

    broken: float = 0.0
    killed: float = 0.0
    deaf: float = 0.0
    latency: float = 0.003
    commit: float = 0.02


class Process:
    """One actor, on one connection."""

    def __init__(self, actor: Actor, *, mortal: bool) -> None:
        self.actor = actor
        self.mortal = mortal
        self.transaction: Transaction | None = None
        self.alive = True
        #: Odd while it sleeps.
        self.nap = 0
        #: Since when it sleeps until there is something, if it does.
        self.waits_since: float | None = None
        #: Which of the programs it belongs to, and its marks.
        self.program: Any = None
        self.marks: Any = None


class World:
    """One schedule."""

    def __init__(self, seed: int, queue: Queue, faults: Faults) -> None:
        self.chance = random.Random(seed)
        self.faults = faults
        self.queue = queue
        self.server = FakeServer(queue, self.chance)
        self.processes: list[Process] = []
        self.sleepers = [Sleepers(self) for _ in range(4)]
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def now(self) -> float:
        return self.server.table.now

    def clock(self) -> float:
        return self.server.table.now

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now + delay, self._count, action))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._agenda and self._agenda[0][0] <= until:
            self.server.table.now, _, action = heapq.heappop(self._agenda)
            action()
        self.server.table.now = until

    def start(self, actor: Actor, *, mortal: bool = True) -> Process:
        process = Process(actor, mortal=mortal)
        self.processes.append(process)
        self.at(self.chance.random() * 0.01, partial(self.go_on, process))
        return process

    def go_on(self, process: Process, reply: Any = None) -> None:
        """Let an actor take its next step."""
        if not process.alive:
            return
        try:
            effect = process.actor.throw(reply) if isinstance(reply, Unavailable) else process.actor.send(reply)
        except StopIteration:
            process.alive = False
            return
        if isinstance(effect, Sleep):
            process.nap += 1
            self.at(effect.seconds, partial(self._wake_up, process, process.nap))
        elif isinstance(effect, Wait):
            self.sleepers_of(process).wait(process, effect)
        elif isinstance(effect, Begin):
            process.transaction = Transaction()
            self.go_on(process)
        elif isinstance(effect, Number):
            self.server.register(process.transaction or Transaction())
            self.go_on(process)
        elif isinstance(effect, (Commit, Rollback)):
            self.at(self.latency(), partial(self._end, process, commits=isinstance(effect, Commit)))
        else:
            self._send(process, effect)

    def sleepers_of(self, process: Process) -> Sleepers:
        """The wake-ups of the program that a process belongs to."""
        if process.program is None:
            process.program = self.chance.choice(self.sleepers)
        return process.program

    def _wake_up(self, process: Process, nap: int) -> None:
        if process.nap == nap:
            process.nap += 1
            self.go_on(process)

    def interrupt(self, process: Process) -> None:
        """End an actor's sleep, if it sleeps."""
        if process.nap % 2:
            self._wake_up(process, process.nap)

    def latency(self) -> float:
        return self.chance.random() * self.faults.latency

    # Statements, and what becomes of them.

    def _send(self, process: Process, effect: Execute) -> None:
        draw = self.chance.random()
        if draw < self.faults.broken:
            self._break(process)
        elif process.mortal and draw < self.faults.broken + self.faults.killed:
            self._kill(process)
        else:
            self.at(self.latency(), partial(self._perform, process, effect, process.transaction or Transaction()))

    def _perform(self, process: Process, effect: Execute, transaction: Transaction) -> None:
        enqueues = effect.query.name.startswith("enqueue_")
        server = self.server
        try:
            rows = (server.draw if enqueues else server.perform)(effect, transaction)
        except Blocked:
            self.at(0.005, partial(self._perform, process, effect, transaction))
            return
        if enqueues:
            # A plain insert draws its id a moment before its transaction has a number.
            pause = self.chance.choice([0.0, 0.1, 0.9]) * SETTLE
            self.at(pause, partial(self._registered, process, transaction, rows))
        elif process.transaction is None:
            server.end(transaction, commits=True)
            self._tell()
            self._reply(process, rows)
        else:
            server.register(transaction)
            self._reply(process, rows)

    def _registered(self, process: Process, transaction: Transaction, rows: Any) -> None:
        self.server.register(transaction)
        if process.transaction is None:
            # Most commits are quick, so that others overtake those who draw ids slowly.
            pause = self.chance.random() ** 4 * self.faults.commit
            self.at(pause, partial(self._committed, process, transaction, rows))
        else:
            self._reply(process, rows)

    def _committed(self, process: Process, transaction: Transaction, rows: Any) -> None:
        self.server.end(transaction, commits=True)
        self._reply(process, rows)

    def _end(self, process: Process, *, commits: bool) -> None:
        if process.transaction is not None:
            self.server.end(process.transaction, commits=commits)
            process.transaction = None
        self.go_on(process)

    def _reply(self, process: Process, rows: Any) -> None:
        draw = self.chance.random()
        if draw < self.faults.broken:
            self._break(process)
        elif process.mortal and draw < self.faults.broken + self.faults.killed:
            self._kill(process)
        else:
            self.at(self.latency(), partial(self.go_on, process, rows))

    def _break(self, process: Process) -> None:
        """The connection breaks, and with it a transaction."""
        self._abort(process)
        self.at(self.latency(), partial(self.go_on, process, Unavailable("gone", in_flight=True)))

    def _kill(self, process: Process) -> None:
        process.alive = False
        process.actor.close()
        self._abort(process)

    def _abort(self, process: Process) -> None:
        if process.transaction is not None:
            self.server.end(process.transaction, commits=False)
            process.transaction = None

    def _tell(self) -> None:
        """Deliver notifications, or lose them."""
        for consumer, payload in self.server.notifications:
            for sleepers in self.sleepers:
                if sleepers.number == consumer and self.chance.random() >= self.faults.deaf:
                    self.at(self.latency(), partial(sleepers.hear, payload))
        self.server.notifications.clear()
