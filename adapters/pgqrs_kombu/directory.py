"""What this process remembers of the broker's state, so that publishing need not ask each time.

Bindings are remembered for a second; or for longer by a process that listens, for whoever changes them rings (number 0).
A message that would reach nobody by what is remembered is routed anew before it is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pgqrs_kombu import topology
from pgqrs_kombu.routing import Table, exchange_table
from pgqrs_kombu.topology import Declared

if TYPE_CHECKING:
    from pgqrs_core.engine import Engine

__all__ = ["Directory"]

#: Seconds for which bindings are remembered, and the same where changes ring.
FRESH: Final = 1.0
FRESH_WATCHED: Final = 30.0
#: Seconds for which it is remembered of what kind a queue is.
KNOWN: Final = 60.0


class Directory:
    """Remembers exchanges and queues. Threads may race here: the worst is to ask twice."""

    def __init__(self, engine: Engine, watched: Callable[[], bool]) -> None:
        self._engine = engine
        self._watched = watched
        self._tables: dict[str, tuple[float, Table]] = {}
        self._queues: dict[str, tuple[float, Declared]] = {}

    def table(self, exchange: str) -> tuple[Table | None, bool]:
        """Return an exchange's table, and whether it was read just now or is as good as that."""
        known = self._tables.get(exchange)
        watched = self._watched()
        if known is not None and time.monotonic() - known[0] < (FRESH_WATCHED if watched else FRESH):
            return known[1], watched
        return self.read(exchange), True

    def read(self, exchange: str) -> Table | None:
        """Read an exchange's table anew."""
        now = time.monotonic()
        found = self._engine.run(exchange_table, exchange)
        if found is None:
            self._tables.pop(exchange, None)
        else:
            self._tables[exchange] = now, found
        return found

    def queue(self, name: str) -> Declared | None:
        """Return what is known of a queue, or None if it does not exist."""
        known = self._queues.get(name)
        if known is not None and time.monotonic() - known[0] < KNOWN:
            return known[1]
        found = self._engine.run(topology.find_declared, name)
        if found is None:
            self._queues.pop(name, None)
        else:
            self.learn(found)
        return found

    def learn(self, declared: Declared) -> None:
        """Remember a queue that this process has declared or read."""
        if len(self._queues) > 10_000:
            self._queues.clear()
        self._queues[declared.name] = time.monotonic(), declared

    def forget(self, name: str) -> None:
        """A queue is not what it was; its bindings are not, either."""
        self._queues.pop(name, None)
        self.changed()

    def changed(self) -> None:
        """Some binding has changed."""
        self._tables.clear()
