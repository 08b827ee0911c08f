"""Two messages with one id, in two lanes: those beside them move, and both come to an end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import MAKES, borrow, draft

from pgqrs_core.marks import Marks
from pgqrs_core.operations import claim, dead, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Harness

    from pgqrs_core.effects import Op
    from pgqrs_core.messages import Lease, Queue

ERROR = {"type": "E", "message": "no"}


def nack(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.nack(queue, [settle.Failure(lease, 60.0, ERROR) for lease in leases]))


def bury(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.nack(queue, [settle.Failure(lease, bury=True, error=ERROR) for lease in leases]))


def postpone(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.postpone(queue, leases, [ERROR] * len(leases)))


def replace(queue: Queue, leases: list[Lease]) -> Op[Any]:
    answers = []
    for lease in leases:
        answers.append((yield from settle.replace(queue, lease, draft(b"new", priority=lease.lane % 10))))  # noqa: PERF401
    return answers


#: What moves a message, where to, and what it answers.
MOVES: dict[str, tuple[Callable[[Queue, list[Lease]], Op[Any]], int, Any]] = {
    "nack": (nack, -1, "nacked"),
    "bury": (bury, -100, "dead"),
    "release": (settle.release, -1, True),
    "postpone": (postpone, -1, True),
    "replace": (replace, -1, True),
}


def put(harness: Harness, lane: int, number: int, body: str, *, due: str = "now() + interval '1 hour'") -> None:
    harness.ask(
        "insert into pgqrs.q_jobs (lane, message_id, due_at, body) overriding system value "
        f"values (%s, %s, {'null' if lane >= 0 else due}, %s)",
        *(lane, number, body.encode()),
    )


def rows(harness: Harness) -> list[tuple[Any, ...]]:
    return harness.ask("select lane, message_id, convert_from(body, 'utf8') from pgqrs.q_jobs order by 1, 2, 3")


@pytest.fixture
def batch(harness: Harness) -> list[Any]:
    """Three messages that are held; there are twins of the one in the middle."""
    ids = [harness.send(body)[0] for body in (b"a", b"b", b"c")]
    held = harness.take(limit=3)
    assert [item.id for item in held] == ids
    return held


class TestMoving:
    @pytest.mark.parametrize("way", MOVES)
    def test_the_others_move_and_the_one_with_a_twin_under_another_id(
        self, harness: Harness, batch: list[Any], way: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        op, lane, answer = MOVES[way]
        put(harness, lane, batch[1].id, "twin")

        with caplog.at_level(logging.WARNING, "pgqrs.twins"):
            answers = harness.on("jobs", op, [item.lease for item in batch])

        a, b, c = ("new", "new", "new") if way == "replace" else ("a", "b", "c")
        new = max(row[1] for row in rows(harness))
        assert answers == [answer] * 3
        assert rows(harness) == [
            *((lane, batch[0].id, a), (lane, batch[1].id, "twin"), (lane, batch[2].id, c), (lane, new, b)),
        ]
        assert f"message {batch[1].id} of queue 'jobs' has a twin" in caplog.text
        assert f"message {new}" in caplog.text

    @pytest.mark.parametrize("way", MOVES)
    def test_a_twin_elsewhere_is_in_nobodys_way(self, harness: Harness, batch: list[Any], way: str) -> None:
        put(harness, 9, batch[1].id, "twin")

        harness.on("jobs", MOVES[way][0], [item.lease for item in batch])

        assert sorted(row[1] for row in rows(harness)) == sorted([*(item.id for item in batch), batch[1].id])

    def test_each_of_two_twins_that_are_held_at_once_moves(self, harness: Harness) -> None:
        for lane in (0, 1, 2):
            put(harness, lane, 5, f"in {lane}")
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 5)")
        held = harness.take(limit=3)
        assert [item.id for item in held] == [5, 5, 5]

        assert harness.on("jobs", bury, [item.lease for item in held]) == ["dead"] * 3

        assert [(lane, number) for lane, number, _ in rows(harness)] == [(-100, 5), (-100, 6), (-100, 7)]

    @pytest.mark.parametrize("way", MOVES)
    def test_the_callers_transaction_survives_it(self, harness: Harness, batch: list[Any], way: str) -> None:
        op, lane, answer = MOVES[way]
        put(harness, lane, batch[1].id, "twin")
        for make in MAKES[harness.kind]:
            connection = borrow(harness, make)
            try:
                answers = harness.run_in(connection.raw, op, harness.queue(), [item.lease for item in batch])
                assert answers == [answer] * 3
                connection.rollback()
            finally:
                connection.close()

        assert [row[0] for row in rows(harness)].count(0) == 3

    def test_one_that_ends_every_time_is_dead_in_the_end_and_not_tried_for_ever(self, harness: Harness) -> None:
        put(harness, 0, 5, "poison")
        for lane in (-1, -100):
            put(harness, lane, 5, "twin")
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 5)")
        fates = []
        for _ in range(harness.queue().options.max_attempts):
            (item,) = harness.take()
            failure = settle.Failure(item.lease, 0.0, ERROR, attempt=item.attempt)
            fates += harness.on("jobs", settle.nack, [failure])

        assert fates[-1] == "dead"
        assert harness.take() == []

    def test_where_the_sequence_is_behind_too_the_others_move_and_it_is_said(
        self, harness: Harness, batch: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        put(harness, -100, batch[1].id, "twin")
        for number in range(10, 20):
            put(harness, 0, number, "in the way")
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 10, false)")

        assert harness.on("jobs", bury, [item.lease for item in batch]) == ["dead", "lost", "dead"]

        assert "gets no other id" in caplog.text
        assert "setval" in caplog.text

    def test_what_has_used_up_its_attempts_is_buried_beside_a_twin(self, harness: Harness) -> None:
        put(harness, 0, 5, "spent")
        put(harness, -100, 5, "twin")
        harness.send(b"good")
        harness.ask("update pgqrs.q_jobs set attempt = 5 where lane = 0 and message_id = 5")
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 10)")

        found = harness.on("jobs", claim.claim, Marks(), limit=2, lease=30.0)

        assert [item.body for item in found] == [b"good"]
        assert [row[0] for row in rows(harness) if row[2] in ("spent", "twin")] == [-100, -100]


class TestReplaying:
    @pytest.mark.parametrize("which", ["all", "by id"])
    def test_dead_messages_come_back_beside_one_with_a_twin(self, harness: Harness, which: str) -> None:
        for number in (1, 2, 3):
            put(harness, -100, number, f"dead {number}", due="now()")
        put(harness, -1, 2, "twin", due="now()")
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 3)")

        count = harness.on("jobs", dead.replay_dead, None if which == "all" else [1, 2, 3])

        assert count == 3
        assert sorted(harness.bodies()) == [b"dead 1", b"dead 2", b"dead 3", b"twin"]


def test_an_id_that_was_chosen_is_refused(harness: Harness) -> None:
    with pytest.raises(psycopg.errors.GeneratedAlways):
        harness.ask("insert into pgqrs.q_jobs (lane, message_id, body) values (0, 77, 'x')")
