"""Operations on the messages of ephemeral queues. At most once: what is taken is gone; there is no lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgqrs_core.arrays import ByteaArray, numbers, texts
from pgqrs_core.codecs import ANY_QUEUE
from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.errors import BodyTooLarge
from pgqrs_core.events import ConsumeBatch, Draft
from pgqrs_core.logs import get_logger
from pgqrs_core.marks import Marks, Seen
from pgqrs_core.messages import MAX_BODY_BYTES, Delivery, check_text, encode_headers
from pgqrs_kombu.plugin import ADAPTER
from pgqrs_kombu.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.codecs import CodecStack
    from pgqrs_core.plugins import Plugins

__all__ = ["Mail", "Sought", "post", "post_sealed", "post_to", "purge", "put_back", "receive", "size"]

_log = get_logger("pgqrs.kombu")

#: A message and the number of the queue it was taken from.
Mail = tuple[int, Delivery]

#: What the names of Kombu's mailboxes and their exchanges end with: of control messages, and of the answers to them.
_CONTROL: Final = ".pidbox"
#: All messages of an ephemeral queue have one low-water mark, whatever their priorities.
_LANE: Final = 0


class Sought(NamedTuple):
    """A queue to take from: its name, and where to start."""

    name: str
    marks: Marks


def post(draft: Draft, exchange: str, routing_key: str, channel: str) -> Op[tuple[str | None, int]]:
    """Deliver to every ephemeral queue that is bound and matches; return the exchange's type and how many these are."""
    params = {**_columns(draft), "exchange": exchange, "routing_key": routing_key, "channel": channel}
    kind, count = (yield Execute(queries["post"], params))[0]
    return kind, count


def post_to(draft: Draft, queue: str, channel: str) -> Op[int]:
    """Deliver to one ephemeral queue; return 1, or 0 when it does not exist."""
    rows = yield Execute(queries["post_to"], {**_columns(draft), "queue": queue, "channel": channel})
    count: int = rows[0][0]
    return count


def post_sealed(
    draft: Draft, exchange: str, routing_key: str, channel: str, codecs: CodecStack
) -> Op[tuple[str | None, int]]:
    """Deliver as `post` and `post_to` do, encoded for each ephemeral queue: a seal binds the one that it was made for.

    Args:
        draft: the message, not encoded yet.
        exchange: where it was published; empty for the queue of that name.
        routing_key: with which routing key, or the name of the queue.
        channel: where consumers listen.
        codecs: what encodes.

    Returns:
        The exchange's type, None if there is none, and the number of queues.
    """
    if exchange:
        rows = yield Execute(queries["recipients"], {"exchange": exchange, "routing_key": routing_key})
        kind = rows[0][0] if rows else None
        reached = [(number, name) for _, number, name in rows if number is not None]
    else:
        kind, reached = "direct", [tuple(row) for row in (yield Execute(queries["recipient"], {"queue": routing_key}))]
    if not reached:
        return kind, 0
    sealed = []
    for number, name in reached:
        one = copy(draft)
        codecs.encode([one], address=_address(number, name), names=_ruling((exchange, name) if exchange else (name,)))
        sealed.append(_columns(one))
    params = {
        **{column: sealed[0][column] for column in ("priority", "ttl", "content_type")},
        "queue_ids": numbers(number for number, _ in reached),
        "headers": texts(one["headers"] for one in sealed),
        "bodies": ByteaArray([one["body"] for one in sealed]),
        "channel": channel,
    }
    count: int = (yield Execute(queries["post_each"], params))[0][0]
    return kind, count


def receive(sought: Mapping[int, Sought], limit: int, plugins: Plugins) -> Op[list[Mail]]:
    """Remove up to ``limit`` messages of these queues, given by number; return them, each queue's in order.

    They are as plugins leave them: decrypted for instance, or not there.
    """
    starts = numbers(marks.start_of(_LANE) for _, marks in sought.values())
    rows: Rows = yield Execute(queries["take"], {"queue_ids": numbers(sought), "marks": starts, "limit": limit})
    full = len(rows) >= limit
    for number, (_, marks) in sought.items():
        # Who is served without priority was preceded by all that have one. In a full batch of others, nothing is known.
        passed = [row[1] for row in rows if row[0] == number and (row[2] <= 0 or not full)]
        marks.finish(Seen({_LANE: max(passed)}, rows[0][7], rows[0][8]) if passed else None, full=full)
    found = [(row[0], Delivery(0, row[1], 1, *row[2:7])) for row in sorted(rows, key=_age)]
    names = {number: [name] for number, (name, _) in sought.items()}
    if found and plugins.hooks.codecs.is_active:
        reached = numbers({number for number, _ in found})
        for number, exchange in (yield Execute(queries["exchanges_of"], {"queue_ids": reached})):
            names[number].append(exchange)
    return [(number, kept) for number, item in found for kept in _opened(number, names[number], item, plugins)]


def put_back(mail: Sequence[Mail], channel: str) -> Op[None]:
    """Return messages that nobody handled to their places."""
    if mail:
        deliveries = [delivery for _, delivery in mail]
        yield Execute(
            queries["put_back"],
            {
                "queue_ids": numbers(number for number, _ in mail),
                "mail_ids": numbers(delivery.id for delivery in deliveries),
                "priorities": numbers(delivery.priority for delivery in deliveries),
                "enqueued": texts(delivery.enqueued_at for delivery in deliveries),
                "content_types": texts(delivery.content_type for delivery in deliveries),
                # As they came: what was encrypted is not to be stored in the clear.
                "headers": texts(_stored(delivery)[0] for delivery in deliveries),
                "bodies": ByteaArray([_stored(delivery)[1] for delivery in deliveries]),
                "channel": channel,
            },
        )


def size(mailbox: int) -> Op[int]:
    """Return how many messages wait."""
    count: int = (yield Execute(queries["mail_size"], {"queue_id": mailbox}))[0][0]
    return count


def purge(mailbox: int) -> Op[int]:
    """Remove what waits; return how many messages that were."""
    count: int = (yield Execute(queries["purge_mail"], {"queue_id": mailbox}))[0][0]
    return count


def _columns(draft: Draft) -> dict[str, Any]:
    if len(draft.body) > MAX_BODY_BYTES:
        raise BodyTooLarge(draft.queue, len(draft.body), MAX_BODY_BYTES)
    check_text("content_type", draft.content_type)
    return {
        "priority": draft.priority,
        "ttl": draft.ttl,
        "content_type": draft.content_type,
        "headers": encode_headers(draft.headers),
        "body": draft.body,
    }


def _age(row: tuple[Any, ...]) -> tuple[Any, ...]:
    # By priority, and then as they came.
    return -int(row[2]), row[3], row[1]


def _stored(delivery: Delivery) -> tuple[str | None, bytes]:
    return delivery.stored or (delivery.raw_headers, delivery.body)


def _address(number: int, name: str) -> str:
    """Return what a seal binds of an ephemeral queue: no other one, nor a later one of the same name, has that."""
    return f"{name}\0{number}"


def _ruling(names: Sequence[str]) -> Sequence[str]:
    """Return the names by whose rules messages of an ephemeral queue are sealed: its own, and those of its exchanges.

    A control message may tell a worker to take from any other queue. So it must be sealed where messages of any queue must.
    """
    return [*names, ANY_QUEUE] if any(name.endswith(_CONTROL) for name in names) else names


def _opened(number: int, names: Sequence[str], delivery: Delivery, plugins: Plugins) -> list[Delivery]:
    """Return a message as plugins leave it. The queue it lies in decides what it must be, not what it says of itself."""
    queue, names = names[0], _ruling(names)
    if not plugins.hooks.concern_consume(queue, [delivery], names):
        return [delivery]
    batch = ConsumeBatch(queue, ADAPTER, [delivery], address=_address(number, queue), names=names)
    plugins.hooks.before_consume(batch)
    for _, reason in [*batch.buried, *batch.postponed]:
        # There are no dead letters of ephemeral queues, and no later.
        _log.warning("a message of the ephemeral queue %r is discarded: %s", queue, reason)
    return batch.deliveries
