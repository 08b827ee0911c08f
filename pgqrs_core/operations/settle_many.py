"""Running a settling statement on many leases: in rounds, and again for rows that have moved or messages with twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import structs

from pgqrs_core.arrays import numbers, places
from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.messages import Lease, Queue
from pgqrs_core.operations.twins import renumber
from pgqrs_core.sql import queries

__all__ = ["apply", "in_rounds", "named", "settle_all"]

#: What puts a message into another lane, where a message with the same id may be in its way.
_MOVES: Final = frozenset({"nack", "release", "postpone"})

#: How often a row is located anew that moves between two statements, because its lease is being extended.
_TRIES: Final = 5


def settle_all(
    name: str,
    queue: Queue,
    leases: Sequence[Lease],
    more: Callable[[Sequence[Lease]], dict[str, object]] | None = None,
) -> Op[list[bool]]:
    """Run the statement of this name on all leases; return which were still held, in the order asked.

    ``more`` returns the parameters that belong to the leases of one round.
    """
    kept: set[Lease] = set()
    for group in in_rounds(leases):
        ids = {row[0] for row in (yield from apply(name, queue, group, more))}
        if len(ids) == len(leases):
            return [True] * len(leases)
        kept.update(group if len(ids) == len(group) else (lease for lease in group if lease.message_id in ids))
    return [lease in kept for lease in leases]


def apply(
    name: str,
    queue: Queue,
    leases: Sequence[Lease],
    more: Callable[[Sequence[Lease]], dict[str, object]] | None,
) -> Op[Rows]:
    """Run one statement on the leases of a round; return its answers, by the ids that were asked for."""
    rows: Rows = yield _statement(name, queue, leases, leases, more)
    if len(rows) == len(leases):
        return rows
    # By the lease as it is now, which may be at another place, the one that was asked for.
    asked = {lease: lease for lease in leases}
    found: list[tuple[Any, ...]] = []
    for left in reversed(range(_TRIES)):
        by_id = {lease.message_id: lease for lease in asked}
        found += [(asked.pop(by_id[number]).message_id, *rest) for number, *rest in rows]
        if asked and left:
            asked = yield from _located(name, queue, asked)
        if not (asked and left):
            break
        rows = yield _statement(name, queue, list(asked), list(asked.values()), more)
    return found


def _statement(
    name: str,
    queue: Queue,
    leases: Sequence[Lease],
    originals: Sequence[Lease],
    more: Callable[[Sequence[Lease]], dict[str, object]] | None,
) -> Execute:
    params = named(leases)
    params["places"] = places([lease.place for lease in leases])
    if more is not None:
        params.update(more(originals))
    return Execute(queries[name], params, queue)


def _located(name: str, queue: Queue, asked: dict[Lease, Lease]) -> Op[dict[Lease, Lease]]:
    """Return those that are still held, as they are now, in the order of their ids."""
    rows = yield Execute(queries["locate"], named(list(asked)), queue)
    known: dict[int, str] = dict(rows)
    held: dict[Lease, Lease] = {}
    for lease, original in asked.items():
        place = known.get(lease.message_id)
        if place is None:
            continue
        now: Lease | None = structs.replace(lease, place=place)
        if place == lease.place and name in _MOVES:
            # It has not moved since, so it was passed by.
            now = yield from renumber(queue, lease)
        if now is not None:
            held[now] = original
    return dict(sorted(held.items(), key=lambda pair: _key(pair[0])))


def named(leases: Sequence[Lease]) -> dict[str, object]:
    """Return the parameters that name leases."""
    return {
        "lanes": numbers([lease.lane for lease in leases]),
        "ids": numbers([lease.message_id for lease in leases]),
        "tokens": numbers([lease.token for lease in leases]),
    }


def in_rounds(leases: Iterable[Lease]) -> list[list[Lease]]:
    """Sort leases by id, in rounds in which no id occurs twice: an answer names the id only.

    A second lease on the same id is a stale one, kept by somebody who was overtaken.
    """
    # Zero is the token of a message that no consumer holds.
    held = [lease for lease in leases if lease.token]
    if len({lease.message_id for lease in held}) == len(held):
        return [sorted(held, key=_key)] if held else []
    distinct = sorted(set(held), key=_key)
    rounds: list[list[Lease]] = []
    while distinct:
        chosen = {lease.message_id: lease for lease in distinct}
        if len(chosen) == len(distinct):
            rounds.append(distinct)
            break
        rounds.append(sorted(chosen.values(), key=_key))
        taken = set(rounds[-1])
        distinct = [lease for lease in distinct if lease not in taken]
    return rounds


def _key(lease: Lease) -> tuple[int, int]:
    return lease.message_id, lease.lane
