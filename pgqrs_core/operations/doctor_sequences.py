"""Whether sequences are beyond the ids that they have given: a part of the examination, see `doctor`.

A sequence is behind where a backup was restored beside newer tables, after a switch-over by logical replication, which
copies no sequences, and after TRUNCATE ... RESTART IDENTITY. The ids that it gives then exist already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.operations.findings import Finding
from pgqrs_core.operations.many import ask_all
from pgqrs_core.operations.queues import list_queues
from pgqrs_core.operations.vitals import table_facts
from pgqrs_core.pasting import advance_sequence, identifier, literal
from pgqrs_core.sql import queries

__all__ = ["sequences"]

#: Findings that somebody will read.
_MOST: Final = 30


def sequences(schema: str) -> Op[list[Finding]]:
    """Compare each sequence with the ids of its table, its archive and its idempotency keys."""
    found = list(_judge_numbers(schema, *(yield Execute(queries["queue_numbers"]))[0]))
    tables = {one.table for one in (yield from table_facts(schema))}
    queues = [queue for queue in (yield from list_queues()) if f"q_{queue.suffix}" in tables]
    rows, failed = yield from ask_all(queries["highest_ids"], {}, queues)
    archiving = [queue for queue in queues if queue.options.archive and queue.id not in failed]
    archived, _ = yield from ask_all(queries["highest_archived"], {}, archiving)
    keyed = yield Execute(queries["highest_keyed"])
    last = {number: value for number, _, value in rows}
    highest: dict[int, tuple[int, str]] = {}
    kinds = (
        ("in the queue", ((row[0], row[1]) for row in rows)),
        ("in its archive", iter(archived)),
        ("of an idempotency key", iter(keyed)),
    )
    for where, pairs in kinds:
        for number, message_id in pairs:
            if message_id is not None:
                highest[number] = max(highest.get(number, (0, "")), (message_id, where))
    for queue in queues:
        if queue.id in failed:
            summary = f"the sequence of queue {queue.name!r} cannot be compared with its ids: {failed[queue.id]}"
            found.append(Finding("sequences", "warn", summary))
        elif queue.id in highest and highest[queue.id][0] > (last.get(queue.id) or 0):
            message_id, where = highest[queue.id]
            summary = (
                f"the sequence of queue {queue.name!r} is behind: the last id that it gave is {last.get(queue.id) or 0:,}, "
                f"and there is {message_id:,} {where}"
            )
            remedy = "New messages get ids that exist, and some cannot be enqueued. Set it forward."
            found.append(Finding("sequences", "fail", summary, remedy, (advance_sequence(schema, queue),)))
    if len(found) > _MOST:
        found[_MOST:] = [Finding("sequences", "fail", f"{len(found) - _MOST:,} more sequences are behind")]
    return found or [Finding("sequences", "ok", "the sequences are beyond all ids that they have given")]


def _judge_numbers(schema: str, highest: int | None, last: int) -> Iterator[Finding]:
    if highest is None or highest <= last:
        return
    table = identifier(schema, "queues")
    statement = f"select setval(pg_get_serial_sequence({literal(table)}, 'queue_id'), {highest});"
    summary = f"the sequence of the numbers of queues is behind: it gave {last:,} last, and queue {highest:,} exists"
    remedy = "The next queue that is created sets it forward; or do so now."
    yield Finding("sequences", "warn", summary, remedy, (statement,))
