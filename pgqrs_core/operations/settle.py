"""What becomes of a claimed message: ack, archive, nack, release, replace; and keeping its lease. All fenced.

Each goes to the places where the rows were when they were claimed, and checks lane, id and lease token there. A row
that has moved since is located by its key and tried again; one that is not to be located was lost, to another consumer
or because it was settled before. The answer says which: one bool per lease, in the order asked. PostgreSQL visits places
in their order, so that two batches do not wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from pgqrs_core.arrays import numbers, texts
from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import ArchiveDisabled, NotPermitted, PgqrsError, ServerError, TableLocked
from pgqrs_core.headers import encode_reason
from pgqrs_core.logs import get_logger, message_fields
from pgqrs_core.messages import DEAD_LANE, MAX_SECONDS, Lease, Queue, check_number, encode_headers
from pgqrs_core.operations.enqueue import SOON, check_draft, is_soon, ring
from pgqrs_core.operations.settle_many import apply, in_rounds, named, settle_all
from pgqrs_core.operations.twins import renumber
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.events import Draft

__all__ = [
    "Failure",
    "Fate",
    "ack",
    "archive",
    "extend",
    "extend_unlocked",
    "is_of_one_row",
    "is_perhaps_of_one",
    "is_refusal_that_passes",
    "nack",
    "postpone",
    "release",
    "replace",
    "unlocked",
]

_log = get_logger("pgqrs.dead")

#: Characters of the reason that the log shows of a message that dies; all of it stands in the dead letter.
_LONGEST_REASON: Final = 1_000

Fate: TypeAlias = Literal["nacked", "dead", "lost"]


class Failure(msgspec.Struct, frozen=True):
    """A delivery that failed: after how many seconds to try again, why, whether to bury it at once, and which it was."""

    lease: Lease
    delay: float = 0.0
    error: dict[str, Any] | None = None
    bury: bool = False
    attempt: int | None = None


def is_refusal_that_passes(error: BaseException) -> bool:
    """Tell whether a settlement that failed is worth keeping: then its lease is renewed and it is tried again.

    A right that is missing counts: until somebody grants it, the message's next delivery could not be settled either.
    """
    return isinstance(error, NotPermitted) or (isinstance(error, PgqrsError) and error.retryable)


def is_perhaps_of_one(error: BaseException) -> bool:
    """Tell whether one message may be why several could not be settled: then they are to be settled apart."""
    return isinstance(error, Exception) and not (
        # A table that is missing is missing for all.
        isinstance(error, ServerError) and (error.sqlstate or "").startswith("42")
    )


def is_of_one_row(error: BaseException) -> bool:
    """Tell whether rows are locked by other sessions, so that the others can be settled without these."""
    return isinstance(error, TableLocked) and error.is_row


def ack(queue: Queue, leases: Sequence[Lease]) -> Op[list[bool]]:
    """Remove handled messages."""
    return settle_all("ack", queue, leases)


def archive(queue: Queue, leases: Sequence[Lease]) -> Op[list[bool]]:
    """Move handled messages to the archive.

    Raises:
        ArchiveDisabled: if the queue keeps none.
    """
    if not queue.options.archive:
        raise ArchiveDisabled(queue.name)
    return (yield from settle_all("archive", queue, leases))


def release(
    queue: Queue, leases: Sequence[Lease], doorbell: Doorbell | None = None, *, counts: bool = False
) -> Op[list[bool]]:
    """Give messages back at once, in their old places; the attempt does not count unless it ``counts``."""
    kept = yield from settle_all("release", queue, leases, lambda _: {"refund": 0 if counts else 1})
    if any(kept):
        yield from ring(queue, doorbell, sum(kept))
    return kept


def postpone(queue: Queue, leases: Sequence[Lease], errors: Sequence[dict[str, Any]]) -> Op[list[bool]]:
    """Give messages back that this consumer does not know how to handle, for one that does; the attempt does not count.

    They are due after half their age, within 1 to 60 seconds, and keep ``errors``, one for each, as their last errors.
    """
    reasons = dict(zip(leases, errors))

    def more(chosen: Sequence[Lease]) -> dict[str, object]:
        return {"errors": texts(encode_reason(reasons[lease]) for lease in chosen)}

    return (yield from settle_all("postpone", queue, leases, more))


def extend(queue: Queue, leases: Sequence[Lease], seconds: float) -> Op[list[bool]]:
    """Let leases run for ``seconds`` from now (0.1 to 43,200)."""
    check_number("lock_time", seconds, 0.1, 43_200)
    return (yield from settle_all("extend", queue, leases, lambda _: {"lease": float(seconds)}))


def extend_unlocked(queue: Queue, leases: Sequence[Lease], seconds: float) -> Op[list[bool | None]]:
    """Extend those whose rows no other session has locked; None for the others, whose leases are still held."""
    free = yield from _found("unlocked", queue, leases)
    held = yield from _found("locate", queue, leases)
    chosen = [lease for lease in leases if lease in free]
    kept = dict(zip(chosen, (yield from extend(queue, chosen, seconds))))
    return [kept.get(lease, None if lease in held else False) for lease in leases]


def unlocked(queue: Queue, leases: Sequence[Lease]) -> Op[list[bool]]:
    """Tell which are held and have rows that no other session has locked: these can be settled without the others."""
    free = yield from _found("unlocked", queue, leases)
    return [lease in free for lease in leases]


def _found(name: str, queue: Queue, leases: Sequence[Lease]) -> Op[set[Lease]]:
    found: set[Lease] = set()
    for group in in_rounds(leases):
        rows = yield Execute(queries[name], named(group), queue)
        ids = {row[0] for row in rows}
        found.update(lease for lease in group if lease.message_id in ids)
    return found


def nack(queue: Queue, failures: Sequence[Failure], doorbell: Doorbell | None = None) -> Op[list[Fate]]:
    """Give failed messages back after their delays, or bury those told to or without attempts left.

    Each message that dies is logged here, whichever adapter it dies in.
    """
    for failure in failures:
        check_number("delay", failure.delay, 0, MAX_SECONDS)
    by_lease = {failure.lease: failure for failure in failures}

    def more(leases: Sequence[Lease]) -> dict[str, object]:
        chosen = [by_lease[lease] for lease in leases]
        return {
            "max_attempts": queue.options.max_attempts,
            "delays": numbers(float(failure.delay) for failure in chosen),
            "burials": numbers("t" if failure.bury else "f" for failure in chosen),
            "errors": texts(encode_reason(failure.error) for failure in chosen),
        }

    fates: dict[Lease, Fate] = {}
    for leases in in_rounds(by_lease):
        rows = yield from apply("nack", queue, leases, more)
        lanes: dict[int, int] = dict(rows)
        for lease in leases:
            if lease.message_id in lanes:
                fates[lease] = "dead" if lanes[lease.message_id] == DEAD_LANE else "nacked"
    for failure in failures:
        if fates.get(failure.lease) == "dead":
            _log_death(queue, failure)
    if soon := sum(fates.get(failure.lease) == "nacked" and failure.delay <= SOON for failure in failures):
        yield from ring(queue, doorbell, soon)
    return [fates.get(failure.lease, "lost") for failure in failures]


def _log_death(queue: Queue, failure: Failure) -> None:
    error = failure.error or {}
    reason = " ".join(f"{error.get('type', 'Rejected')}: {error.get('message', 'no reason was given')}".split())
    number, attempt = failure.lease.message_id, failure.attempt
    text = "message %d of queue %r is dead after attempt %s: %s"
    fields = message_fields(queue.name, number, attempt or 0)
    _log.error(text, number, queue.name, "?" if attempt is None else attempt, reason[:_LONGEST_REASON], extra=fields)


def replace(
    queue: Queue, lease: Lease, draft: Draft, doorbell: Doorbell | None = None, *, error: dict[str, Any] | None = None
) -> Op[bool]:
    """Put another message in the place of a claimed one: a retry that carries news, for instance.

    It is as if the one were acked and the other enqueued, in one statement; the attempts count anew, and ``error`` stands
    as the last error. False if the lease was lost; then nothing was changed.

    Raises:
        InvalidArgument, BodyTooLarge: as `enqueue`; the lease is still held.
    """
    check_draft(queue, draft)
    params = {
        "lane": lease.lane,
        "id": lease.message_id,
        "token": lease.token,
        "priority": draft.priority,
        "at": draft.at,
        "delay": draft.delay,
        "ttl": draft.ttl,
        "content_type": draft.content_type,
        "headers": encode_headers(draft.headers),
        "error": encode_reason(error),
        "body": draft.body,
    }
    rows = yield Execute(queries["replace"], params, queue)
    if not rows and (yield Execute(queries["locate"], named([lease]), queue)):
        # It is still held, so it has a twin where it is to go.
        renumbered = yield from renumber(queue, lease)
        if renumbered is not None:
            rows = yield Execute(queries["replace"], {**params, "id": renumbered.message_id}, queue)
    if rows and rows[0][1] and is_soon(draft):
        yield from ring(queue, doorbell)
    return bool(rows)
