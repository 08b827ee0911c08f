"""Whether queues hold messages that no producer may add now: a part of the examination, see `doctor`.

An upgrade leaves such rows alone, and the owner of the tables can still write them. Nothing fails because of them, but
some are never delivered.
"""

from __future__ import annotations

from typing import Final

from pgqrs_core.effects import Op
from pgqrs_core.messages import Queue
from pgqrs_core.operations.findings import Finding
from pgqrs_core.operations.many import ask_all
from pgqrs_core.operations.queues import list_queues
from pgqrs_core.operations.vitals import table_facts
from pgqrs_core.pasting import identifier
from pgqrs_core.sql import queries

__all__ = ["rules"]

#: Findings that somebody will read.
_MOST: Final = 30
#: What is wrong with a message, and which rows that is so of.
_RULES: Final = {
    "lane": ("is in lane {lane}, which no consumer reads", "lane not between -10 and 9 and lane <> -100"),
    "due_at": (
        "is due at a time outside the years 1970 to 9999",
        "not (due_at >= '1970-01-01Z' and due_at < '10000-01-01Z')",
    ),
    "expires_at": (
        "expires at a time outside the years 1970 to 9999",
        "not (expires_at >= '1970-01-01Z' and expires_at < '10000-01-01Z')",
    ),
}


def rules(schema: str) -> Op[list[Finding]]:
    """Name a message for each rule that one breaks, in each queue."""
    tables = {one.table for one in (yield from table_facts(schema))}
    queues = {one.id: one for one in (yield from list_queues()) if f"q_{one.suffix}" in tables}
    rows, _ = yield from ask_all(queries["unsound"], {}, list(queues.values()))
    # One for each rule is enough: what is to be pasted finds the others.
    broken = {(number, rule): (lane, message_id) for number, rule, lane, message_id in reversed(rows)}
    found = [_finding(schema, queues[number], rule, *place) for (number, rule), place in sorted(broken.items())]
    if len(found) > _MOST:
        found[_MOST:] = [Finding("rules", "warn", f"{len(found) - _MOST:,} more findings about messages are not shown")]
    return found or [Finding("rules", "ok", "no message breaks the rules for what a producer may add")]


def _finding(schema: str, queue: Queue, rule: str, lane: int, message_id: int) -> Finding:
    what, condition = _RULES[rule]
    table = identifier(schema, f"q_{queue.suffix}")
    summary = f"message {message_id} of queue {queue.name!r} {what.format(lane=lane)} (rule {rule!r})"
    remedy = "Look at such messages; then remove them, or give them other values by hand."
    look = f"select lane, message_id, due_at, expires_at from {table} where {condition} limit 100;"  # noqa: S608 - shown
    remove = f"delete from {table} where {condition};"  # noqa: S608 - shown, not run
    return Finding("rules", "warn", summary, remedy, (look, remove))
