"""Statements of the result backend use their indexes, on tables that were never analysed and on large ones."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from celery import Celery, states
from pgqrs_celery.sql import queries
from psycopg import sql

from pgqrs_core.arrays import texts

PARAMS: dict[str, dict[str, Any]] = {
    "read_results": {"ids": texts(["t1", "t2"])},
    "forget_result": {"task_id": "t1"},
    "read_group": {"group_id": "g"},
    "await_no_more": {"ids": texts(["t1"]), "channel": "c"},
    "prune_results": {"limit": 1000},
    "prune_groups": {"limit": 1000},
    "prune_chords": {"limit": 1000},
    "claim_chord": {"group_id": "g", "claim": 1, "seconds": 1.0},
    "read_parts": {"group_id": "g"},
    "finish_chord": {"group_id": "g", "claim": 1},
    "abandoned_chords": {"limit": 10},
}

FILL = """
insert into pgqrs.celery_results (task_id, status, content_type, expires_at)
  select 't' || n, 'SUCCESS', 'application/json', now() + n * interval '1 second' from generate_series(1, 20000) n;
insert into pgqrs.celery_groups (group_id, result, content_type, expires_at)
  select 'g' || n, '', 'application/json', now() + n * interval '1 second' from generate_series(1, 20000) n;
insert into pgqrs.celery_chords (group_id, expires_at)
  select 'g' || n, now() + n * interval '1 second' from generate_series(1, 20000) n;
insert into pgqrs.celery_chord_parts (group_id, place, task_id, status, content_type)
  select 'g' || n % 100, n, 't' || n, 'SUCCESS', 'application/json' from generate_series(1, 20000) n;
insert into pgqrs.celery_waiters select 't' || n, 'pgqrs:celery:0123456789abcdef', now() from generate_series(1, 20000) n;
"""


def scans(node: dict[str, Any]) -> set[str]:
    """The tables that a plan reads from end to end."""
    found = {node["Relation Name"]} if node["Node Type"] == "Seq Scan" else set()
    return found.union(*(scans(child) for child in node.get("Plans", ())))


@pytest.mark.parametrize("analysed", ["never", "empty", "full"])
def test_no_statement_reads_a_whole_table(app: Celery, pgqrs_dsn: str, analysed: str) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    app.backend.forget("t")
    guilty = {}
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        if analysed == "empty":
            connection.execute("analyze")
        connection.execute(FILL.encode())
        if analysed == "full":
            connection.execute("analyze")
        for name, params in PARAMS.items():
            text = sql.SQL(queries[name].text).format(schema=sql.Identifier("pgqrs")).as_bytes(None)
            with app.backend.store.transaction() as ours:
                (plan,) = ours.execute(b"explain (format json) " + text, params).fetchone()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            tables = scans(plan[0]["Plan"])
            if tables:
                guilty[name] = tables

    assert guilty == {}
