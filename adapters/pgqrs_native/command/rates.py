"""How fast rows come and go, from counters that are looked at now and then. Pure."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from pgqrs_core.operations.vitals import TableFacts

__all__ = ["Rate", "Rates"]


class Rate(NamedTuple):
    """Messages per second, of one queue."""

    enqueued: float
    settled: float


class Rates:
    """Rates over the last ``window`` seconds.

    The server learns of a session's work about once a second, so a shorter window would jump between zero and double.
    """

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()

    def add(self, now: float, facts: Iterable[TableFacts]) -> None:
        """Take note of the counters at a time, in seconds."""
        self._samples.append((now, {one.table: (one.inserted, one.deleted) for one in facts}))
        # One sample older than the window stays, so that the window is always covered.
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    def of(self, table: str) -> Rate | None:
        """Return the rate of one table; None as long as there is nothing to compare."""
        seen = [(when, counters[table]) for when, counters in self._samples if table in counters]
        if len(seen) < 2:
            return None
        (began, first), (ended, last) = seen[0], seen[-1]
        passed = ended - began
        # Counters start anew after a crash of the server, or when a queue is created again.
        if passed <= 0 or last[0] < first[0] or last[1] < first[1]:
            return None
        return Rate((last[0] - first[0]) / passed, (last[1] - first[1]) / passed)
