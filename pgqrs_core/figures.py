"""What the engines of this process are doing: connections and wake-ups, for metrics. Read without a round trip."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pgqrs_core.forks import Lock

if TYPE_CHECKING:
    from pgqrs_core.engine import AsyncEngine, Engine
    from pgqrs_core.watch import Watch

__all__ = ["EngineFigures", "PoolUsage", "figures_of", "note_engine", "process_engines", "process_figures"]


class PoolUsage(NamedTuple):
    """How many connections of a pool are open, how many of these are idle, and how many there may be."""

    open: int
    idle: int
    limit: int


class EngineFigures(msgspec.Struct, frozen=True):
    """One engine at this moment. Counts of events run from its beginning.

    Attributes:
        number: Which engine of this process it is, counted from 1.
        pool: Its connections; the one of wake-ups is not among them.
        listening: Whether notifications can arrive; None if nobody has waited yet.
        watched: Queues that somebody here waits for.
        notifications: Notifications that named one of them.
        probes: Looks at all of them by the wake-up connection.
        losses: How often that connection broke, or could not be made.
    """

    number: int
    pool: PoolUsage
    listening: bool | None
    watched: int
    notifications: int
    probes: int
    losses: int


def figures_of(number: int, pool: PoolUsage, watch: Watch | None) -> EngineFigures:
    """Put the figures of a pool and of the wake-ups together; ``watch`` is None while there are none."""
    if watch is None:
        return EngineFigures(number, pool, None, 0, 0, 0, 0)
    return EngineFigures(number, pool, watch.listening, watch.watched, watch.rings, watch.probes, watch.losses)


_lock = Lock()
_engines: Final[weakref.WeakSet[Engine | AsyncEngine]] = weakref.WeakSet()
_numbers: Final = itertools.count(1)


def note_engine(engine: Engine | AsyncEngine) -> int:
    """Let `process_figures` know of an engine, as long as somebody keeps it, and return its number."""
    with _lock:
        _engines.add(engine)
        return next(_numbers)


def process_engines() -> list[Engine | AsyncEngine]:
    """Return every engine that this process has made and still keeps; those of a parent process are not its own."""
    with _lock:
        engines = list(_engines)
    return [engine for engine in engines if engine.is_ours]


def process_figures() -> list[EngineFigures]:
    """Return the figures of every engine of `process_engines`."""
    return [engine.figures() for engine in process_engines()]
