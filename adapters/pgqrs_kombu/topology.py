"""Operations on exchanges, queues and bindings. What a broker of AMQP keeps in memory stands in tables here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pgqrs_core.arrays import numbers, texts
from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import QueueExists, QueueNotFound
from pgqrs_core.messages import Queue, QueueOptions, check_name
from pgqrs_core.operations.queues import create_queue, delete_queue, find_queue
from pgqrs_kombu.arguments import as_json, check_exchange, rules_of, seconds_of
from pgqrs_kombu.dead_letters import is_expired_kept, keep_expired
from pgqrs_kombu.errors import not_equivalent, not_found, unknown_type
from pgqrs_kombu.patterns import pattern_of
from pgqrs_kombu.sql import queries

__all__ = [
    "Declared",
    "bind",
    "declare_exchange",
    "declare_queue",
    "consumer_count",
    "delete_declared",
    "delete_exchange",
    "delete_if_left",
    "exchange_names",
    "find_declared",
    "forget",
    "leave",
    "list_bindings",
    "mailbox_queue",
    "migrated",
    "renew",
    "sweep_orphans",
    "unbind",
]

TYPES: Final = ("direct", "topic", "fanout")
#: Seconds without a consumer after which an exclusive or auto-delete queue goes whose process has died.
DESERTED: Final = 60.0


class Declared(NamedTuple):
    """What the broker knows of a queue: its number as a mailbox (None for a durable one), and its time to live."""

    name: str
    mailbox: int | None
    message_ttl: float | None


def declare_exchange(
    name: str, kind: str, *, durable: bool, auto_delete: bool, arguments: Mapping[str, Any] | None
) -> Op[None]:
    """Declare an exchange. One that exists must be declared in the same way.

    Raises:
        ChannelError: the type is unknown (503); or type, durability or auto_delete are not those of the exchange (406).
    """
    if kind not in TYPES:
        raise unknown_type(name, kind)
    check_exchange(arguments)
    check_name(name)
    # What is there already takes no right to declare it.
    found = yield Execute(queries["find_exchange"], {"name": name})
    if not found:
        rows = yield Execute(
            queries["declare_exchange"],
            {
                "name": name,
                "type": kind,
                "durable": durable,
                "auto_delete": auto_delete,
                "arguments": as_json(arguments),
            },
        )
        # Whoever declares the same at the same moment is not seen by the statement that lost.
        found = rows or (yield Execute(queries["find_exchange"], {"name": name}))
    if not found:
        return
    # Those that are there from the start are durable, and are declared either way.
    declared = (
        {"type": kind} if name.startswith("amq.") else {"type": kind, "durable": durable, "auto_delete": auto_delete}
    )
    for what, stored in zip(("type", "durable", "auto_delete"), found[0]):
        if declared.get(what, stored) != stored:
            raise not_equivalent("exchange", name, f"has {what}={stored!r}, and is declared with {declared[what]!r}")


def declare_queue(
    name: str,
    *,
    exclusive: bool,
    auto_delete: bool,
    arguments: Mapping[str, Any] | None,
    owner: int,
    options: QueueOptions,
) -> Op[Declared]:
    """Declare a queue, and make a durable one. What was declared before is replaced, but for the kind.

    Raises:
        ChannelError: it exists as a durable queue and is declared as an ephemeral one, or the other way (406).
    """
    arguments = arguments or {}
    expires = seconds_of(arguments, "x-expires")
    ephemeral = exclusive or auto_delete or expires is not None
    ttl = seconds_of(arguments, "x-message-ttl")
    rules = rules_of(arguments, ephemeral=ephemeral)
    check_name(name)
    if ephemeral or not (yield from _stands(name, ttl, as_json(arguments))):
        number, stored = yield from _declare(
            name,
            ephemeral=ephemeral,
            exclusive=exclusive,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
            arguments=as_json(arguments),
            message_ttl=ttl,
            expires=expires if expires is not None else DESERTED if ephemeral else None,
        )
        if stored != ephemeral:
            kinds = ("durable", "ephemeral (exclusive, auto_delete or x-expires)")
            raise not_equivalent("queue", name, f"is {kinds[stored]} and cannot be declared {kinds[ephemeral]}")
        if ephemeral:
            return Declared(name, number, ttl)
    try:
        yield from find_queue(name)
    except QueueNotFound:
        # Another program may make it at this moment, with other options, which are not a declaration's to change.
        with contextlib.suppress(QueueExists):
            yield from create_queue(name, options)
    if not (yield from is_expired_kept(name, rules.exchange is not None)):
        yield from keep_expired(name, rules.exchange is not None)
    return Declared(name, None, ttl)


def _stands(name: str, ttl: float | None, arguments: str | None) -> Op[bool]:
    """Tell whether a durable queue is declared like this already: that takes no right to declare one."""
    rows = yield Execute(queries["find_declared"], {"name": name})
    return bool(rows) and rows[0][1:] == (False, ttl, arguments)


def _declare(
    name: str,
    *,
    ephemeral: bool = False,
    exclusive: bool = False,
    auto_delete: bool = False,
    owner: int | None = None,
    arguments: str | None = None,
    message_ttl: float | None = None,
    expires: float | None = None,
) -> Op[tuple[int, bool]]:
    """Write a declaration; return the queue's number, and whether it is an ephemeral one by now."""
    params = {
        "name": name,
        "ephemeral": ephemeral,
        "exclusive": exclusive,
        "auto_delete": auto_delete,
        "owner": owner,
        "arguments": arguments,
        "message_ttl": message_ttl,
        "expires": expires,
    }
    number, stored = (yield Execute(queries["declare_queue"], params))[0]
    return number, stored


def find_declared(name: str) -> Op[Declared | None]:
    """Return what is known of a queue, one that was made by other means than Kombu's included."""
    rows = yield Execute(queries["find_declared"], {"name": name})
    if rows:
        number, ephemeral, ttl, _ = rows[0]
        return Declared(name, number if ephemeral else None, ttl)
    try:
        yield from find_queue(name)
    except QueueNotFound:
        return None
    return Declared(name, None, None)


def delete_declared(name: str, channel: str, *, if_unused: bool) -> Op[Declared | None]:
    """Delete a queue of either kind with its bindings and messages; None when there was none, or it is in use."""
    known = yield from find_declared(name)
    if known is None:
        return None
    gone = yield from forget([name], channel, if_unused=if_unused)
    if known.mailbox is None:
        try:
            yield from delete_queue(name)
        except QueueNotFound:
            return None
    elif not gone:
        return None
    return known


def forget(names: Sequence[str], channel: str, *, owner: int | None = None, if_unused: bool = False) -> Op[list[int]]:
    """Remove declarations, and what belongs to ephemeral queues; return the numbers of those."""
    params = {"names": texts(names), "owner": owner, "if_unused": if_unused, "channel": channel}
    rows = yield Execute(queries["forget_queue"], params)
    return [row[0] for row in rows if row[1]]


def delete_exchange(name: str, *, if_unused: bool) -> Op[None]:
    """Delete an exchange with its bindings."""
    yield Execute(queries["delete_exchange"], {"name": name, "if_unused": if_unused})


def bind(queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None, channel: str) -> Op[None]:
    """Bind a queue to an exchange. Repeating it changes nothing.

    Raises:
        NotFound: there is no such exchange, or no such queue.
    """
    params = {
        "queue": queue,
        "exchange": exchange,
        "routing_key": routing_key,
        "pattern": f"^(?:{pattern_of(routing_key)})$",
        "arguments": as_json(arguments),
        "channel": channel,
    }
    if (yield Execute(queries["is_bound"], {key: params[key] for key in params if key != "channel"})):
        return
    kind, bound, _ = (yield Execute(queries["bind"], params))[0]
    if kind is None:
        raise not_found("exchange", exchange)
    if bound:
        return
    if (yield from find_declared(queue)) is None:
        raise not_found("queue", queue)
    # A queue that was made by other means: it becomes known to the broker with its first binding.
    yield from _declare(queue)
    yield Execute(queries["bind"], params)


def unbind(queue: str, exchange: str, routing_key: str, channel: str) -> Op[None]:
    """Remove a binding; an auto-delete exchange goes with its last one."""
    yield Execute(
        queries["unbind"], {"queue": queue, "exchange": exchange, "routing_key": routing_key, "channel": channel}
    )


def delete_if_left(mailbox: int, channel: str) -> Op[None]:
    """Delete an auto-delete queue that nobody consumes any more."""
    rows = yield Execute(queries["auto_delete"], {"queue_id": mailbox})
    if rows:
        yield from forget([rows[0][0]], channel, if_unused=True)


def consumer_count(mailbox: int, *, but: int) -> Op[int]:
    """Return how many living processes consume from an ephemeral queue, beside the one with the number ``but``."""
    count: int = (yield Execute(queries["consumer_count"], {"queue_id": mailbox, "consumer": but}))[0][0]
    return count


def exchange_names() -> Op[list[str]]:
    """Return the names of all exchanges."""
    return [row[0] for row in (yield Execute(queries["exchange_names"]))]


def list_bindings() -> Op[list[tuple[str, str, str]]]:
    """Return queue, exchange and routing key of every binding."""
    return [tuple(row) for row in (yield Execute(queries["list_bindings"]))]


def renew(consumer: int, mailboxes: Sequence[int], seconds: float, schema: str) -> Op[set[int]]:
    """Say that this process lives and uses these mailboxes, and sweep; return those that still exist."""
    rows = yield Execute(
        queries["keep"],
        {"consumer": consumer, "queue_ids": numbers(mailboxes), "seconds": seconds, "schema": schema},
    )
    return {row[0] for row in rows if row[0] is not None}


def sweep_orphans() -> Op[None]:
    """Remove mail that was written while its queue was being deleted."""
    yield Execute(queries["sweep_orphans"])


def migrated() -> Op[list[int]]:
    """Return the versions of the transport's tables that are installed."""
    return [row[0] for row in (yield Execute(queries["migrated"]))]


def leave(consumer: int, mailboxes: Sequence[int]) -> Op[None]:
    """Use these mailboxes no more."""
    yield Execute(queries["leave"], {"consumer": consumer, "queue_ids": numbers(mailboxes)})


def mailbox_queue(number: int, name: str) -> Queue:
    """Return what stands for an ephemeral queue where wake-ups are concerned: its number, below zero."""
    return Queue(-number, name, "", QueueOptions())
