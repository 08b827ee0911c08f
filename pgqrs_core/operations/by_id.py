"""Single messages, found by their ids whatever their state: for people who look for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import CLAIM_LANES, DEAD_LANE, InspectedMessage, Queue, check_number, show_headers
from pgqrs_core.sql import queries

__all__ = ["Deleted", "delete_messages", "show_message"]

_LANES: Final = numbers([*CLAIM_LANES, DEAD_LANE])
_MOST_IDS: Final = 1_000
_LARGEST: Final = 2**63 - 1


class Deleted(NamedTuple):
    """What became of messages that were to be deleted: those that were, and those that stay since a consumer holds them."""

    deleted: list[int]
    in_flight: list[int]


def show_message(queue: Queue, message_id: int) -> Op[InspectedMessage | None]:
    """Return one message without claiming it, or None if the queue does not hold it."""
    check_number("message_id", message_id, 0, _LARGEST, whole=True)
    rows = yield Execute(queries["show_message"], {"lanes": _LANES, "id": message_id}, queue)
    if not rows:
        return None
    row: tuple[Any, ...] = rows[0]
    return InspectedMessage(*(*row[:9], show_headers(row[9]), show_headers(row[10]), row[11]))


def delete_messages(queue: Queue, ids: Sequence[int], *, in_flight: bool = False) -> Op[Deleted]:
    """Remove messages for good, up to 1,000, whatever their state.

    Args:
        queue: the queue.
        ids: which messages.
        in_flight: whether also those that a consumer holds; it finds its lease lost when it settles.

    Raises:
        InvalidArgument: an id is none, or there are too many.
    """
    check_number("number of ids", len(ids), 0, _MOST_IDS, whole=True)
    for one in ids:
        check_number("message_id", one, 0, _LARGEST, whole=True)
    params = {"lanes": _LANES, "ids": numbers(ids)}
    gone = {row[0] for row in (yield Execute(queries["delete_messages"], {**params, "held": in_flight}, queue))}
    left = numbers([one for one in ids if one not in gone])
    held = set()
    if len(gone) < len(set(ids)):
        held = {row[0] for row in (yield Execute(queries["find_messages"], {**params, "ids": left}, queue))}
    return Deleted([one for one in ids if one in gone], [one for one in ids if one in held])
