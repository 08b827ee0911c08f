"""A session that holds one message's row for long: the others of its queue are renewed and settled meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from pgqrs_core.testing import PATIENCE, eventually

LEFT = "extract(epoch from lease_until - clock_timestamp())::float8"
LEASES = f"select message_id, {LEFT} from pgqrs.q_jobs where lease_token > 0"


def leases(dsn: str) -> dict[int, float]:
    """Return for how many seconds each lease still runs."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return dict(connection.execute(LEASES).fetchall())


def waiting(dsn: str) -> list[int]:
    """Return the messages that are not acked."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [row[0] for row in connection.execute("select message_id from pgqrs.q_jobs order by 1")]


def test_one_locked_row_keeps_no_other_lease_of_its_queue_from_renewal(
    native: Any, client: Any, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.admin.create_queue("jobs", lease_seconds=2.0)
    client.producer.batch_enqueue("jobs", range(6))
    release, begun = threading.Event(), []
    worker = native.worker(client, concurrency=6)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        begun.append(message.id)
        release.wait(PATIENCE)

    with native.working(worker):
        eventually(lambda: len(leases(pgqrs_dsn)) == 6 and len(begun) == 6)
        ids = sorted(leases(pgqrs_dsn))
        with psycopg.connect(pgqrs_dsn) as other:
            other.execute("select from pgqrs.q_jobs where message_id = %s for update", [ids[2]])
            # Once the lease of the locked one has ended, those of the others have been renewed several times.
            eventually(lambda: leases(pgqrs_dsn)[ids[2]] < -1)
            held = leases(pgqrs_dsn)
        release.set()
        eventually(lambda: not leases(pgqrs_dsn))

    assert [held[number] > 0 for number in ids] == [True, True, False, True, True, True]
    assert set(begun) == set(ids)
    assert [line for line in caplog.messages if "cannot be renewed yet, the others are" in line]


def test_a_lease_whose_row_was_locked_for_a_while_is_renewed_afterwards(
    native: Any, client: Any, pgqrs_dsn: str
) -> None:
    client.admin.create_queue("jobs", lease_seconds=3.0)
    sent = client.producer.enqueue("jobs", 1)
    release = threading.Event()
    worker = native.worker(client)
    worker.handler("jobs")(lambda message: release.wait(PATIENCE))

    with native.working(worker):
        eventually(lambda: leases(pgqrs_dsn).get(sent, 0) > 0)
        with psycopg.connect(pgqrs_dsn) as other:
            other.execute("select from pgqrs.q_jobs for update")
            eventually(lambda: 0 < leases(pgqrs_dsn)[sent] < 1.5)
        eventually(lambda: leases(pgqrs_dsn)[sent] > 2.5)
        release.set()


@pytest.mark.parametrize("concurrency", [1, 6])
def test_one_locked_row_keeps_no_other_message_of_its_queue_from_being_acked(
    native: Any, client: Any, pgqrs_dsn: str, concurrency: int
) -> None:
    client.admin.create_queue("jobs", lease_seconds=5.0)
    ids = client.producer.batch_enqueue("jobs", range(30))
    ready, release, begun = threading.Event(), threading.Event(), []
    worker = native.worker(client, concurrency=concurrency, prefetch=10)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        begun.append(message.id)
        if message.id == ids[0]:
            ready.set()
            release.wait(PATIENCE)

    with native.working(worker):
        assert ready.wait(PATIENCE)
        with psycopg.connect(pgqrs_dsn) as other:
            other.execute("select from pgqrs.q_jobs where message_id = %s for update", [ids[0]])
            release.set()
            eventually(lambda: sorted(begun) == ids)
            eventually(lambda: waiting(pgqrs_dsn) == [ids[0]])
        eventually(lambda: waiting(pgqrs_dsn) == [])

    assert sorted(begun) == ids
