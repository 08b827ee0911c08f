"""Putting messages in: one, many alike, or many that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from pgqrs_core.arrays import ByteaArray, numbers, texts
from pgqrs_core.doorbell import notification, sleepers_for
from pgqrs_core.effects import Execute, Op, Rows, Transact
from pgqrs_core.errors import BodyTooLarge, EnqueueUnknown, InvalidArgument, PgqrsError, Unavailable
from pgqrs_core.messages import (
    MAX_PRIORITY,
    MAX_SECONDS,
    Queue,
    check_key,
    check_number,
    check_text,
    delayed_lane,
    encode_headers,
)
from pgqrs_core.operations.queues import find_queue
from pgqrs_core.sql import Query, queries
from pgqrs_core.weights import in_parts

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.events import Draft

__all__ = ["SOON", "check_draft", "enqueue", "is_soon", "key_hash", "ring", "ring_all"]

#: Seconds of delay up to which sleeping consumers are told of a delayed message; their own polling learns of later ones.
SOON: Final = 2.0

#: The longest name of a type of content, in characters.
MAX_CONTENT_TYPE: Final = 255
#: Times that a message may become due at; the database's rules for producers are the same, see migrations/grants.sql.
_FIRST: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST: Final = datetime.max.replace(tzinfo=timezone.utc)

#: The statements that store, for messages none of which must be on disk at once.
_RELAXED: Final = {
    name: Query(query.name, query.text, query.flags | {"relaxed"})
    for name, query in queries.items()
    if name.startswith("enqueue_")
}


def enqueue(queue: Queue, drafts: Sequence[Draft], doorbell: Doorbell | None = None) -> Op[list[int]]:
    """Store messages and return their ids in order.

    All of them or none. Of those with an idempotency key that the queue knows, or that occurs before in ``drafts``, the id
    is that of the message stored first, and nothing more is stored. If no draft is ``durable`` the commit does not wait for
    the disk.

    With a ``doorbell``, sleeping consumers are woken after the commit; without one (inside the caller's transaction, whose
    commit a NOTIFY would make hold a database-wide lock) that is the driver's to do, and else their polling finds them.

    Raises:
        InvalidArgument: a priority, delay, time to live or key is out of range, or a time has no zone; nothing was stored.
        BodyTooLarge: a body is over the queue's limit; nothing was stored.
        EnqueueUnknown: the connection broke while the commit was on its way.
    """
    if not drafts:
        return []
    if len(drafts) > 1 and len(parts := in_parts(drafts)) > 1:
        return (yield from _enqueue_parts(queue, parts, doorbell))
    keys = 0
    durable = False
    for draft in drafts:
        check_draft(queue, draft)
        durable = durable or draft.durable
        if draft.idempotency_key is not None:
            keys += 1
    now = 0.0 if doorbell is None else doorbell.clock()
    asks = doorbell is None or not doorbell.knows(queue.id, now)
    statement = _insert_keyed(queue, drafts) if keys else _insert(queue, drafts, asks=asks)
    if doorbell is None and _any_soon(drafts):
        statement = replace(statement, tells=True)
    try:
        rows = yield statement if durable else replace(statement, query=_RELAXED[statement.query.name])
    except Unavailable as error:
        if error.in_flight and doorbell is not None:
            unknown = EnqueueUnknown(queue.name, str(error), target=error.target, keyed=keys == len(drafts))
            raise unknown from error
        raise
    if not rows and (anew := (yield from find_queue(queue.name))).id != queue.id:
        # The keys would be hashed with a number that is no longer the queue's.
        return (yield from enqueue(anew, drafts, doorbell))
    if rows[0][1]:
        if soon := sum(map(is_soon, drafts)):
            yield from ring(queue, doorbell, soon)
    elif asks and doorbell is not None:
        doorbell.learn(queue.id, now)
    return _ids_by_key(queue, drafts, rows) if keys else [row[0] for row in rows]


def _enqueue_parts(queue: Queue, parts: Sequence[Sequence[Draft]], doorbell: Doorbell | None) -> Op[list[int]]:
    """Store what is too large for one statement, in one transaction."""
    drafts = [draft for part in parts for draft in part]
    for draft in drafts:
        check_draft(queue, draft)

    def store() -> Op[list[int]]:
        ids: list[int] = []
        for part in parts:
            ids += yield from enqueue(queue, part)
        return ids

    try:
        stored: list[int] = yield Transact(store)
    except Unavailable as error:
        if error.in_flight and doorbell is not None:
            keyed = all(draft.idempotency_key is not None for draft in drafts)
            raise EnqueueUnknown(queue.name, str(error), target=error.target, keyed=keyed) from error
        raise
    if _any_soon(drafts):
        yield from ring(queue, doorbell, len(drafts))
    return stored


def ring(queue: Queue, doorbell: Doorbell | None, count: int = 1) -> Op[None]:
    """Wake processes that sleep on ``queue``, where ``count`` messages are new. Never fails: polls make up for it."""
    if doorbell is not None and doorbell.may_ring(queue.id):
        try:
            yield notification(queue.id, sleepers_for(count))
        except PgqrsError:
            doorbell.failed()


def ring_all(news: Collection[tuple[Queue, int]], doorbell: Doorbell) -> Op[None]:
    """Wake processes that sleep on queues, in each of which so many messages are new. Never fails."""
    for queue, count in news:
        yield from ring(queue, doorbell, count)


def check_draft(queue: Queue, draft: Draft) -> None:
    """Raise unless ``draft`` may be stored in ``queue``."""
    if len(draft.body) > queue.options.max_body_bytes:
        raise BodyTooLarge(queue.name, len(draft.body), queue.options.max_body_bytes)
    if type(draft.priority) is not int or not 0 <= draft.priority <= MAX_PRIORITY:
        check_number("priority", draft.priority, 0, MAX_PRIORITY, whole=True)
    if draft.delay is not None:
        check_number("delay", draft.delay, 0, MAX_SECONDS)
    if draft.at is not None:
        _check_time(draft.at)
    if draft.ttl is not None:
        check_number("ttl", draft.ttl, 0, MAX_SECONDS, above=True)
    check_text("content_type", draft.content_type)
    if len(draft.content_type) > MAX_CONTENT_TYPE:
        raise InvalidArgument("content_type", draft.content_type, f"at most {MAX_CONTENT_TYPE} characters long")
    if draft.idempotency_key is not None:
        check_key(draft.idempotency_key)


def _check_time(at: object) -> None:
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise InvalidArgument("at", at, "a datetime with a time zone")
    if not _FIRST <= at <= _LAST:
        raise InvalidArgument("at", at, "a time from 1970 to 9999 in UTC")


def is_soon(draft: Draft) -> bool:
    """Tell whether sleeping consumers are to be told of a message."""
    return draft.at is not None or (draft.delay or 0) <= SOON


def _any_soon(drafts: Sequence[Draft]) -> bool:
    return any(map(is_soon, drafts))


def _lane(draft: Draft) -> int:
    delayed = draft.delay or draft.at is not None
    return delayed_lane(draft.priority) if delayed else draft.priority


def _common(draft: Draft) -> dict[str, object]:
    return {
        "lane": _lane(draft),
        "priority": draft.priority,
        "at": draft.at,
        "delay": draft.delay or None,
        "ttl": draft.ttl,
        "content_type": draft.content_type,
        "headers": encode_headers(draft.headers),
    }


def _insert(queue: Queue, drafts: Sequence[Draft], *, asks: bool = True) -> Execute:
    first = drafts[0]
    if len(drafts) == 1:
        if not first.delay and first.at is None and first.ttl is None:
            params = {
                "priority": first.priority,
                "content_type": first.content_type,
                "headers": encode_headers(first.headers),
                "body": first.body,
            }
            return Execute(queries["enqueue_plain" if asks else "enqueue_unasked"], params, queue)
        return Execute(queries["enqueue_one"], {**_common(first), "body": first.body}, queue)
    if _are_alike(drafts):
        bodies = ByteaArray([draft.body for draft in drafts])
        return Execute(queries["enqueue_alike"], {**_common(first), "bodies": bodies}, queue)
    return Execute(queries["enqueue_mixed"], _columns(drafts), queue)


def _insert_keyed(queue: Queue, drafts: Sequence[Draft]) -> Execute:
    first: dict[object, Draft] = {}
    for place, draft in enumerate(drafts):
        # Those without a key are told apart by their places, which no key equals.
        first.setdefault(place if draft.idempotency_key is None else draft.idempotency_key, draft)
    distinct = list(first.values())
    keys = texts(
        None if draft.idempotency_key is None else f"\\x{key_hash(queue, draft.idempotency_key).hex()}"
        for draft in distinct
    )
    params: dict[str, object] = {**_columns(distinct), "keys": keys}
    # The function computes the lanes.
    del params["lanes"]
    return Execute(queries["enqueue_keyed"], params, queue)


def key_hash(queue: Queue, key: str) -> bytes:
    """Return what is stored of an idempotency key: the SHA-256 of the queue's number, a colon and the key."""
    return hashlib.sha256(f"{queue.id}:{key}".encode()).digest()


def _ids_by_key(queue: Queue, drafts: Sequence[Draft], rows: Rows) -> list[int]:
    """Return the ids in the order of the drafts; rows name those of keys by the hash, and hold the others in order."""
    known = {bytes(row[2]): row[0] for row in rows if row[2] is not None}
    others = iter([row[0] for row in rows if row[2] is None])
    return [
        next(others) if draft.idempotency_key is None else known[key_hash(queue, draft.idempotency_key)]
        for draft in drafts
    ]


def _columns(drafts: Sequence[Draft]) -> dict[str, object]:
    return {
        "lanes": numbers(map(_lane, drafts)),
        "priorities": numbers(draft.priority for draft in drafts),
        "ats": texts(draft.at for draft in drafts),
        "delays": texts(draft.delay or None for draft in drafts),
        "ttls": texts(draft.ttl for draft in drafts),
        "content_types": texts(draft.content_type for draft in drafts),
        "headers": texts(encode_headers(draft.headers) for draft in drafts),
        "bodies": ByteaArray([draft.body for draft in drafts]),
    }


def _are_alike(drafts: Sequence[Draft]) -> bool:
    """Tell whether drafts differ in their bodies alone."""
    one = drafts[0]
    shape = _shape(one)
    if any(_shape(draft) != shape for draft in drafts):
        return False
    if all(draft.headers is one.headers for draft in drafts):
        return True
    # Compared as text: to Python {"n": 1} and {"n": True} are equal.
    headers = encode_headers(one.headers)
    return all(encode_headers(draft.headers) == headers for draft in drafts)


def _shape(draft: Draft) -> tuple[object, ...]:
    return (draft.priority, draft.delay, draft.at, draft.ttl, draft.content_type)
