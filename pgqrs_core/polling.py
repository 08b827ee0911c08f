"""Polling beside a listener that may hang: a firewall that has forgotten a connection tells neither of its ends.

Whoever waits for a notification also reads by itself, after a second and then ever more rarely, on another connection; and
once more before it gives up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from pgqrs_core.conditions import Condition
from pgqrs_core.errors import PgqrsError
from pgqrs_core.logs import Logger
from pgqrs_core.supervision import join, start_thread

__all__ = ["LAST_READ", "Poller", "PollSchedule"]

#: Seconds until the first poll of a wait.
FIRST: Final = 1.0
#: By how much the intervals grow, until they reach `LONGEST` seconds.
GROWTH: Final = 1.5
LONGEST: Final = 5.0
#: The part of the time that polls may take.
SHARE: Final = 0.02
#: Seconds that the last read of a wait may take beyond the time-out.
LAST_READ: Final = 1.0


class PollSchedule:
    """When to poll next. The caller serialises access."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval = FIRST
        self.due_at = math.inf

    @property
    def is_due(self) -> bool:
        """Whether it is time to poll."""
        return self._clock() >= self.due_at

    @property
    def is_untried(self) -> bool:
        """Whether there was no poll since the last wait began."""
        return self._interval == FIRST

    def begin(self) -> None:
        """Note that a wait begins, or that something has arrived: poll soon, if nothing else does."""
        self._interval = FIRST
        self.due_at = min(self.due_at, self._clock() + FIRST)

    def polled(self, seconds: float) -> None:
        """Note that a poll took so long: one that is dear comes more rarely."""
        self._interval = min(self._interval * GROWTH, LONGEST)
        self.due_at = self._clock() + max(self._interval, seconds / SHARE)


class Poller:
    """Polls in a thread of its own, which ends when nothing is waited for. A waiter never waits longer because of it.

    Args:
        read: reads what is waited for, and hands it on; returns False when nothing is waited for.
        name: of the thread.
        log: where errors of ``read`` are noted.
    """

    def __init__(self, read: Callable[[], bool], *, name: str, log: Logger) -> None:
        self._read = read
        self._name = name
        self._log = log
        self._changed = Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._schedule = PollSchedule()
        #: How many polls have begun, and how many of them are over.
        self._begun = self._over = 0

    def start(self) -> None:
        """Note that a wait begins."""
        with self._changed:
            self._schedule.begin()
            self._start()

    def poll(self, patience: float) -> None:
        """Poll now, and wait until that is done, at most ``patience`` seconds."""
        with self._changed:
            wanted = self._begun + 1
            self._schedule.due_at = 0.0
            self._start()
            self._changed.wait_for(lambda: self._over >= wanted or self._closing, patience)

    def close(self) -> None:
        """End the thread. It does not start again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        join(thread)

    def _start(self) -> None:
        if self._closing:
            return
        if self._thread is None:
            self._thread = start_thread(self._run, name=self._name)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._schedule.is_due):
                    left = self._schedule.due_at - time.monotonic()
                    self._changed.wait(min(max(left, 0.0), LONGEST))
                if self._closing:
                    self._thread = None
                    return
                self._begun += 1
                self._schedule.due_at = math.inf
            began, waits = time.monotonic(), True
            try:
                waits = self._read()
            except PgqrsError as error:
                self._log.debug("a poll beside the listener failed: %s", error)
            with self._changed:
                self._over = self._begun
                self._changed.notify_all()
                if self._schedule.due_at != math.inf:
                    # Somebody has asked for another poll meanwhile.
                    continue
                if not waits:
                    self._thread = None
                    return
                self._schedule.polled(time.monotonic() - began)
