"""Figures of queues, at a cost that does not grow with their backlog.

A lane is counted up to `CAP` rows. Beyond them it is estimated: its ids are cut into `PARTS` ranges, and a `SAMPLE` of each
is counted. One density for all would not do: where old messages are still in flight, ids are sparse at the front and
dense behind. A range's own density would not do either: where messages come in bursts, as those of one priority among
others do, a sample may begin in one and see nothing else. So the rest of a range is taken to be as dense as the median of
it and its two neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.errors import NotPermitted, ServerError
from pgqrs_core.messages import DEAD_LANE, Metrics, Queue
from pgqrs_core.operations.many import ask_all
from pgqrs_core.sql import queries

__all__ = ["CAP", "measure", "measure_one"]

#: Rows of a lane that are counted one by one.
CAP: Final = 10_000
#: Into how many ranges of ids the rest is cut, and how many rows of each are counted.
PARTS: Final = 32
SAMPLE: Final = 400

#: Where a sample of a lane says how many of its rows have expired, and how many are due.
_EXPIRED: Final = 3
_DUE: Final = 4

_LIMITS: Final = {"cap": CAP, "parts": PARTS, "sample": SAMPLE}


def measure(queues: Sequence[Queue], *, with_archives: bool = True) -> Op[list[Metrics]]:
    """Return the figures of these queues, in their order, with two statements for every fifty of them.

    Without archives it is one, and archived messages are not counted. A queue that cannot be read has an ``error``, and
    its figures are zero.

    Raises:
        NotPermitted: none of them may be read.
    """
    rows, failed = yield from ask_all(queries["metrics"], _LIMITS, queues)
    lanes: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        lanes[row[0]].append(row[1:])
    archiving = [queue for queue in queues if with_archives and queue.options.archive and queue.id not in failed]
    rows, more = yield from ask_all(queries["archive_metrics"], _LIMITS, archiving)
    failed.update(more)
    if len(failed) == len(queues):
        for error in failed.values():
            if isinstance(error, NotPermitted):
                raise error
    archives = {row[0]: row[1:] for row in rows}
    return [_metrics(queue, lanes[queue.id], archives.get(queue.id), failed.get(queue.id)) for queue in queues]


def measure_one(queue: Queue) -> Op[Metrics]:
    """Return the figures of one queue.

    Raises:
        ServerError: it cannot be read.
    """
    rows: Rows = yield Execute(queries["metrics"], _LIMITS, queues=(queue,))
    archive: Rows = ()
    if queue.options.archive:
        archive = yield Execute(queries["archive_metrics"], _LIMITS, queues=(queue,))
    return _metrics(queue, [row[1:] for row in rows], archive[0][1:] if archive else None)


def _metrics(
    queue: Queue, lanes: Sequence[tuple[Any, ...]], archive: tuple[Any, ...] | None, error: ServerError | None = None
) -> Metrics:
    if error is not None:
        lanes = ()
    ready = delayed = in_flight = expired = dead = archived = 0
    estimated: set[str] = set()
    oldest: list[float] = []
    dues: list[float] = []
    for lane, seen, held, gone, beyond, many, due, age, next_due in lanes:
        samples = beyond or ()
        total = seen + _estimate(samples)
        if lane == DEAD_LANE:
            dead += total
            if seen > CAP:
                estimated.add("dead")
            continue
        late = gone + _estimate(samples, _EXPIRED)
        beyond_due = _estimate(samples, _DUE) if many else 0
        claimable = max(total - held - late, 0) if lane >= 0 else due + beyond_due
        in_flight += held
        expired += late
        ready += claimable
        if lane < 0:
            delayed += max(total - held - late - claimable, 0)
        if seen > CAP:
            estimated.add("ready" if lane >= 0 else "delayed")
            if many:
                estimated.add("ready")
            if late:
                estimated.add("expired")
        if age is not None:
            oldest.append(age)
        if next_due is not None:
            dues.append(next_due)
    if archive is not None:
        seen, beyond = archive
        archived = seen + _estimate(beyond or ())
        if seen > CAP:
            estimated.add("archived")
    return Metrics(
        queue=queue.name,
        ready=ready,
        delayed=delayed,
        in_flight=in_flight,
        expired=expired,
        dead=dead,
        archived=archived,
        oldest_ready_seconds=max(oldest, default=None),
        next_due_seconds=min(dues, default=None),
        paused=queue.paused_at is not None,
        estimated=tuple(sorted(estimated)),
        error=None if error is None else str(error),
    )


def _estimate(samples: Sequence[Sequence[int]], counted: int = 0) -> int:
    """Return how many rows there are in ranges of ids, of each of which a sample was counted.

    A sample is the rows counted, the ids over which they extend, and the ids of the range; for a lane also how many of the
    rows have expired, and how many are due. ``counted`` is the place of the count that is wanted.
    """
    densities = [sample[counted] / sample[1] for sample in samples]
    # The first range begins at a message, perhaps at a burst, and has its one neighbour count for two; the last one counts
    # for two itself, for the newest messages may be dense after all others.
    around = zip((densities[1:2] or densities) + densities[:-1], densities, densities[1:] + densities[-1:])
    return round(sum(sample[counted] + (sample[2] - sample[1]) * median(near) for sample, near in zip(samples, around)))
