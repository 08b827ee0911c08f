"""The part of the examination that looks at our own tables: see `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import Metrics, Queue
from pgqrs_core.operations import metrics, vitals
from pgqrs_core.operations.findings import Finding, span
from pgqrs_core.operations.queues import list_queues
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
    yield "housekeeping", _housekeeping()
    yield "waiters", _waiters()


def _tables(schema: str) -> Op[list[Finding]]:
    facts = {one.table: one for one in (yield from vitals.table_facts(schema))}
    queues = yield from list_queues()
    found: list[Finding] = []
    for queue in queues:
        fact = facts.get(f"q_{queue.suffix}")
        if fact is None:
            remedy = f"Restore it, or remove the queue's row from {schema}.queues."
            found.append(Finding("tables", "fail", f"the table of queue {queue.name!r} is missing", remedy))
            continue
        if fact.autovacuum_off:
            summary = f"autovacuum is switched off for the table of queue {queue.name!r}"
            found.append(Finding("tables", "warn", summary, "ALTER TABLE … RESET (autovacuum_enabled);"))
        if fact.dead > _BLOATED and fact.dead > fact.live:
            found.append(
                Finding("tables", "warn", _bloat(queue, fact), "See old_snapshots; then run `pgqrs maintain`.")
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
        return [Finding("queues", "info", "there are no queues yet", "Run `pgqrs queue create NAME`.")]
    # One missing table must not hide the figures of the others.
    tables = {one.table for one in (yield from vitals.table_facts(schema))}
    measured = yield from metrics.measure([queue for queue in queues if f"q_{queue.suffix}" in tables])
    found = [finding for one in measured for finding in _judge(one)]
    if len(found) > _MOST:
        found[_MOST:] = [Finding("queues", "info", f"{len(found) - _MOST:,} more findings about queues are not shown")]
    ready, flying = sum(one.ready for one in measured), sum(one.in_flight for one in measured)
    expired = sum(one.expired for one in measured)
    summary = f"{_counted(len(measured), 'queue')}: {ready:,} ready, {flying:,} in flight"
    return [
        Finding("queues", "ok", f"{summary}, {expired:,} expired" if expired else summary),
        *found,
    ]


def _judge(one: Metrics) -> Iterator[Finding]:
    if one.error is not None:
        yield Finding("queues", "warn", f"queue {one.queue!r} cannot be measured: {one.error}")
        return
    age = one.oldest_ready_seconds
    if one.paused:
        summary = f"queue {one.queue!r} is paused with {_counted(one.ready, 'message')} ready"
        yield Finding("queues", "info", summary, "`pgqrs queue resume` ends the pause.")
    elif age is not None and age > _LATE:
        summary = f"queue {one.queue!r} has {_counted(one.ready, 'message')} ready, the oldest has waited {span(age)}"
        yield Finding("queues", "warn", summary, "Is a worker running? If so, start more.")
    if one.dead:
        summary = f"queue {one.queue!r} holds {_counted(one.dead, 'dead message')}"
        yield Finding("queues", "warn", summary, "`pgqrs dead list` says why; `pgqrs dead replay` sends them again.")


def _housekeeping() -> Op[list[Finding]]:
    rows = yield Execute(queries["housekeeper"])
    if rows:
        holder, left = rows[0]
        summary = f"process {holder & 0xFFFFFFFF:08x} keeps house; its term runs for {span(left)} more"
        return [Finding("housekeeping", "ok", summary)]
    remedy = "Workers do it by themselves; without workers run `pgqrs maintain` now and then."
    return [Finding("housekeeping", "info", "nobody keeps house now: no expiry, no retention", remedy)]


def _waiters() -> Op[list[Finding]]:
    rows = yield Execute(queries["sleepers"])
    names = {queue.id: queue.name for queue in (yield from list_queues())}
    shown = ", ".join(f"{names[number]!r}: {count:,}" for number, count in sorted(rows) if number in names)
    summary = f"consumers that sleep until they are woken – {shown}" if shown else "no consumer sleeps"
    return [Finding("waiters", "ok" if shown else "info", summary)]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
