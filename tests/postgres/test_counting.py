"""Counting a queue reads a bounded number of pages, whatever the backlog is and whatever has expired."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute
from pgqrs_core.operations import metrics
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from harness import SyncHarness

#: The rows that are read of each lane: the front by both indexes, the samples, the next due.
LANE = 3 * metrics.CAP + metrics.PARTS * metrics.SAMPLE + 10
BACKLOGS = {
    "expired, ready": (
        "select 0, null::timestamptz, now() - interval '1 s' from generate_series(1, 200000)",
        1,
    ),
    "expired, due": (
        "select -1, now() - interval '1 h', now() - interval '1 s' from generate_series(1, 200000)",
        1,
    ),
    "expire before they are due": (
        "select -1, now() + interval '2 h', now() + interval '1 h' from generate_series(1, 200000)",
        1,
    ),
    "half of them expired, in two lanes": (
        "select n % 2, null::timestamptz, now() + (n % 4 - 1.5) * interval '1 h' from generate_series(1, 400000) n",
        2,
    ),
}


@pytest.mark.parametrize("analysed", [False, True], ids=["never analysed", "vacuumed while empty"])
@pytest.mark.parametrize("backlog", BACKLOGS)
def test_counting_reads_a_bounded_part_of_a_backlog(engine: SyncHarness, backlog: str, analysed: bool) -> None:
    rows, lanes = BACKLOGS[backlog]
    if analysed:
        engine.ask("insert into pgqrs.q_jobs (lane, body) values (0, '')")
        engine.ask("delete from pgqrs.q_jobs")
        engine.ask("vacuum analyze pgqrs.q_jobs")
    engine.ask(f"insert into pgqrs.q_jobs (lane, due_at, expires_at, body) select r.*, '' from ({rows}) r")

    read = rows_read(engine)

    assert read <= lanes * LANE


def rows_read(engine: SyncHarness) -> int:
    """Run the statement, through a generic plan as the engine does, and return how many rows its scans returned."""
    text = Statements("pgqrs").render(Execute(queries["metrics"], {}, queues=(engine.queue("jobs"),))).named.decode()
    text = text.replace("%(cap)s", "$1").replace("%(parts)s", "$2").replace("%(sample)s", "$3")
    with psycopg.connect(engine.dsn) as connection:
        connection.execute(b"set plan_cache_mode = force_generic_plan")
        connection.execute(f"prepare counting as {text.replace('%%', '%')}".encode())
        call = f"execute counting ({metrics.CAP}, {metrics.PARTS}, {metrics.SAMPLE})"
        ((plan,),) = connection.execute(f"explain (analyze, timing off, format json) {call}".encode()).fetchall()
    assert json.dumps(plan).count("Seq Scan") == 0
    return round(_scanned(plan[0]["Plan"]))


def _scanned(node: dict[str, Any]) -> float:
    own = 0.0
    if "Relation Name" in node:
        own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return own + sum(_scanned(child) for child in node.get("Plans", []))
