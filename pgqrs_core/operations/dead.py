"""Dead letters: messages that used up their attempts, were rejected, or could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import DEAD_LANE, DeadMessage, Queue, check_number, show_headers
from pgqrs_core.operations.enqueue import ring
from pgqrs_core.operations.twins import renumber_free
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell

__all__ = ["list_dead", "purge_dead", "replay_dead", "show_dead"]

_PAGE: Final = 1_000


def list_dead(queue: Queue, limit: int, before: datetime | None = None) -> Op[list[DeadMessage]]:
    """Return up to ``limit`` dead messages, the latest first; ``before`` continues an earlier list."""
    check_number("limit", limit, 1, 100_000, whole=True)
    rows = yield Execute(queries["list_dead"], {"limit": limit, "before": before}, queue)
    return [_dead(row) for row in rows]


def show_dead(queue: Queue, message_id: int) -> Op[DeadMessage | None]:
    """Return one dead message, or None."""
    rows = yield Execute(queries["show_dead"], {"id": message_id}, queue)
    return _dead(rows[0]) if rows else None


def replay_dead(queue: Queue, ids: Sequence[int] | None, doorbell: Doorbell | None = None) -> Op[int]:
    """Put these dead messages, or all, back into the queue as if new; return how many."""
    count = yield from _each_page("replay_dead", queue, ids)
    if count:
        yield from ring(queue, doorbell, count)
    return count


def purge_dead(queue: Queue, ids: Sequence[int] | None) -> Op[int]:
    """Remove these dead messages, or all, for good; return how many."""
    return (yield from _each_page("purge_dead", queue, ids))


def _each_page(name: str, queue: Queue, ids: Sequence[int] | None) -> Op[int]:
    count = 0
    if ids is not None:
        for page in _pages(ids):
            count += yield from _apply(name, queue, page)
        return count
    after = -(2**63)
    while True:
        found = yield Execute(queries["dead_ids"], {"after": after, "limit": _PAGE}, queue)
        if not found:
            return count
        after = found[-1][0]
        count += yield from _apply(name, queue, [row[0] for row in found])


def _apply(name: str, queue: Queue, ids: Sequence[int]) -> Op[int]:
    """Replay or remove a page; return how many there were."""
    done = {row[0] for row in (yield Execute(queries[name], {"ids": numbers(ids)}, queue))}
    missed = [number for number in ids if number not in done]
    if name == "replay_dead" and missed:
        # Those that have a twin where they are to go.
        renumbered = yield from renumber_free(queue, [(DEAD_LANE, number) for number in missed])
        if renumbered:
            again = numbers(number for _, number in renumbered)
            return len(done) + len((yield Execute(queries[name], {"ids": again}, queue)))
    return len(done)


def _pages(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    ordered = sorted(set(ids))
    for start in range(0, len(ordered), _PAGE):
        yield ordered[start : start + _PAGE]


def _dead(row: tuple[Any, ...]) -> DeadMessage:
    return DeadMessage(*(*row[:6], show_headers(row[6]), show_headers(row[7]), row[8]))
