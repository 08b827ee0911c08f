"""The server answers as the model predicts, whatever is asked of it and in whatever order."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import psycopg
import pytest
from harness import AsyncHarness, Harness, SyncHarness, ask
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import ARCHIVED_FOR, DEAD_FOR, KNOWN_FOR, Machine

from pgqrs_core.operations import schema
from pgqrs_core.testing import with_database

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[SyncHarness, AsyncHarness], ids=["sync", "async"])
def harness(request: pytest.FixtureRequest, pgqrs_server: str) -> Iterator[Harness]:
    """An engine with a queue ``jobs`` in a database of its own."""
    name = f"pgqrs_model_{secrets.token_hex(4)}"
    ask(pgqrs_server, f"create database {name} template template0")
    # Nothing here is about crashes of the server, and thousands of commits need not wait for its disk.
    ask(pgqrs_server, f"alter database {name} set synchronous_commit = off")
    harness = request.param(with_database(pgqrs_server, name))
    harness.transact(schema.install, "pgqrs")
    harness.create(
        "jobs",
        max_attempts=3,
        dead_retention_seconds=DEAD_FOR,
        archive_retention_seconds=ARCHIVED_FOR,
        idempotency_seconds=KNOWN_FOR,
    )
    yield harness
    harness.close()
    ask(pgqrs_server, f"drop database {name} with (force)")


def run(harness: Harness, examples: int, steps: int) -> None:
    with psycopg.connect(harness.dsn, autocommit=True) as by_hand:
        parts = {"harness": harness, "queue": harness.queue(), "by_hand": by_hand}
        chosen = settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(type("Machine", (Machine,), parts), settings=chosen)


@pytest.mark.timeout(300)
def test_every_answer_is_the_one_that_the_model_predicts(harness: Harness) -> None:
    run(harness, 60, 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_answer_is_the_one_that_the_model_predicts_at_length(harness: Harness) -> None:
    run(harness, 1000, 60)
