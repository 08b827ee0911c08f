"""An observer with a table. The hook itself only notes: a hook that waits for the database delays every batch.

`Tally` keeps the notes, adds them up, and calls `write` in a thread of its own within a second, and at the end of the
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgqrs_core import Engine, hookimpl
from pgqrs_core.effects import Execute, Op
from pgqrs_core.figures import process_engines
from pgqrs_core.sql import read_queries
from pgqrs_core.tally import Sums, Tally

__all__ = ["Journal", "add", "read"]

queries = read_queries("pgqrs_hello")


class Journal(Tally):
    """Writes what became of messages into the database that they came from."""

    def __init__(self) -> None:
        self._configs: dict[str, Any] = {}
        super().__init__(within=1.0)

    @hookimpl
    def pgqrs_after_consume(self, event: Any) -> None:
        """Note what became of messages; called from any thread."""
        if event.queue not in self._configs:
            # Now, and not when it is written: by then the program may have closed its client.
            found = (engine.config for engine in process_engines() if engine.known(event.queue))
            self._configs[event.queue] = next(found, None)
        super().pgqrs_after_consume(event)

    def write(self, queue: str, adapter: str, sums: Sums) -> None:
        """Add what was counted to the table. `Tally` calls it, and logs what it raises."""
        if sums.settled:
            with Engine(self._configs.get(queue)) as engine:
                engine.transact(add, queue, sums.settled)


def add(queue: str, outcomes: Mapping[str, int]) -> Op[None]:
    """Add to the table: an operation, so that it can run on any engine, and in a transaction of yours."""
    for outcome, count in sorted(outcomes.items()):
        yield Execute(queries["add"], {"queue": queue, "outcome": outcome, "count": count})


def read() -> Op[list[tuple[str, str, int]]]:
    """Return queue, outcome and count of all that was written."""
    rows: list[tuple[str, str, int]] = yield Execute(queries["read"])
    return rows
