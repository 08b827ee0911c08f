"""What falls out of a queue, as RabbitMQ passes it on: to the queue's dead-letter exchange, with its history.

Three things make a message fall: its time to live, a rejection (or too many deliveries), and the queue's greatest length.
It stays in its queue, expired or dead, until it is moved: removed there and stored where the exchange routes it, in one
transaction. So it is neither lost nor doubled, whoever moves it and whoever is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pgqrs_core.arrays import numbers
from pgqrs_core.codecs import ENCODING, names_in
from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.events import ConsumeBatch
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Delivery, Queue, decode_headers
from pgqrs_core.operations.twins import renumber_free
from pgqrs_kombu.arguments import Rules, rules_of
from pgqrs_kombu.envelope import message_of
from pgqrs_kombu.plugin import ADAPTER
from pgqrs_kombu.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = [
    "Fallen",
    "beyond_length",
    "dead_lettered",
    "fallen",
    "is_expired_kept",
    "keep_expired",
    "lacking",
    "may_go_to",
    "opened",
    "put_aside",
    "queues_with_rules",
    "take_out",
]

_log = get_logger("pgqrs.kombu")

_REASONS: Final = {"MaxLength": "maxlen", "AttemptsExhausted": "delivery_limit"}
_DEATHS: Final = "x-death"


class Fallen(NamedTuple):
    """A message that has fallen out of its queue, and why: ``expired``, ``rejected``, ``maxlen``, ``delivery_limit``."""

    delivery: Delivery
    reason: str


def queues_with_rules() -> Op[dict[str, Rules]]:
    """Return the durable queues with a dead-letter exchange or a greatest length."""
    rows = yield Execute(queries["with_rules"])
    found: dict[str, Rules] = {}
    for name, arguments in rows:
        try:
            found[name] = rules_of(msgspec.json.decode(arguments))
        except (InvalidArgument, msgspec.DecodeError, AttributeError, RecursionError) as error:
            # Written by other means than a declaration. The rules of the other queues hold.
            _log.warning("the arguments of queue %r are ignored: %s", name, error)
    return found


def is_expired_kept(name: str, keep: bool) -> Op[bool]:
    """Tell whether it is said already, as wanted, whether expired messages of a queue are kept."""
    return bool((yield Execute(queries["is_expired_kept"], {"name": name, "keep": keep})))


def keep_expired(name: str, keep: bool) -> Op[None]:
    """Say whether expired messages of a queue are kept until they are moved."""
    yield Execute(queries["keep_expired"], {"name": name, "keep": keep})


def fallen(queue: Queue, limit: int, seconds: float) -> Op[list[Fallen]]:
    """Return up to ``limit`` messages that have expired, and as many that died in the last ``seconds``."""
    rows = yield Execute(queries["fallen"], {"limit": limit, "seconds": seconds}, queue)
    found = [
        Fallen(Delivery(*row[:8]), "expired" if row[8] is None else _REASONS.get(row[8], "rejected")) for row in rows
    ]
    # They are told apart by their ids from here on: of two with the same id one is moved now, and the other one next.
    return list({one.delivery.id: one for one in reversed(found)}.values())[::-1]


def beyond_length(queue: Queue, length: int, limit: int) -> Op[list[tuple[int, int]]]:
    """Return lane and id of the oldest ready messages beyond the queue's length."""
    rows = yield Execute(queries["beyond_length"], {"length": length, "limit": limit}, queue)
    return [(lane, number) for lane, number in rows]


def take_out(queue: Queue, places: Iterable[tuple[int, int]]) -> Op[set[int]]:
    """Remove messages, given by lane and id, that nobody holds; return the ids of those."""
    rows = yield Execute(queries["take_out"], _places(places), queue)
    return {row[0] for row in rows}


def put_aside(queue: Queue, places: Iterable[tuple[int, int]], kind: str, reason: str) -> Op[set[int]]:
    """Make dead letters of messages that nobody holds; return the ids of those."""
    error = msgspec.json.encode({"type": kind, "message": reason}).decode()
    wanted = list(places)
    rows = yield Execute(queries["put_aside"], {**_places(wanted), "error": error}, queue)
    done = {row[0] for row in rows}
    missed = [place for place in wanted if place[1] not in done]
    # A message that has a twin among the dead goes there under another id.
    if missed and (renumbered := (yield from renumber_free(queue, missed))):
        rows = yield Execute(queries["put_aside"], {**_places(renumbered), "error": error}, queue)
        done |= {row[0] for row in rows}
    return done


def _places(places: Iterable[tuple[int, int]]) -> dict[str, Any]:
    pairs = list(places)
    return {"lanes": numbers(lane for lane, _ in pairs), "ids": numbers(number for _, number in pairs)}


def opened(queue: str, found: Sequence[Fallen], plugins: Plugins) -> list[Fallen]:
    """Return messages as plugins and codecs leave them; those that they refuse are missing."""
    deliveries = [one.delivery for one in found]
    if not plugins.hooks.concern_consume(queue, deliveries):
        return list(found)
    reasons = {one.delivery.id: one.reason for one in found}
    batch = ConsumeBatch(queue, ADAPTER, deliveries)
    plugins.hooks.before_consume(batch)
    return [Fallen(delivery, reasons[delivery.id]) for delivery in batch.deliveries]


def lacking(one: Fallen, required: Iterable[str]) -> list[str]:
    """Return which of these codecs a message, as it was found in its queue, had not been encoded with."""
    headers, _ = one.delivery.stored or (None, b"")
    there = names_in(decode_headers(headers).get(ENCODING))
    return [name for name in required if name not in there]


def dead_lettered(queue: str, one: Fallen, rules: Rules) -> tuple[dict[str, Any], str]:
    """Return a message as it is published anew, with its history in ``x-death``, and its routing key."""
    message = message_of(one.delivery, queue)
    properties, headers = message["properties"], message["headers"]
    info = properties.pop("delivery_info", {})
    exchange, routing_key = str(info.get("exchange") or ""), str(info.get("routing_key") or "")
    death: dict[str, Any] = {
        "count": 1,
        "reason": one.reason,
        "queue": queue,
        "time": datetime.now(timezone.utc).isoformat(),
        "exchange": exchange,
        "routing-keys": [routing_key],
    }
    # It must not expire again, and in its next queue perhaps at once.
    expiration = properties.pop("expiration", None)
    if expiration is not None:
        death["original-expiration"] = str(expiration)
    deaths = []
    for earlier in _deaths(headers):
        if (earlier.get("queue"), earlier.get("reason")) == (queue, one.reason):
            before = earlier.get("count")
            # Headers are what any client wrote.
            death = {**earlier, "count": (before if isinstance(before, int) else 0) + 1}
        else:
            deaths.append(earlier)
    headers[_DEATHS] = [death, *deaths]
    for name, value in (("reason", one.reason), ("queue", queue), ("exchange", exchange)):
        headers.setdefault(f"x-first-death-{name}", value)
        headers[f"x-last-death-{name}"] = value
    return message, routing_key if rules.routing_key is None else rules.routing_key


def may_go_to(queue: str, message: Mapping[str, Any], reason: str) -> bool:
    """Tell whether a message may go to a queue: not if it has been there and went round without a rejection."""
    deaths = _deaths(message["headers"])
    return (
        reason == "rejected"
        or all(death.get("queue") != queue for death in deaths)
        or any(death.get("reason") == "rejected" for death in deaths)
    )


def _deaths(headers: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = headers.get(_DEATHS)
    return [death for death in found if isinstance(death, dict)] if isinstance(found, list) else []
