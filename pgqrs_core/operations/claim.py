"""Taking messages out: claim, and wait for something to claim."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op, Rows, Wait
from pgqrs_core.errors import TableLocked
from pgqrs_core.marks import Seen, highest_ids
from pgqrs_core.messages import CLAIM_LANES, Delivery, Queue
from pgqrs_core.operations.settle import Failure, nack, release
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.marks import Marks

__all__ = ["claim", "give_back", "is_last", "new_token", "receive"]

_LANES: Final = numbers(CLAIM_LANES)
_PLACES: Final = {lane: place for place, lane in enumerate(CLAIM_LANES)}


def new_token() -> int:
    """Return a fresh lease token: 62 random bits below a set bit, so that it is always eight bytes wide."""
    return secrets.randbits(62) + 2**62


def claim(queue: Queue, marks: Marks, *, limit: int, lease: float, bury: bool = True) -> Op[list[Delivery]]:
    """Claim up to ``limit`` messages for ``lease`` seconds, and return them in order.

    A message that has been delivered ``max_attempts`` times without being settled killed its consumers, or outlived
    them; it is dead-lettered here instead of delivered again. One whose last attempt this is comes alone: a consumer
    that dies takes an attempt from all that it holds, and only the message that kills it shall end as dead.
    Without ``bury``, what has used up its attempts is returned too, for the caller to bury.
    """
    while True:
        if marks.wants_writers():
            ((oldest_writer,),) = yield Execute(queries["oldest_writer"], queue=queue)
            marks.learn(oldest_writer)
        most = 1 if marks.cautious else limit
        rows: Rows = yield Execute(
            queries["claim"],
            {"lanes": _LANES, "marks": marks.start(), "limit": most, "lease": lease, "token": new_token()},
            queue,
            hand=[],
        )
        if not rows:
            marks.finish(None, full=False)
            marks.cautious = 0
            return []
        seen = Seen(highest_ids((row[0], row[1]) for row in rows), rows[0][10], rows[0][11])
        marks.finish(seen, full=len(rows) == most)
        found = [_delivery(row) for row in sorted(rows, key=_order)]
        worn = [item for item in found if item.attempt >= queue.options.max_attempts]
        marks.cautious = max(marks.cautious - 1, 0)
        if not worn:
            return found
        spent = [item for item in worn if item.attempt > queue.options.max_attempts]
        if spent and bury:
            yield from nack(queue, [_exhausted(item) for item in spent])
            found = [item for item in found if item.attempt <= queue.options.max_attempts]
        # A batch of nothing but spent messages does not mean that the queue is empty.
        if found:
            return (yield from _set_apart(queue, marks, found))


def give_back(claims: Sequence[Execute], doorbell: Doorbell | None) -> Op[int]:
    """Release what interrupted claims took and nobody received; the attempt does not count. Return how many there were."""
    given = 0
    for claimed in claims:
        if claimed.hand and claimed.queue is not None:
            leases = [_delivery(row).lease for row in claimed.hand]
            given += sum((yield from release(claimed.queue, leases, doorbell)))
    return given


def is_last(queue: Queue, found: Sequence[Delivery]) -> bool:
    """Tell whether this is a message on its last attempt, beside which its consumer should claim nothing."""
    return len(found) == 1 and found[0].attempt == queue.options.max_attempts > 1


def _set_apart(queue: Queue, marks: Marks, found: list[Delivery]) -> Op[list[Delivery]]:
    """Keep one message that is on its last attempt, and give the others back as if they had not been claimed."""
    last = next((item for item in found if item.attempt == queue.options.max_attempts), None)
    # With a single attempt every message would come alone.
    if last is None or len(found) == 1 or queue.options.max_attempts == 1:
        return found
    others = [item.lease for item in found if item is not last]
    yield from release(queue, others)
    # They come next. One by one from the start, so that none is claimed and given back again and again.
    marks.cautious = len(others)
    return [last]


def receive(
    queue: Queue,
    marks: Marks,
    *,
    limit: int,
    lease: float,
    patience: float = 0.0,
    bury: bool = True,
    on_look: Callable[[], None] | None = None,
) -> Op[list[Delivery]]:
    """Claim like `claim`; while there is nothing, wait up to ``patience`` seconds for something.

    A consumer whose last claim took all there was does not claim again before something has happened.

    ``on_look`` is called before each look, so that whoever times it need not count the waiting.
    """
    if patience > 0 and marks.drained and not marks.cautious:
        patience = yield Wait(queue, patience, marks, drained=True)
    while True:
        if on_look is not None:
            on_look()
        found: list[Delivery] = []
        try:
            found = yield from claim(queue, marks, limit=limit, lease=lease, bury=bury)
        except TableLocked:
            # Who waits for messages waits for the lock, too.
            if patience <= 0:
                raise
        if found or patience <= 0:
            return found
        patience = yield Wait(queue, patience, marks)


def _delivery(row: Sequence[Any]) -> Delivery:
    return Delivery(*row[:10])


def _order(row: tuple[object, ...]) -> tuple[int, object]:
    return _PLACES[row[0]], row[1]  # type: ignore[index]


def _exhausted(item: Delivery) -> Failure:
    return Failure(
        item.lease,
        bury=True,
        attempt=item.attempt - 1,
        error={
            "type": "AttemptsExhausted",
            "message": f"delivered {item.attempt - 1} times and settled none of them: its consumers gave it back "
            "(requeued it), died, or lost their leases",
        },
    )
