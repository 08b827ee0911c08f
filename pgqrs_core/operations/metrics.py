"""Figures of queues, at a cost that does not grow with their backlog.

A lane is counted up to `CAP` rows. Ids are handed out in order and settled roughly in order, so a longer lane is
extrapolated: as many rows as fit between its first and last id at the density of the rows that were counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import DEAD_LANE, Metrics, Queue
from pgqrs_core.sql import queries

__all__ = ["CAP", "measure"]

#: Rows of a lane that are counted one by one.
CAP: Final = 10_000


def measure(queues: Sequence[Queue]) -> Op[list[Metrics]]:
    """Return the figures of these queues, in their order, with two statements however many there are."""
    if not queues:
        return []
    lanes: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in (yield Execute(queries["metrics"], {"cap": CAP}, queues=tuple(queues))):
        lanes[row[0]].append(row[1:])
    archives: dict[int, tuple[Any, ...]] = {}
    archiving = tuple(queue for queue in queues if queue.options.archive)
    if archiving:
        for row in (yield Execute(queries["archive_metrics"], {"cap": CAP}, queues=archiving)):
            archives[row[0]] = row[1:]
    return [_metrics(queue, lanes[queue.id], archives.get(queue.id)) for queue in queues]


def _metrics(queue: Queue, lanes: Sequence[tuple[Any, ...]], archive: tuple[Any, ...] | None) -> Metrics:
    ready = delayed = in_flight = dead = archived = 0
    estimated: set[str] = set()
    oldest: list[float] = []
    dues: list[float] = []
    for lane, seen, held, first, reached, last, due, age, next_due in lanes:
        total = _extrapolate(seen, first, reached, last)
        if lane == DEAD_LANE:
            dead = total
        elif lane >= 0:
            in_flight += held
            ready += max(total - held, 0)
        else:
            in_flight += held
            ready += min(due, CAP)
            delayed += max(total - held - due, 0)
            if due > CAP:
                estimated.add("ready")
        if seen > CAP:
            estimated.add("dead" if lane == DEAD_LANE else "ready" if lane >= 0 else "delayed")
        if age is not None:
            oldest.append(age)
        if next_due is not None:
            dues.append(next_due)
    if archive is not None:
        archived = _extrapolate(*archive)
        if archive[0] > CAP:
            estimated.add("archived")
    return Metrics(
        queue=queue.name,
        ready=ready,
        delayed=delayed,
        in_flight=in_flight,
        dead=dead,
        archived=archived,
        oldest_ready_seconds=max(oldest, default=None),
        next_due_seconds=min(dues, default=None),
        paused=queue.paused_at is not None,
        estimated=tuple(sorted(estimated)),
    )


def _extrapolate(seen: int, first: int | None, reached: int | None, last: int | None) -> int:
    if seen <= CAP or first is None or reached is None or last is None:
        return seen
    return seen + round((last - reached) * seen / (reached - first + 1))
