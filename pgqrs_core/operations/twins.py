"""Messages with the same id: another id for the one that cannot go where the other is.

Ids are unique in a lane, by the primary key. Two messages in different lanes may have the same id after an asynchronous
failover, where a backup was restored beside what had been sent since, or in installations whose producers once chose ids.
What moves a message passes by one that has such a twin where it is to go, so the others of its batch move. Here it gets
the next id of its queue, and then moves as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op, Rows, Transact
from pgqrs_core.errors import MessageIdsCollide
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Lease, Queue
from pgqrs_core.sql import queries

__all__ = ["renumber", "renumber_free"]

_log = get_logger("pgqrs.twins")

#: How many ids are drawn for one message where the sequence is behind, and the ids that it gives are taken, too.
_TRIES: Final = 3


def renumber(queue: Queue, lease: Lease) -> Op[Lease | None]:
    """Give a message that has a twin another id. Return its lease under that id; None if it was lost or got none.

    It never fails because ids collide: that must not fail what the others of a batch are told.
    """
    params = {"lane": lease.lane, "id": lease.message_id, "token": lease.token}
    for _ in range(_TRIES):
        try:
            # In a transaction, ours or the caller's, a collision must not end it.
            rows: Rows = yield Transact(partial(_execute, queue, "renumber", params))
        except MessageIdsCollide as error:
            _log.error(
                "message %d of queue %r has a twin and gets no other id: %s", lease.message_id, queue.name, error
            )
            continue
        if not rows:
            return None
        number, place = rows[0]
        _log.warning(
            "message %d of queue %r has a twin, another message with this id: it goes on as message %d",
            lease.message_id,
            queue.name,
            number,
        )
        return replace(lease, message_id=number, place=place)
    return None


def renumber_free(queue: Queue, places: Sequence[tuple[int, int]]) -> Op[list[tuple[int, int]]]:
    """Give those of these messages, by lane and id, other ids that have twins and that nobody holds; return them.

    Raises:
        MessageIdsCollide: the sequence is behind, too.
    """
    lanes, ids = (numbers(column) for column in zip(*places))
    rows = yield Execute(queries["renumber_free"], {"lanes": lanes, "ids": ids}, queue)
    if rows:
        text = "%d messages of queue %r had twins, other messages with their ids: they have new ids"
        _log.warning(text, len(rows), queue.name)
    return [(lane, number) for lane, number in rows]


def _execute(queue: Queue, name: str, params: dict[str, int]) -> Op[Rows]:
    rows: Rows = yield Execute(queries[name], params, queue)
    return rows
