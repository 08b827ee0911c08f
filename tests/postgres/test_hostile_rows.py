"""Rows that were written by hand, or by a program that means no good, as the types of the columns allow them.

What pgqrs itself writes is within bounds, and constraints keep others within them. Here they are dropped, as where an
installation is older than they are: no such row may hide others, or keep them from being handled.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from harness import until

from pgqrs_core.drivers.rows import EARLIEST, LATEST
from pgqrs_core.effects import Execute
from pgqrs_core.messages import DEAD_LANE
from pgqrs_core.operations import by_id, claim, dead, doctor, maintenance, metrics, queue_options, queues, settle
from pgqrs_core.operations.doctor import Circumstances
from pgqrs_core.sql import queries
from tests.support.hostile import without_constraints

if TYPE_CHECKING:
    from harness import Harness

    from pgqrs_core.effects import Op
    from pgqrs_core.messages import Delivery, Queue

#: Times that PostgreSQL has and Python has not.
FAR = ("infinity", "-infinity", "290000-01-01", "4000-01-01 BC")
LARGEST = 2**63 - 1


def insert(harness: Harness, **columns: Any) -> None:
    """Write a row into the table of the queue ``jobs``."""
    row = {"lane": 0, "body": b"hostile", **columns}
    names, places = ", ".join(row), ", ".join(["%s"] * len(row))
    harness.ask(f"insert into pgqrs.q_jobs ({names}) overriding system value values ({places})", *row.values())


@pytest.fixture
def open_doors(harness: Harness) -> Harness:
    without_constraints(harness.dsn)
    return harness


@pytest.mark.parametrize("when", FAR)
def test_a_claim_returns_the_others_beside_a_message_whose_time_python_has_not(open_doors: Harness, when: str) -> None:
    insert(open_doors, enqueued_at=when)
    open_doors.send(b"honest")

    found = open_doors.take()

    assert [item.body for item in found] == [b"hostile", b"honest"]
    assert found[0].enqueued_at == (LATEST if when in ("infinity", "290000-01-01") else EARLIEST)
    assert all(open_doors.on("jobs", settle.ack, [item.lease for item in found]))


@pytest.mark.parametrize("lane", [0, -1, DEAD_LANE])
def test_what_looks_at_a_queue_survives_times_that_python_has_not(open_doors: Harness, lane: int) -> None:
    for when in FAR:
        for column in ("due_at", "enqueued_at", "expires_at", "lease_until"):
            insert(open_doors, **{"due_at": "2020-01-01" if lane else None, "lane": lane, column: when})
    open_doors.send(b"honest")
    queue = open_doors.queue()

    (measured,) = open_doors.run(metrics.measure, [queue])
    ((_, claimable, next_due, _, age),) = open_doors.run(probe, queue)
    seen = open_doors.run(queues.peek, queue, 100)
    listed = open_doors.run(dead.list_dead, queue, 100)
    numbers = [row[0] for row in open_doors.ask("select message_id from pgqrs.q_jobs")]
    shown = [open_doors.run(by_id.show_message, queue, number) for number in numbers]
    findings = open_doors.run(doctor.examine, Circumstances("pgqrs", time.time))
    cleaned = open_doors.run(maintenance.maintain, "pgqrs")

    assert measured.error is None
    assert measured.ready >= 1
    assert measured.oldest_ready_seconds is not None
    assert 0 <= measured.oldest_ready_seconds < 1e10
    assert measured.next_due_seconds is None or 0 <= measured.next_due_seconds < 1e13
    assert claimable
    assert next_due is None or 0 <= next_due <= 86_400
    assert 0 <= age < 1e10
    assert b"honest" in [one.body for one in seen]
    assert all(shown)
    assert len(listed) == (len(FAR) * 4 if lane == DEAD_LANE else 0)
    assert not [one for one in findings if "could not be checked" in one.summary or "cannot be measured" in one.summary]
    assert cleaned.failed == {}


def probe(queue: Queue) -> Op[Any]:
    return (yield Execute(queries["probe"], queues=(queue,)))


@pytest.mark.parametrize("number", [-LARGEST - 1, -1, LARGEST - 1, LARGEST])
def test_a_message_with_any_id_is_claimed_and_settled_and_hides_none(open_doors: Harness, number: int) -> None:
    insert(open_doors, message_id=number)
    open_doors.send(b"honest")
    (measured,) = open_doors.run(metrics.measure, [open_doors.queue()])

    def claimed() -> list[Delivery]:
        found.extend(open_doors.take(fresh=False))
        return found if len(found) >= 2 else []

    found: list[Delivery] = []
    until(claimed, "both are claimed")

    assert measured.ready == 2
    assert sorted(item.body for item in found) == [b"honest", b"hostile"]
    assert open_doors.on("jobs", settle.nack, [settle.Failure(item.lease) for item in found]) == ["nacked", "nacked"]
    open_doors.send(b"later")
    until(lambda: b"later" in [item.body for item in open_doors.take(fresh=False)], "what came later is claimed")


def test_a_backlog_with_ids_at_both_ends_of_their_range_is_measured(
    open_doors: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(metrics._LIMITS, "cap", 3)
    for number in (-LARGEST - 1, -5, 1_000, LARGEST - 1, LARGEST):
        insert(open_doors, message_id=number)
    open_doors.send(*[b"honest"] * 20)
    for number in (-LARGEST - 1, -5, 7, 8, 9, LARGEST - 1, LARGEST):
        open_doors.ask(
            "insert into pgqrs.a_jobs (message_id, priority, attempt, enqueued_at, body) values (%s, 0, 0, now(), '')",
            number,
        )

    (measured,) = open_doors.run(metrics.measure, [open_doors.queue()])

    assert measured.error is None
    assert measured.ready >= 8
    assert measured.archived >= 4


@pytest.mark.parametrize("what", ["nack", "bury", "release", "postpone"])
def test_whatever_stands_in_a_row_its_batch_can_be_given_back(open_doors: Harness, what: str) -> None:
    """Each message is given back into a lane in which it is found, and its attempts are counted."""
    for priority in (-(2**15), -5, 10, 99, 2**15 - 1):
        for attempt in (-(2**31), -1, 2**31 - 2, 2**31 - 1):
            for when in FAR:
                insert(open_doors, priority=priority, attempt=attempt, enqueued_at=when)
    open_doors.send(b"honest")
    found: list[Delivery] = []
    # One that is on its last attempt comes alone.
    while more := open_doors.on("jobs", claim.claim, open_doors.marks, limit=100, lease=30.0, bury=False):
        found += more
    leases = [item.lease for item in found]
    assert len(found) == 5 * 4 * len(FAR) + 1
    assert all(item.attempt >= 1 for item in found)

    if what in ("nack", "bury"):
        fates = open_doors.on("jobs", settle.nack, [settle.Failure(lease, bury=what == "bury") for lease in leases])
        assert set(fates) <= {"nacked", "dead"}
    elif what == "release":
        assert all(open_doors.on("jobs", settle.release, leases))
    else:
        assert all(open_doors.on("jobs", settle.postpone, leases, [{"type": "x"}] * len(leases)))

    rows = open_doors.ask("select lane, attempt from pgqrs.q_jobs")
    assert all(lane == DEAD_LANE or -10 <= lane <= -1 for lane, _ in rows)
    assert all(attempt >= 0 for _, attempt in rows)


OPTIONS = (
    "null",
    "[]",
    "1",
    '"text"',
    "{}",
    '{"max_attempts": 1e400}',
    '{"max_attempts": "many", "lease_seconds": -1, "archive": true}',
    '{"lease_seconds": 99999999999999999999999999999, "backoff_base": null}',
    '{"unknown": {"deep": [1, 2]}, "max_body_bytes": 5}',
    '{"unknown": "\\u0000"}',
    '{"archive_retention_seconds": 1e308, "dead_retention_seconds": "x"}',
    '{"idempotency_seconds": "x"}',
    '{"idempotency_seconds": 1e308}',
    '{"idempotency_seconds": -1}',
    '{"idempotency_seconds": {"a": [3600]}}',
    "[" * 5_000 + "]" * 5_000,
)


def test_options_that_cannot_be_used_are_told_and_harm_no_other_queue(
    harness: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_options, "_told", set())
    for place, options in enumerate(OPTIONS):
        harness.create(f"broken {place}")
        harness.ask("update pgqrs.queues set options = %s::json where name = %s", options, f"broken {place}")
    harness.send(b"honest")

    known = harness.run(queues.list_queues)
    measured = harness.run(metrics.measure, known)
    cleaned = harness.run(maintenance.maintain, "pgqrs")
    findings = harness.run(doctor.examine, Circumstances("pgqrs", time.time))

    assert len(known) == len(OPTIONS) + 1
    assert {one.error for one in measured} == {None}
    assert "jobs" not in cleaned.failed
    assert not [one for one in findings if "could not be checked" in one.summary]
    unusable = [(option, queue.name) for queue in known for option, _ in queue.unusable]
    assert len(unusable) == 5 + 1 + 2 + 2 + 2 + 4
    for option, name in unusable:
        assert caplog.text.count(f"option {option} of queue {name!r} cannot be used") == 1
        assert any(f"option {option} of queue {name!r}" in one.summary for one in findings)
    for queue in known:
        harness.send(b"keyed", queue=queue.name, idempotency_key="k")
        harness.send(b"more", queue=queue.name)
        assert harness.bodies(queue=queue.name)[-1] == b"more"


def test_a_term_that_never_ends_keeps_no_process_from_maintenance(harness: Harness) -> None:
    harness.ask("insert into pgqrs.leaders (role, holder, until) values ('housekeeper', 5, 'infinity')")

    assert harness.run(maintenance.elect, 7, 60.0, maintenance.Process("here", 1))


def test_a_delayed_message_that_is_never_due_does_not_disturb_those_who_wait(open_doors: Harness) -> None:
    for when in FAR:
        insert(open_doors, lane=-1, due_at=when)
    open_doors.on("jobs", settle.ack, [item.lease for item in open_doors.take()])

    with_wakeups: list[bytes] = []
    open_doors.send(b"soon", delay=0.3)
    until(
        lambda: with_wakeups.extend(open_doors.bodies(patience=10.0)) or with_wakeups, "the delayed message is received"
    )

    assert with_wakeups == [b"soon"]


def test_a_queue_that_cannot_be_looked_at_is_told_once_and_the_consumers_of_others_are_woken(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.create("broken")
    queues_ = [harness.queue("broken"), harness.queue("jobs")]
    harness.ask("alter table pgqrs.q_broken rename column due_at to else_named")

    for _ in range(3):
        harness.send(b"honest")
        until(lambda: harness.do(harness.engine.wakeups.wait_any, queues_, 10.0)[1], "the consumer is woken")
        until(lambda: harness.bodies() == [b"honest"], "the message is claimed")

    assert caplog.text.count("queue 'broken' cannot be looked at") == 1
