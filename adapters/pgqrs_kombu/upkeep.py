"""What a process does now and then for its queues, by a thread: a task that blocks the event loop harms nothing.

* Each `ROUND` it says that it lives, which keeps its ephemeral queues, and sweeps those of processes that do not.
* It keeps house for the core's tables, when no other process does.
* While deliveries of lost connections are unsettled, it looks every half second which of them nobody wants any more.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pgqrs_core.conditions import Condition
from pgqrs_core.errors import PgqrsError, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.operations import maintenance
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import join, start_thread
from pgqrs_core.this_process import this_process
from pgqrs_kombu import topology
from pgqrs_kombu.sql import queries

if TYPE_CHECKING:
    from pgqrs_kombu.broker import Broker
    from pgqrs_kombu.qos import QoS

__all__ = ["HOLD", "ROUND", "Upkeep"]

_log = get_logger("pgqrs.kombu")

#: Seconds between two rounds, and for how many one of them keeps a queue.
ROUND: Final = 30.0
HOLD: Final = 75.0
#: Seconds between two rounds of housekeeping.
_HOUSE: Final = 600.0
#: Seconds between two looks at deliveries of lost connections; how many of them until garbage is collected first.
_LOOK: Final = 0.5
_COLLECT_AT: Final = 2


class Upkeep:
    """Runs while there is something to keep up."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._changed = Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._held: Counter[int] = Counter()
        self._lost: list[QoS] = []
        self._looks = 0
        self._collect_at = _COLLECT_AT
        self._round_at = 0.0
        self._house_at = 0.0
        #: Ephemeral queues that are used here and were found to be gone.
        self.vanished: set[int] = set()
        #: Called when some have vanished.
        self.on_vanished: set[Callable[[], None]] = set()

    @property
    def is_needed(self) -> bool:
        """Whether deliveries of lost connections are still unsettled."""
        return bool(self._lost)

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._changed:
            self._start()

    def hold(self, number: int) -> None:
        """Keep an ephemeral queue."""
        with self._changed:
            self._held[number] += 1
            self.vanished.discard(number)
            # For all connections of the process that consume from it.
            self._broker.engine.wakeups.probes[-number] = queries["mail_probe"]
            self._start()

    def holds(self, number: int) -> bool:
        """Tell whether an ephemeral queue is kept by this process."""
        return self._held[number] > 0

    def drop(self, number: int) -> bool:
        """Keep it no more; tell whether that was the last reason to."""
        with self._changed:
            self._held[number] -= 1
            if self._held[number] > 0:
                return False
            del self._held[number]
            self.vanished.discard(number)
            self._broker.engine.wakeups.probes.pop(-number, None)
            return True

    def watch_over(self, qos: QoS) -> None:
        """Look after deliveries of a lost connection."""
        with self._changed:
            self._lost.append(qos)
            self._looks, self._collect_at = 0, _COLLECT_AT
            self._start()
            self._changed.notify()

    def release_all(self) -> None:
        """The process ends: give back what is left of lost connections."""
        for qos in self._lost:
            qos.restore_unacked()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        join(self._thread)

    def _start(self) -> None:
        if self._thread is None and not self._closing:
            self._round_at = self._house_at = time.monotonic() + ROUND
            self._thread = start_thread(self._run, name="pgqrs-kombu-upkeep")

    def _run(self) -> None:
        while True:
            with self._changed:
                pause = self._round_at - time.monotonic()
                self._changed.wait(max(min(pause, _LOOK if self._lost else pause), 0.0))
                if self._closing:
                    return
            if self._lost:
                self._look()
            if time.monotonic() >= self._round_at:
                self._round_at = time.monotonic() + ROUND
                try:
                    self._round()
                except PgqrsError as error:
                    text = "ephemeral queues could not be kept up, and are tried again: %s"
                    OUTAGES.warn(self._broker.engine.connections.target, error, _log, text)

    def _look(self) -> None:
        self._looks += 1
        if self._looks >= self._collect_at:
            # What was dropped may hang in a circle of references, and Celery drops it when it has connected anew: an idle
            # process makes no garbage, and would keep it for ever. Beside tasks that run for long, ever more rarely.
            self._collect_at *= 2
            gc.collect()
        for qos in list(self._lost):
            if not qos.collect():
                self._lost.remove(qos)
        if not self._lost:
            # Not from this thread, which it joins.
            start_thread(self._broker.close_if_idle, name="pgqrs-kombu-close", restart=False)

    def _round(self) -> None:
        engine = self._broker.engine
        with self._changed:
            held = list(self._held)
        found = engine.run(topology.renew, self._broker.consumer, held, HOLD, engine.schema)
        gone = {number for number in held if number not in found}
        if gone:
            with self._changed:
                self.vanished |= gone & self._held.keys()
            for tell in list(self.on_vanished):
                tell()
        if time.monotonic() >= self._house_at:
            self._house_at = time.monotonic() + _HOUSE
            if engine.run(maintenance.elect, self._broker.consumer, _HOUSE + 2 * ROUND, this_process()):
                try:
                    engine.run(topology.sweep_orphans)
                except ServerError as error:
                    _log.warning("mail of deleted queues could not be removed, the queues are cleaned: %s", error)
                engine.run(maintenance.maintain, engine.schema)
