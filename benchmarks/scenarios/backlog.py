"""What a claim takes with much in front of it, beside one on a queue that holds nothing else."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from pgqrs_native import Client
from psycopg import sql

from benchmarks.bare import Ours
from benchmarks.payloads import BYTES
from benchmarks.report import Figure, at_most, compare
from benchmarks.server import Setting

__all__ = ["run"]

FILL = """
insert into {} (lane, due_at, content_type, body)
select {}, {}, 'application/octet-stream', {} from generate_series(1, {}) n"""


@dataclass
class _Case:
    """A queue, what lies in it, and the seconds that its claims took in this repeat."""

    table: Ours
    #: Whether the messages to claim must be sent first: what lies there is not claimable.
    top_up: bool
    seconds: list[float] = field(default_factory=list)


def run(setting: Setting) -> list[Figure]:
    """Claim 100, one, and nothing, from each queue in turn."""
    cases = {
        "empty": (0, 0, "null"),
        f"{(ready := setting.size(1_000_000)):,} ready": (ready, 0, "null"),
        f"{ready:,} delayed": (ready, -1, "statement_timestamp() + interval '1 day' + n * interval '1 ms'"),
        f"{(dead := setting.size(100_000)):,} dead": (dead, -100, "statement_timestamp()"),
    }
    figures = []
    with ExitStack() as stack:
        open_cases: dict[str, _Case] = {}
        for place, (title, (count, lane, due)) in enumerate(cases.items()):
            queue = stack.enter_context(setting.queue(f"backlog {place}"))
            _fill(setting, queue, count, lane, due)
            table = Ours(setting.dsn, queue, BYTES)
            stack.callback(table.close)
            open_cases[title] = _Case(table, top_up=lane < 0 or not count)
        setting.meter.checkpoint()
        for limit in (100, 1, 0):
            # A queue with a million ready messages has something to claim.
            chosen = {title: case for title, case in open_cases.items() if limit or case.top_up}
            figures += _claims(chosen, limit, setting)
    return figures


def _claims(cases: dict[str, _Case], limit: int, setting: Setting) -> list[Figure]:
    rounds = setting.size(200, 30)
    middles: dict[str, list[float]] = {title: [] for title in cases}
    for _ in range(setting.repeats):
        for case in cases.values():
            case.seconds.clear()
        for turn in range(rounds):
            order = list(cases.values())
            for case in order[turn % len(order) :] + order[: turn % len(order)]:
                _claim(case, limit)
        for title, case in cases.items():
            middles[title].append(median(case.seconds) * 1e6)
    what = f"claim of {limit}" if limit else "claim that finds nothing"
    return [
        compare(f"{what}: {title}", "µs", values, middles["empty"], "empty queue", at_most(1.3))
        for title, values in middles.items()
        if title != "empty"
    ]


def _claim(case: _Case, limit: int) -> None:
    if case.top_up and limit:
        case.table.send(limit)
    began = time.perf_counter()
    rows = case.table.claim(limit or 100)
    case.seconds.append(time.perf_counter() - began)
    assert len(rows) == limit, f"{len(rows)} of {limit} messages claimed"
    if rows:
        case.table.ack(rows)


def _fill(setting: Setting, name: str, count: int, lane: int, due: str) -> None:
    with Client(setting.dsn) as client:
        table = sql.Identifier(client.engine.schema, f"q_{client.engine.queue(name).suffix}")
    execute = setting.meter.connection.execute
    due_at = sql.SQL(due)
    execute(sql.SQL(FILL).format(table, sql.Literal(lane), due_at, sql.Literal(BYTES), sql.Literal(count)))
    # So that the first readers do not pay for the hint bits, nor a vacuum runs beside the measurement.
    execute(sql.SQL("vacuum {}").format(table))
