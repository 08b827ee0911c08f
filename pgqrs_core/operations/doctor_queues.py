"""The part of the examination that looks at our own tables: see `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import Metrics, Queue
from pgqrs_core.operations import metrics, vitals
from pgqrs_core.operations.doctor_rules import rules
from pgqrs_core.operations.doctor_sequences import sequences
from pgqrs_core.operations.findings import Finding, span
from pgqrs_core.operations.maintenance import ROLE
from pgqrs_core.operations.queues import list_queues
from pgqrs_core.pasting import command, identifier
from pgqrs_core.sql import queries

__all__ = ["checks"]

#: Seconds after which a ready message should have been taken by somebody.
_LATE: Final = 60.0
#: Findings about queues that somebody will read.
_MOST: Final = 30
#: Dead rows in a table that are more than autovacuum leaves lying about.
_BLOATED: Final = 50_000


def checks(schema: str) -> Iterator[tuple[str, Op[list[Finding]]]]:
    """Yield the checks by name, each to be run before the next is asked for."""
    yield "tables", _tables(schema)
    yield "queues", _queues(schema)
    yield "sequences", sequences(schema)
    yield "rules", rules(schema)
    yield "maintenance", _maintenance()
    yield "waiters", _waiters()


def _tables(schema: str) -> Op[list[Finding]]:
    facts = {one.table: one for one in (yield from vitals.table_facts(schema))}
    queues = yield from list_queues()
    found: list[Finding] = []
    for queue in queues:
        fact = facts.get(f"q_{queue.suffix}")
        if fact is None:
            remedy = "Restore it from a backup, or delete what is left of the queue, or make its tables anew, empty."
            commands = (command("queue", "delete", "--yes", names=(queue.name,)), command("install", "--repair"))
            found.append(Finding("tables", "fail", f"the table of queue {queue.name!r} is missing", remedy, commands))
            continue
        if fact.autovacuum_off:
            summary = f"autovacuum is switched off for the table of queue {queue.name!r}"
            reset = f"ALTER TABLE {identifier(schema, fact.table)} RESET (autovacuum_enabled);"
            found.append(Finding("tables", "warn", summary, "Switch it on.", (reset,)))
        if fact.dead > _BLOATED and fact.dead > fact.live:
            found.append(
                Finding(
                    "tables",
                    "warn",
                    _bloat(queue, fact),
                    "End what the check old_snapshots names, if anything; then let maintenance vacuum it.",
                    (command("maintain"),),
                )
            )
    if not found:
        dead = sum(facts[f"q_{queue.suffix}"].dead for queue in queues)
        found = [
            Finding(
                "tables",
                "ok",
                f"{_counted(len(queues), 'queue table')}, {_counted(dead, 'dead row')} waiting for vacuum",
            )
        ]
    return found


def _bloat(queue: Queue, fact: vitals.TableFacts) -> str:
    ago = fact.vacuumed_seconds_ago
    last = "never vacuumed" if ago is None else f"vacuumed {span(ago)} ago"
    return f"the table of queue {queue.name!r} holds {fact.dead:,} dead rows beside {fact.live:,} live ones, {last}"


def _queues(schema: str) -> Op[list[Finding]]:
    queues = yield from list_queues()
    if not queues:
        return [
            Finding(
                "queues", "info", "there are no queues yet", "Create one.", (command("queue", "create", "my_queue"),)
            )
        ]
    # One missing table must not hide the figures of the others.
    tables = {one.table for one in (yield from vitals.table_facts(schema))}
    measured = yield from metrics.measure([queue for queue in queues if f"q_{queue.suffix}" in tables])
    found = [finding for queue in queues for finding in _unusable(queue)]
    found += [finding for one in measured for finding in _judge(one)]
    if len(found) > _MOST:
        found[_MOST:] = [Finding("queues", "info", f"{len(found) - _MOST:,} more findings about queues are not shown")]
    ready, flying = sum(one.ready for one in measured), sum(one.in_flight for one in measured)
    expired = sum(one.expired for one in measured)
    summary = f"{_counted(len(measured), 'queue')}: {ready:,} ready, {flying:,} in flight"
    return [
        Finding("queues", "ok", f"{summary}, {expired:,} expired" if expired else summary),
        *found,
    ]


def _unusable(queue: Queue) -> Iterator[Finding]:
    for option, reason in queue.unusable:
        summary = f"option {option} of queue {queue.name!r} cannot be used, its default holds: {reason}"
        # Any change writes all options anew.
        alter = command("queue", "alter", "--max-attempts", str(queue.options.max_attempts), names=(queue.name,))
        yield Finding("queues", "warn", summary, "Store the options anew, and with them what you want:", (alter,))


def _judge(one: Metrics) -> Iterator[Finding]:
    if one.error is not None:
        yield Finding("queues", "warn", f"queue {one.queue!r} cannot be measured: {one.error}")
        return
    age = one.oldest_ready_seconds
    if one.paused:
        summary = f"queue {one.queue!r} is paused with {_counted(one.ready, 'message')} ready"
        yield Finding("queues", "info", summary, "End the pause.", (command("queue", "resume", names=(one.queue,)),))
    elif age is not None and age > _LATE:
        summary = f"queue {one.queue!r} has {_counted(one.ready, 'message')} ready, the oldest has waited {span(age)}"
        look = command("message", "peek", names=(one.queue,))
        yield Finding("queues", "warn", summary, "Is a worker running? If so, start more. See what waits:", (look,))
    if one.dead:
        summary = f"queue {one.queue!r} holds {_counted(one.dead, 'dead message')}"
        look = command("dead", "list", names=(one.queue,))
        replay = command("dead", "replay", "--all", names=(one.queue,))
        yield Finding("queues", "warn", summary, "See why they died; then send them again.", (look, replay))


def _maintenance() -> Op[list[Finding]]:
    rows = yield Execute(queries["leaders"])
    found = [Finding("maintenance", "ok", _leader(*row)) for row in rows]
    if any(row[0] == ROLE for row in rows):
        return found
    remedy = "Workers do it by themselves; without workers run it now and then."
    summary = "no process does the maintenance now: nothing expires, retention is not kept"
    return [Finding("maintenance", "info", summary, remedy, (command("maintain"),)), *found]


def _leader(role: str, host: str | None, pid: int | None, left: float) -> str:
    process = "a process that did not say which" if host is None else f"the process {pid} on {host}"
    what = "does the maintenance" if role == ROLE else f"has the role {role!r}"
    return f"{process} {what}; its term runs for {span(left)} more"


def _waiters() -> Op[list[Finding]]:
    rows = yield Execute(queries["sleepers"])
    names = {queue.id: queue.name for queue in (yield from list_queues())}
    shown = ", ".join(f"{names[number]!r}: {count:,}" for number, count in sorted(rows) if number in names)
    summary = f"consumers that sleep until they are woken – {shown}" if shown else "no consumer sleeps"
    return [Finding("waiters", "ok" if shown else "info", summary)]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
