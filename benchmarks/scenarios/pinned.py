"""Throughput while another transaction is open, so that nothing that is dead may be removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
from psycopg import IsolationLevel

from benchmarks.load import Flow, flow
from benchmarks.measure import interleave
from benchmarks.report import Figure, at_least, compare_costs
from benchmarks.server import Setting

__all__ = ["run"]

#: What the other transaction did before it fell asleep.
HOLDERS = {
    "an old snapshot": "select 1",
    "an old snapshot and a transaction id": "select pg_current_xact_id()",
}


def run(setting: Setting) -> list[Figure]:
    """Run a load through the API alone and beside each kind of holder: the whole of it, and its last part."""
    after, more = setting.size(200_000), setting.size(60_000)

    def side(holder: str | None) -> Flow:
        with setting.queue("pinned") as queue, _held(setting.dsn, holder):
            setting.meter.checkpoint()
            return flow(setting.meter, setting.dsn, queue, "api", after + more)

    sides = {"none": partial(side, None), **{name: partial(side, name) for name in HOLDERS}}
    seen = interleave(setting.repeats, sides)
    figures = []
    for name in HOLDERS:
        costs = [run.cost for run in seen[name]]
        plain = [run.cost for run in seen["none"]]
        figures.append(compare_costs(f"with {name}", "messages/s", costs, plain, "without", at_least(0.9)))
        late = [run.rate(after) for run in seen[name]]
        usual = [run.rate(after) for run in seen["none"]]
        title = f"with {name}, after {after:,} messages"
        figures.append(Figure(title, "messages/s", late, usual, "without", at_least(0.9)))
    return figures


@contextmanager
def _held(dsn: str, holder: str | None) -> Iterator[None]:
    """Keep a transaction open that took its snapshot now."""
    if holder is None:
        yield
        return
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.execute(HOLDERS[holder].encode())
        yield
        connection.rollback()
