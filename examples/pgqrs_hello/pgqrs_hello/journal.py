"""An observer with a table. The hook itself only counts: whoever waits for the database in it delays every batch."""

from __future__ import annotations

import threading
from collections import Counter

from pgqrs_core.effects import Execute, Op
from pgqrs_core.events import Consumed
from pgqrs_core.sql import read_queries

__all__ = ["JOURNAL", "Journal", "read"]

queries = read_queries("pgqrs_hello")


class Journal:
    """Counts outcomes in memory until they are written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def note(self, event: Consumed) -> None:
        """Count what became of messages; called from any thread."""
        with self._lock:
            self._counts.update((event.queue, outcome.kind) for outcome in event.outcomes)

    def write(self) -> Op[int]:
        """Add what was counted to the table; return how many outcomes that were.

        An operation: run it with ``engine.transact(journal.write)``, or within a transaction of yours.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        for (queue, outcome), count in counts.items():
            yield Execute(queries["add"], {"queue": queue, "outcome": outcome, "count": count})
        return sum(counts.values())


#: The journal of this process, whatever the number of engines.
JOURNAL = Journal()


def read() -> Op[list[tuple[str, str, int]]]:
    """Return queue, outcome and count of all that was written."""
    rows: list[tuple[str, str, int]] = yield Execute(queries["read"])
    return rows
