"""The engine against a server, each test on the blocking and on the asynchronous one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import MAKES, AsyncHarness, SyncHarness, ask, borrow, draft, meanwhile, outwait, sleep_once, until

import pgqrs_core.interest
import pgqrs_core.watch
from pgqrs_core.effects import Execute, Wait
from pgqrs_core.errors import (
    EnqueueUnknown,
    InvalidArgument,
    QueueExists,
    QueueNotFound,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SchemaUnavailable,
    SchemaUnrecorded,
    ServerError,
    TimedOut,
    Unavailable,
)
from pgqrs_core.marks import Marks
from pgqrs_core.messages import MAX_PRIORITY, Lease, Queue, QueueOptions
from pgqrs_core.operations import (
    archives,
    claim,
    dead,
    enqueue,
    maintenance,
    metrics,
    queues,
    schema,
    settle,
    uninstall,
)
from pgqrs_core.sql import Query

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Harness

    from pgqrs_core.effects import Op


HERE = maintenance.Process("here", 7)


def measured(harness: Harness, name: str = "jobs") -> Any:
    return harness.run(metrics.measure, [harness.queue(name)])[0]


class TestDelivery:
    def test_what_is_enqueued_is_claimed_as_it_was(self, harness: Harness) -> None:
        body, headers = bytes(range(256)), {"a": [1, None, "ü\0\n"], "b": {"c": 1.5}}
        (number,) = harness.send(body, headers=headers, content_type="x/y; z=1", priority=3)

        (item,) = harness.take()

        assert (item.id, item.body, item.headers, item.content_type) == (number, body, headers, "x/y; z=1")
        assert (item.attempt, item.priority, item.enqueued_at.utcoffset()) == (1, 3, timedelta(0))

    @pytest.mark.parametrize("body", [b"", b"\0", b"x" * 1_000_000], ids=["empty", "nul", "big"])
    def test_any_bytes_are_a_body(self, harness: Harness, body: bytes) -> None:
        harness.send(body)

        assert harness.bodies() == [body]

    def test_a_batch_of_alike_messages_comes_out_in_order(self, harness: Harness) -> None:
        bodies = [b"%d" % number for number in range(1000)]

        ids = harness.send(*bodies)

        assert ids == sorted(ids)
        assert harness.bodies(1000) == bodies

    def test_a_batch_of_mixed_messages_keeps_each_its_own_fields(self, harness: Harness) -> None:
        harness.enqueue(
            draft(b"a", headers={"n": 1}),
            draft(b"b", content_type="text/plain", priority=1),
            draft(b"c", headers={"n": True}),
            draft(b"late", delay=3600),
        )

        found = [(item.body, item.content_type, item.priority, item.raw_headers) for item in harness.take()]

        octets = "application/octet-stream"
        assert found == [(b"b", "text/plain", 1, None), (b"a", octets, 0, '{"n":1}'), (b"c", octets, 0, '{"n":true}')]

    def test_higher_priorities_come_first_and_equals_by_age(self, harness: Harness) -> None:
        for priority in (0, 5, MAX_PRIORITY, 5, 0):
            harness.send(b"%d" % priority, priority=priority)

        assert harness.bodies() == [b"9", b"5", b"5", b"0", b"0"]

    def test_a_small_batch_takes_the_most_urgent(self, harness: Harness) -> None:
        harness.send(b"low")
        harness.send(b"high", priority=1)

        assert harness.bodies(1) == [b"high"]

    def test_a_claimed_message_is_hidden_from_others(self, harness: Harness) -> None:
        harness.send()
        harness.take()

        assert harness.take() == []

    def test_an_empty_queue_gives_nothing(self, harness: Harness) -> None:
        assert harness.take() == []

    def test_a_delayed_message_comes_when_it_is_due_and_not_before(self, harness: Harness) -> None:
        harness.send(b"later", delay=0.3)
        assert harness.take() == []

        found = until(harness.take, "the message is due")

        (late,) = harness.ask("select lease_until - interval '30 s' >= due_at from pgqrs.q_jobs")
        assert (found[0].body, late[0]) == (b"later", True)

    def test_a_message_can_be_due_at_a_time_of_its_own(self, harness: Harness) -> None:
        at = datetime.now(timezone(timedelta(hours=5))) + timedelta(hours=1)

        harness.send(at=at)

        assert harness.ask("select due_at from pgqrs.q_jobs") == [(at,)]
        assert harness.take() == []

    def test_a_time_without_a_zone_is_refused_and_nothing_is_stored(self, harness: Harness) -> None:
        with pytest.raises(InvalidArgument, match="time zone"):
            harness.send(at=datetime(2020, 1, 1))

        assert harness.ask("select count(*) from pgqrs.q_jobs") == [(0,)]

    def test_a_time_in_the_past_is_due_at_once(self, harness: Harness) -> None:
        harness.send(at=datetime(2020, 1, 1, tzinfo=timezone.utc))

        assert len(harness.take()) == 1

    def test_a_message_is_not_delivered_after_its_time_to_live(self, harness: Harness) -> None:
        harness.send(b"short", ttl=0.05)
        harness.send(b"long", ttl=3600)
        until(lambda: harness.ask("select 1 from pgqrs.q_jobs where expires_at < clock_timestamp()"), "one has expired")

        assert harness.bodies() == [b"long"]

    def test_what_expired_is_removed_by_housekeeping(self, harness: Harness) -> None:
        harness.send(ttl=0.01)
        harness.send(ttl=3600)
        until(lambda: harness.ask("select 1 from pgqrs.q_jobs where expires_at < clock_timestamp()"), "one has expired")

        assert harness.run(maintenance.maintain, "pgqrs").expired == 1

    def test_an_expired_lease_gives_the_message_to_the_next_with_one_more_attempt(self, harness: Harness) -> None:
        harness.send()
        (first,) = harness.take(lease=0.1)

        (second,) = until(harness.take, "the lease has run out")

        assert (first.attempt, second.attempt, second.id) == (1, 2, first.id)
        assert first.token != second.token

    def test_a_message_that_kills_its_consumers_is_buried_with_the_reason(self, harness: Harness) -> None:
        harness.create("fragile", max_attempts=2)
        harness.send(b"poison", queue="fragile")
        attempts = []

        def die() -> bool:
            attempts.extend(item.attempt for item in harness.take(queue="fragile", lease=0.01))
            return bool(harness.on("fragile", dead.list_dead, 10))

        until(die, "it is dead")

        (found,) = harness.on("fragile", dead.list_dead, 10)
        assert attempts == [1, 2]
        assert (found.body, found.error["type"]) == (b"poison", "AttemptsExhausted")

    def test_a_paused_queue_gives_nothing_until_it_is_resumed(self, harness: Harness) -> None:
        harness.send()
        harness.run(queues.pause_queue, "jobs")
        assert harness.take() == []

        harness.run(queues.resume_queue, "jobs")

        assert len(harness.take()) == 1

    def test_marks_do_not_hide_what_was_enqueued_after_them(self, harness: Harness) -> None:
        """Several rounds with the same marks, as a consumer has them."""
        found = []
        for number in range(20):
            harness.send(b"%d" % number)
            found += harness.bodies(fresh=False)

        assert found == [b"%d" % number for number in range(20)]


SETTLERS: dict[str, Callable[..., Any]] = {
    "ack": settle.ack,
    "archive": settle.archive,
    "release": settle.release,
    "extend": lambda queue, leases: settle.extend(queue, leases, 60),
    "nack": lambda queue, leases: settle.nack(queue, [settle.Failure(lease) for lease in leases]),
    "replace": lambda queue, leases: replace_each(queue, leases),
}


def replace_each(queue: Queue, leases: list[Lease]) -> Op[list[bool]]:
    """Replace messages as the others settle them, several at once."""
    answers: list[bool] = []
    for lease in leases:
        answer = yield from settle.replace(queue, lease, draft(b"another"))
        answers.append(answer)
    return answers


class TestSettling:
    def test_what_is_acked_is_gone(self, harness: Harness) -> None:
        harness.send(b"a", b"b")
        first, _ = harness.take()

        assert harness.on("jobs", settle.ack, [first.lease]) == [True]

        assert harness.ask("select convert_from(body, 'utf8') from pgqrs.q_jobs") == [("b",)]

    def test_what_is_archived_is_kept_beside_the_queue(self, harness: Harness) -> None:
        harness.send(b"kept", headers={"a": 1}, priority=4)
        (item,) = harness.take()

        assert harness.on("jobs", settle.archive, [item.lease]) == [True]

        (found,) = harness.on("jobs", archives.list_archive, 10)
        assert (found.id, found.body, found.headers, found.attempt) == (item.id, b"kept", {"a": 1}, 1)
        assert harness.ask("select 1 from pgqrs.q_jobs") == []

    def test_what_failed_comes_back_with_one_more_attempt_and_its_error(self, harness: Harness) -> None:
        harness.send(priority=2)
        (item,) = harness.take()

        failure = settle.Failure(item.lease, error={"type": "E", "message": "a\0b"})
        assert harness.on("jobs", settle.nack, [failure]) == ["nacked"]

        (again,) = harness.take()
        assert (again.id, again.attempt, again.priority) == (item.id, 2, 2)
        assert harness.ask("select last_error->>'message' from pgqrs.q_jobs") == [("a\ufffdb",)]

    def test_what_failed_with_a_delay_comes_back_later(self, harness: Harness) -> None:
        harness.send()
        (item,) = harness.take()
        harness.on("jobs", settle.nack, [settle.Failure(item.lease, delay=3600)])

        assert harness.take() == []
        assert measured(harness).delayed == 1

    def test_what_failed_for_the_last_time_is_dead(self, harness: Harness) -> None:
        harness.create("once", max_attempts=1)
        harness.send(queue="once")
        (item,) = harness.take(queue="once")

        assert harness.on("once", settle.nack, [settle.Failure(item.lease)]) == ["dead"]
        assert harness.take(queue="once") == []

    def test_what_is_rejected_is_dead_at_once(self, harness: Harness) -> None:
        harness.send()
        (item,) = harness.take()

        assert harness.on("jobs", settle.nack, [settle.Failure(item.lease, bury=True)]) == ["dead"]

    def test_what_is_released_comes_back_at_once_and_its_attempt_does_not_count(self, harness: Harness) -> None:
        harness.send(b"a", b"b")
        (item,) = harness.take(1)
        harness.on("jobs", settle.release, [item.lease])

        found = harness.take()

        assert [(one.body, one.attempt) for one in found] == [(b"a", 1), (b"b", 1)]

    def test_what_is_replaced_comes_back_as_another_in_the_same_place(self, harness: Harness) -> None:
        harness.send(b"old", headers={"n": 1}, priority=2)
        (item,) = harness.take()

        news = draft(b"new", headers={"n": 2}, priority=7)
        assert harness.on("jobs", settle.replace, item.lease, news, error={"type": "E"}) is True

        (again,) = harness.take()
        assert (again.id, again.body, again.headers, again.priority, again.attempt) == (item.id, b"new", {"n": 2}, 7, 1)
        assert harness.ask("select last_error->>'type' from pgqrs.q_jobs") == [("E",)]

    def test_what_is_replaced_with_a_delay_comes_back_later(self, harness: Harness) -> None:
        harness.send()
        (item,) = harness.take()
        harness.on("jobs", settle.replace, item.lease, draft(b"late", delay=3600))

        assert harness.take() == []
        assert measured(harness).delayed == 1

    def test_an_extended_lease_outlives_its_first_end(self, harness: Harness) -> None:
        harness.send()
        (item,) = harness.take(lease=0.2)

        assert harness.on("jobs", settle.extend, [item.lease], 3600) == [True]

        (row,) = harness.ask("select lease_until > now() + interval '59 min' from pgqrs.q_jobs")
        assert row[0]

    @pytest.mark.parametrize("name", SETTLERS)
    def test_a_stale_lease_is_refused_while_the_others_of_its_batch_are_done(self, harness: Harness, name: str) -> None:
        harness.send(b"a", b"b", b"c")
        stale = harness.take(lease=0.01)[1]
        found = until(lambda: harness.take(), "the leases have run out")
        assert len(found) == 3
        first, _, last = found

        answers = harness.on("jobs", SETTLERS[name], [first.lease, stale.lease, last.lease])

        assert [answer not in (False, "lost") for answer in answers] == [True, False, True]

    @pytest.mark.parametrize("name", SETTLERS)
    def test_a_stale_lease_changes_nothing(self, harness: Harness, name: str) -> None:
        harness.send()
        (stale,) = harness.take(lease=0.01)
        (live,) = until(harness.take, "the lease has run out")
        before = harness.ask("select ctid::text, * from pgqrs.q_jobs")

        harness.on("jobs", SETTLERS[name], [stale.lease])

        assert harness.ask("select ctid::text, * from pgqrs.q_jobs") == before
        assert harness.on("jobs", settle.ack, [live.lease]) == [True]

    @pytest.mark.parametrize("name", SETTLERS)
    def test_what_was_settled_before_is_refused(self, harness: Harness, name: str) -> None:
        harness.send()
        (item,) = harness.take()
        harness.on("jobs", settle.ack, [item.lease])

        (answer,) = harness.on("jobs", SETTLERS[name], [item.lease])

        assert answer in (False, "lost")

    def test_a_guessed_token_opens_nothing(self, harness: Harness) -> None:
        harness.send()
        (item,) = harness.take()

        guesses = [Lease(item.lane, item.id, token) for token in (0, item.token - 1, item.token + 1)]

        assert harness.on("jobs", settle.ack, guesses) == [False, False, False]

    def test_the_zero_token_of_an_unclaimed_message_opens_nothing(self, harness: Harness) -> None:
        (number,) = harness.send()

        assert harness.on("jobs", settle.ack, [Lease(0, number, 0)]) == [False]

    def test_a_whole_batch_is_settled_at_once(self, harness: Harness) -> None:
        harness.send(*[b"x"] * 1000)
        leases = [item.lease for item in harness.take(1000)]

        assert harness.on("jobs", settle.ack, leases) == [True] * 1000


class TestDeadAndArchived:
    def bury(self, harness: Harness, *bodies: bytes) -> list[int]:
        harness.send(*bodies, headers={"h": 1}, priority=2)
        found = harness.take()
        harness.on("jobs", settle.nack, [settle.Failure(one.lease, bury=True, error={"m": "why"}) for one in found])
        return [one.id for one in found]

    def test_a_dead_message_can_be_looked_at(self, harness: Harness) -> None:
        (number,) = self.bury(harness, b"corpse")

        found = harness.on("jobs", dead.show_dead, number)

        assert (found.body, found.headers, found.error, found.priority) == (b"corpse", {"h": 1}, {"m": "why"}, 2)

    def test_the_latest_dead_come_first_and_page_by_page(self, harness: Harness) -> None:
        for body in (b"1", b"2", b"3"):
            self.bury(harness, body)

        first = harness.on("jobs", dead.list_dead, 2)
        rest = harness.on("jobs", dead.list_dead, 2, first[-1].died_at)

        assert [found.body for found in first + rest] == [b"3", b"2", b"1"]

    def test_a_replayed_message_is_as_new(self, harness: Harness) -> None:
        first, _ = self.bury(harness, b"a", b"b")

        assert harness.on("jobs", dead.replay_dead, [first, 999]) == 1

        (item,) = harness.take()
        assert (item.body, item.attempt, item.priority) == (b"a", 1, 2)

    def test_all_can_be_replayed(self, harness: Harness) -> None:
        self.bury(harness, b"a", b"b", b"c")

        assert harness.on("jobs", dead.replay_dead, None) == 3
        assert harness.bodies() == [b"a", b"b", b"c"]

    def test_all_can_be_purged(self, harness: Harness) -> None:
        self.bury(harness, b"a", b"b")
        harness.send(b"alive")

        assert harness.on("jobs", dead.purge_dead, None) == 2
        assert harness.bodies() == [b"alive"]

    def test_a_live_message_is_neither_shown_nor_purged_nor_replayed_as_dead(self, harness: Harness) -> None:
        (number,) = harness.send()

        assert harness.on("jobs", dead.show_dead, number) is None
        assert harness.on("jobs", dead.purge_dead, [number]) == 0
        assert harness.on("jobs", dead.replay_dead, [number]) == 0

    def archive(self, harness: Harness, *bodies: bytes) -> list[int]:
        harness.send(*bodies, priority=3, headers={"h": 1})
        found = harness.take()
        harness.on("jobs", settle.archive, [one.lease for one in found])
        return [one.id for one in found]

    def test_the_archive_is_listed_page_by_page(self, harness: Harness) -> None:
        ids = self.archive(harness, b"a", b"b", b"c")

        first = harness.on("jobs", archives.list_archive, 2)
        rest = harness.on("jobs", archives.list_archive, 2, first[-1].id)

        assert [found.id for found in first + rest] == ids[::-1]

    def test_an_archived_message_can_be_enqueued_again(self, harness: Harness) -> None:
        first, _ = self.archive(harness, b"a", b"b")

        assert harness.on("jobs", archives.replay_archive, [first, first, 999]) == 1

        (item,) = harness.take()
        assert (item.body, item.priority, item.headers, item.attempt) == (b"a", 3, {"h": 1}, 1)
        assert item.id > first

    def test_what_has_been_archived_long_enough_is_pruned(self, harness: Harness) -> None:
        self.archive(harness, b"old", b"new")
        harness.ask("update pgqrs.a_jobs set archived_at = now() - interval '1 hour' where body = 'old'")

        assert harness.on("jobs", archives.prune_archive, 60) == 1
        assert [found.body for found in harness.on("jobs", archives.list_archive, 10)] == [b"new"]

    def test_pruning_leaves_the_connection_with_its_pinned_plans(self, harness: Harness) -> None:
        harness.on("jobs", archives.prune_archive, 60)

        assert harness.run(show, "enable_bitmapscan", "statement_timeout") == ("off", "30s")


def show(*names: str) -> Any:
    columns = ", ".join(f"current_setting('{name}')" for name in names)
    rows = yield Execute(Query("show", f"select {columns}"))
    return rows[0]


#: Which of a backlog's messages were settled, by what is left.
GAPS: dict[str, str] = {
    "sparse at the front": "message_id < 60000",
    "sparse at the back": "message_id > 40000",
    "sparse throughout": "message_id % 3 <> 0",
    "two bursts far apart": "message_id between 15000 and 85000",
    "a few of each hundred": "message_id % 100 > 15",
    "bursts": "message_id % 4000 > 1000",
}


class TestQueues:
    def test_figures_tell_what_is_where(self, harness: Harness) -> None:
        harness.send(*[b"x"] * 6)
        harness.send(delay=100)
        one, two, three, _ = harness.take(4)
        harness.on("jobs", settle.ack, [one.lease])
        harness.on("jobs", settle.archive, [two.lease])
        harness.on("jobs", settle.nack, [settle.Failure(three.lease, bury=True)])

        found = measured(harness)

        counts = (found.ready, found.delayed, found.in_flight, found.dead, found.archived)
        assert counts == (2, 1, 1, 1, 1)
        assert found.oldest_ready_seconds >= 0
        assert 90 < found.next_due_seconds <= 100
        assert not found.estimated

    def test_a_due_message_counts_as_ready(self, harness: Harness) -> None:
        harness.send(at=datetime(2020, 1, 1, tzinfo=timezone.utc))

        assert (measured(harness).ready, measured(harness).delayed) == (1, 0)

    def test_expired_messages_are_counted_apart_and_not_as_ready(self, harness: Harness) -> None:
        """A consumer takes none of them, so they must call no worker: neither by number nor by age."""
        harness.send(b"a", b"b", ttl=0.3)
        harness.send(b"c", delay=50, ttl=0.3)
        (held,) = harness.take(1)
        harness.send(b"d", delay=0.01, ttl=0.3)
        until(lambda: harness.ask("select bool_and(expires_at < now()) from pgqrs.q_jobs") == [(True,)], "all expired")

        found = measured(harness)

        assert (found.ready, found.delayed, found.in_flight, found.expired) == (0, 0, 1, 3)
        assert (found.oldest_ready_seconds, found.next_due_seconds) == (None, None)
        harness.on("jobs", settle.ack, [held.lease])
        harness.on("jobs", queues.purge_queue)
        assert measured(harness).expired == 0

    def test_the_age_of_the_oldest_ready_message_passes_over_expired_ones(self, engine: SyncHarness) -> None:
        engine.ask(
            "insert into pgqrs.q_jobs (lane, body, enqueued_at, expires_at) "
            "select 0, '', now() - interval '1 hour', now() - interval '1 min' from generate_series(1, 30000)"
        )
        engine.ask(
            "insert into pgqrs.q_jobs (lane, body, enqueued_at) "
            "select 0, '', now() - interval '10 s' from generate_series(1, 10000)"
        )
        engine.ask(
            "insert into pgqrs.q_jobs (lane, body, due_at, expires_at) "
            "select -1, '', now() - interval '1 hour', now() - interval '1 min' from generate_series(1, 3)"
        )

        found = measured(engine)

        assert found.expired == pytest.approx(30_003, rel=0.05)
        assert found.ready == pytest.approx(10_000, rel=0.15)
        assert found.oldest_ready_seconds == pytest.approx(10, abs=5)
        assert set(found.estimated) == {"ready", "expired"}

    def test_the_same_queue_created_by_several_at_once_is_created_once(
        self, engine: SyncHarness, open_harness: Callable[..., Harness]
    ) -> None:
        others = [open_harness() for _ in range(4)]
        found: list[Any] = []
        threads = [threading.Thread(target=lambda other=other: found.append(other.create("same"))) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [queue.id for queue in found] == [found[0].id] * 4

    def test_figures_of_many_queues_come_in_one_go(self, harness: Harness) -> None:
        found = [harness.create(f"q{number}", archive=number % 2 == 0) for number in range(5)]
        harness.send(queue="q3")

        assert [item.ready for item in harness.run(metrics.measure, found)] == [0, 0, 0, 1, 0]

    @pytest.mark.parametrize("gone", GAPS)
    def test_a_long_queue_is_estimated_well_wherever_its_ids_are_dense(self, engine: SyncHarness, gone: str) -> None:
        """What is left of 100,000 messages when some were settled and others are still in flight."""
        engine.ask("insert into pgqrs.q_jobs (lane, body) select 0, '' from generate_series(1, 100000)")
        engine.ask("update pgqrs.q_jobs set lease_until = now() + interval '1 hour' where message_id % 50 = 0")
        engine.ask(f"delete from pgqrs.q_jobs where lease_until < now() and {GAPS[gone]}")
        ((left,),) = engine.ask("select count(*) from pgqrs.q_jobs")

        found = measured(engine)

        assert found.ready + found.in_flight == pytest.approx(left, rel=0.15)
        assert found.estimated == ("ready",)

    def test_a_long_archive_is_estimated_well(self, engine: SyncHarness) -> None:
        engine.ask(
            "insert into pgqrs.a_jobs (message_id, priority, attempt, enqueued_at, body) "
            "select case when n <= 20000 then n * 50 else n + 1000000 end, 0, 1, now(), '' from generate_series(1, 80000) n"
        )

        assert measured(engine).archived == pytest.approx(80_000, rel=0.15)

    def test_a_lane_just_over_the_cap_is_counted_to_the_end(self, engine: SyncHarness) -> None:
        engine.ask("insert into pgqrs.q_jobs (lane, body) select 0, '' from generate_series(1, 24000)")
        engine.ask("delete from pgqrs.q_jobs where message_id % 2 = 0")

        assert measured(engine).ready == 12_000

    def test_purging_removes_what_nobody_holds(self, harness: Harness) -> None:
        harness.send(b"a", b"b", b"c")
        harness.send(delay=100)
        harness.take(1)

        assert harness.on("jobs", queues.purge_queue) == 3
        assert measured(harness).in_flight == 1

    def test_peeking_claims_nothing(self, harness: Harness) -> None:
        harness.send(b"a", headers={"h": 1})
        harness.send(b"b", delay=100)
        harness.send(b"c", priority=1)

        found = harness.on("jobs", queues.peek, 10)

        assert sorted((item.body, item.state) for item in found) == [
            (b"a", "ready"),
            (b"b", "delayed"),
            (b"c", "ready"),
        ]
        assert sorted(harness.bodies()) == [b"a", b"c"]

    def test_peeking_tells_what_is_held_and_what_is_expired(self, harness: Harness) -> None:
        harness.send(b"held")
        harness.take()
        harness.send(b"expired", ttl=0.001)
        until(lambda: harness.ask("select 1 from pgqrs.q_jobs where expires_at < clock_timestamp()"), "one has expired")

        found = harness.on("jobs", queues.peek, 10)

        assert {item.body: item.state for item in found} == {b"held": "in flight", b"expired": "expired"}

    def test_creating_a_queue_again_changes_nothing(self, harness: Harness) -> None:
        harness.send()

        assert harness.create("jobs").id == harness.queue().id
        assert len(harness.take()) == 1

    def test_creating_it_again_with_other_options_is_refused(self, harness: Harness) -> None:
        with pytest.raises(QueueExists, match="max_attempts is 5, not 9"):
            harness.create("jobs", max_attempts=9)

    def test_options_can_be_changed(self, harness: Harness) -> None:
        harness.transact(queues.alter_queue, "jobs", {"max_attempts": 1})
        harness.engine.forget("jobs")

        assert harness.queue().options == QueueOptions(max_attempts=1)

    def test_a_queue_is_found_although_it_was_deleted_and_made_anew(self, harness: Harness) -> None:
        harness.send()
        other = SyncHarness(harness.dsn)
        try:
            other.transact(queues.delete_queue, "jobs")
            other.create("jobs", archive=False)
        finally:
            other.close()

        harness.send(b"new")

        assert harness.bodies() == [b"new"]

    def test_a_deleted_queue_is_not_found(self, harness: Harness) -> None:
        harness.create("jobs2")
        harness.send()
        harness.transact(queues.delete_queue, "jobs")

        with pytest.raises(QueueNotFound, match="did you mean 'jobs2'"):
            harness.send()

    def test_an_election_has_one_winner_until_he_resigns(self, harness: Harness) -> None:
        assert harness.run(maintenance.elect, 1, 60.0, HERE)
        assert not harness.run(maintenance.elect, 2, 60.0, HERE)
        assert harness.run(maintenance.elect, 1, 60.0, HERE)

        harness.run(maintenance.resign, 1)

        assert harness.run(maintenance.elect, 2, 60.0, HERE)

    def test_people_can_read_a_queue_at_a_prompt(self, harness: Harness) -> None:
        harness.send(b"hello")
        harness.take()

        assert harness.ask("select state, body from pgqrs.v_jobs") == [("in flight", "hello")]


NAMES = [
    "plain",
    "Plain",
    "PLAIN",
    "pla.in",
    "pla-in",
    "pla in",
    "pla_in",
    " plain",
    "plain ",
    "emoji 😀😀",
    "ünïcode",
    "u\u0308nicode",
    'quo"te',
    "quo'te",
    "back\\slash",
    "per%s %(cent)s %",
    "{brace} {queue}",
    '"; drop table x; --',
    "'; drop schema pgqrs cascade; --",
    "$$; select 1; $$",
    "select",
    "new\nline",
    "a" * 255,
    "a" * 254 + "b",
    "😀" * 255,
    "q_0123456789abcdef",
    "1",
    "-",
]


class TestNames:
    def test_names_of_any_kind_are_queues_of_their_own(self, harness: Harness) -> None:
        harness.ask("create table x (); create table public.pgqrs_sentinel ()")
        for name in NAMES:
            harness.create(name)
        for name in NAMES:
            harness.send(name.encode(), queue=name)

        found = {name: harness.bodies(queue=name) for name in NAMES}

        assert found == {name: [name.encode()] for name in NAMES}
        assert sorted(queue.name for queue in harness.run(queues.list_queues)) == sorted([*NAMES, "jobs"])
        assert len(harness.ask("select 1 from pg_class where relname in ('x', 'pgqrs_sentinel')")) == 2

    @pytest.mark.parametrize("name", ['"; drop table x; --', "per%s %(cent)s %", "😀" * 255])
    def test_a_queue_of_any_name_can_be_used_for_everything(self, harness: Harness, name: str) -> None:
        harness.create(name)
        harness.send(b"a", b"b", b"c", b"d", queue=name)
        one, two, three, four = harness.take(queue=name)

        assert harness.on(name, settle.ack, [one.lease]) == [True]
        assert harness.on(name, settle.archive, [two.lease]) == [True]
        assert harness.on(name, settle.nack, [settle.Failure(three.lease, bury=True)]) == ["dead"]
        assert harness.on(name, settle.release, [four.lease]) == [True]
        assert measured(harness, name).ready == 1
        assert len(harness.on(name, queues.peek, 10)) == 1
        assert harness.on(name, dead.replay_dead, None) == 1
        assert harness.on(name, queues.purge_queue) == 2
        harness.transact(queues.alter_queue, name, {"max_attempts": 1})
        harness.transact(queues.delete_queue, name)
        assert [queue.name for queue in harness.run(queues.list_queues)] == ["jobs"]

    @pytest.mark.parametrize("text", ["'; drop table pgqrs.q_jobs; --", '"', "\\", "%s", "%(body)s", "$1", "{queue}"])
    def test_values_are_never_taken_for_sql(self, harness: Harness, text: str) -> None:
        one = draft(text.encode(), content_type=text, headers={text: text})
        harness.enqueue(one)
        harness.enqueue(one, draft(text.encode()))

        found = harness.take()

        assert [item.body for item in found] == [text.encode()] * 3
        assert (found[0].content_type, found[0].headers) == (text, {text: text})
        failure = settle.Failure(found[0].lease, error={text: text}, bury=True)
        assert harness.on("jobs", settle.nack, [failure]) == ["dead"]
        assert harness.on("jobs", dead.show_dead, found[0].id).error == {text: text}

    @pytest.mark.parametrize(
        "name",
        [
            "Odd",
            'a"b; drop schema public',
            "{schema} {queue}",
            "ü" * 20,
            "100%",
            "%(body)s %% %s {schema}",
        ],
    )
    def test_a_schema_may_have_any_name(self, open_harness: Callable[..., Harness], name: str) -> None:
        harness = open_harness(schema=name)
        harness.transact(schema.install, name)
        harness.create("jobs")
        harness.send(b"a", b"b")
        caller = borrow(harness, "psycopg")
        harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft(b"c")])
        caller.commit()
        caller.close()

        found = harness.take()

        assert harness.on("jobs", settle.ack, [item.lease for item in found]) == [True] * 3
        assert harness.run(outwait, harness.queue(), 0.05) == 0
        assert harness.transact(uninstall.uninstall, name) == ["jobs"]


@pytest.mark.parametrize(
    ("open_harness", "make"),
    [(kind, make) for kind, makes in MAKES.items() for make in makes],
    indirect=["open_harness"],
)
class TestTransactions:
    def test_an_enqueue_is_committed_with_the_callers_rows(self, harness: Harness, make: str) -> None:
        harness.ask("create table mine (n int)")
        caller = borrow(harness, make)
        try:
            caller.execute("insert into mine values (1)")
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft(b"a"), draft(b"b", priority=1)])
            assert harness.take() == []

            caller.commit()
        finally:
            caller.close()

        assert harness.bodies() == [b"b", b"a"]
        assert harness.ask("select n from mine") == [(1,)]

    def test_an_enqueue_is_rolled_back_with_the_callers_rows(self, harness: Harness, make: str) -> None:
        harness.ask("create table mine (n int)")
        caller = borrow(harness, make)
        try:
            caller.execute("insert into mine values (1)")
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft()])

            caller.rollback()
        finally:
            caller.close()

        assert harness.ask("select 1 from pgqrs.q_jobs") == []
        assert harness.ask("select n from mine") == []

    def test_an_enqueue_that_comes_first_is_committed_as_well(self, harness: Harness, make: str) -> None:
        """Some frameworks commit only what they saw begin."""
        caller = borrow(harness, make)
        try:
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft(b"first")])
            caller.commit()
        finally:
            caller.close()

        assert harness.bodies() == [b"first"]

    def test_an_enqueue_without_a_commit_is_rolled_back(self, harness: Harness, make: str) -> None:
        caller = borrow(harness, make)
        try:
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft()])
        finally:
            caller.close()

        assert harness.ask("select 1 from pgqrs.q_jobs") == []

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_an_ack_takes_effect_with_the_callers_rows_or_not_at_all(
        self, harness: Harness, make: str, end: str
    ) -> None:
        harness.ask("create table mine (n int)")
        harness.send()
        (item,) = harness.take()
        caller = borrow(harness, make)
        try:
            caller.execute("insert into mine values (1)")
            assert harness.run_in(caller.raw, settle.ack, harness.queue(), [item.lease]) == [True]
            getattr(caller, end)()
        finally:
            caller.close()

        left = len(harness.ask("select 1 from pgqrs.q_jobs")), len(harness.ask("select 1 from mine"))
        assert left == ((0, 1) if end == "commit" else (1, 0))

    def test_a_stale_lease_is_refused_there_too(self, harness: Harness, make: str) -> None:
        harness.send()
        (item,) = harness.take()
        caller = borrow(harness, make)
        try:
            wrong = Lease(item.lane, item.id, item.token + 1)
            answers = harness.run_in(caller.raw, settle.ack, harness.queue(), [wrong, item.lease])
            caller.commit()
        finally:
            caller.close()

        assert answers == [False, True]

    def test_the_callers_settings_are_as_before(self, harness: Harness, make: str) -> None:
        query = "select string_agg(name || '=' || setting, ';' order by name) from pg_settings"
        caller = borrow(harness, make)
        try:
            before = raw_ask(harness, caller, query)
            harness.send()
            (item,) = harness.take()
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft(), draft()])
            harness.run_in(caller.raw, settle.ack, harness.queue(), [item.lease])

            inside = raw_ask(harness, caller, query)
            caller.commit()
            after = raw_ask(harness, caller, query)
        finally:
            caller.close()

        assert before == inside == after

    def test_a_statement_that_fails_there_is_our_error_and_the_callers_to_roll_back(
        self, harness: Harness, make: str
    ) -> None:
        queue = harness.queue()
        harness.ask("drop table pgqrs.q_jobs cascade")
        caller = borrow(harness, make)
        try:
            with pytest.raises(ServerError) as caught:
                harness.run_in(caller.raw, settle.ack, queue, [Lease(0, 1, 1)])
            caller.rollback()
            caller.execute("select 1")
        finally:
            caller.close()

        assert caught.value.sqlstate == "42P01"

    def test_nobody_waits_inside_the_callers_transaction(self, harness: Harness, make: str) -> None:
        caller = borrow(harness, make)
        try:
            with pytest.raises(AssertionError, match="must not wait"):
                harness.run_in(caller.raw, outwait, harness.queue())
        finally:
            caller.close()


def raw_ask(harness: Harness, caller: Any, query: str) -> Any:
    """Ask the session inside a borrowed connection."""

    def op() -> Any:
        return (yield Execute(Query("raw", query)))

    return harness.run_in(caller.raw, op)


class TestBorrowing:
    @pytest.mark.parametrize(
        "thing", [None, 5, "postgresql:///x", object()], ids=["None", "a number", "a text", "an object"]
    )
    def test_what_is_no_connection_is_refused(self, harness: Harness, thing: object) -> None:
        with pytest.raises(InvalidArgument, match="connection must be a psycopg connection"):
            harness.run_in(thing, enqueue.enqueue, harness.queue(), [draft()])

    def test_a_closed_connection_is_refused(self, harness: Harness) -> None:
        caller = borrow(harness, "psycopg")
        caller.close()

        with pytest.raises(InvalidArgument, match="open"):
            harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft()])

    def test_a_connection_of_the_other_kind_is_refused(self, harness: Harness, pgqrs_dsn: str) -> None:
        other = SyncHarness(pgqrs_dsn) if harness.kind == "async" else AsyncHarness(pgqrs_dsn)
        caller = borrow(other, "psycopg")
        try:
            with pytest.raises(InvalidArgument):
                harness.run_in(caller.raw, enqueue.enqueue, harness.queue(), [draft()])
        finally:
            caller.close()
            other.close()


@pytest.fixture
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing but notifications to wake anybody."""
    monkeypatch.setattr(pgqrs_core.interest, "QUICK", 60.0)
    monkeypatch.setattr(pgqrs_core.watch, "QUICK", 60.0)
    monkeypatch.setattr(pgqrs_core.watch, "POLL", 60.0)
    monkeypatch.setattr("pgqrs_core.wakeups.POLL", 60.0)


def send_once_somebody_waits(harness: Harness, name: str = "jobs", **fields: Any) -> Any:
    """What another process does."""

    def action() -> None:
        until(lambda: harness.waits_for(name), "somebody waits")
        other = SyncHarness(harness.dsn)
        try:
            other.send(queue=name, **fields)
        finally:
            other.close()

    return action


class TestWakeUps:
    @pytest.mark.usefixtures("without_probes")
    def test_a_sleeping_consumer_is_woken_by_a_notification(self, harness: Harness) -> None:
        queue = harness.queue()

        with meanwhile(send_once_somebody_waits(harness)):
            left = harness.run(outwait, queue)

        assert left > 0
        assert len(harness.take()) == 1

    @pytest.mark.usefixtures("without_probes")
    def test_without_a_notification_and_without_probes_nobody_is_woken(
        self, open_harness: Callable[..., Harness], harness: Harness
    ) -> None:
        """So the tests beside this one show what they say."""
        deaf = open_harness(queue={"enable_listen_notify": False})
        queue = deaf.queue()
        deaf.run(sleep_once, queue, 0.2)
        harness_free_send(harness.dsn)()

        assert deaf.run(sleep_once, queue, 0.5) == 0

    def test_with_listening_switched_off_a_consumer_is_woken_by_polling(
        self, open_harness: Callable[..., Harness], harness: Harness
    ) -> None:
        deaf = open_harness(queue={"enable_listen_notify": False})
        queue = deaf.queue()
        deaf.run(sleep_once, queue, 0.05)
        harness_free_send(harness.dsn)()

        assert deaf.run(sleep_once, queue, 30.0) > 0
        assert not deaf.waits_for()

    @pytest.mark.usefixtures("without_probes")
    @pytest.mark.parametrize("how", ["release", "nack", "replay_dead", "replay_archive"])
    def test_whatever_makes_a_message_claimable_wakes_a_sleeping_consumer(self, harness: Harness, how: str) -> None:
        harness.send()
        (item,) = harness.take()
        if how == "replay_dead":
            harness.on("jobs", settle.nack, [settle.Failure(item.lease, bury=True)])
        elif how == "replay_archive":
            harness.on("jobs", settle.archive, [item.lease])

        def give_back() -> None:
            until(harness.waits_for, "somebody waits")
            other = SyncHarness(harness.dsn)
            bell = other.engine.doorbell
            try:
                if how == "release":
                    other.on("jobs", settle.release, [item.lease], bell)
                elif how == "nack":
                    other.on("jobs", settle.nack, [settle.Failure(item.lease)], bell)
                elif how == "replay_dead":
                    other.on("jobs", dead.replay_dead, None, bell)
                else:
                    other.on("jobs", archives.replay_archive, [item.id], bell)
            finally:
                other.close()

        queue = harness.queue()
        with meanwhile(give_back):
            left = harness.run(outwait, queue)

        assert left > 0
        assert len(harness.take()) == 1

    @pytest.mark.usefixtures("without_probes")
    def test_a_delayed_message_wakes_a_sleeping_consumer_when_it_is_due(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A poll soon after it fell asleep tells when that will be; the next one would be too late."""
        monkeypatch.setattr(pgqrs_core.interest, "QUICK", 0.006)
        harness.send(delay=0.5)
        assert harness.take() == []

        left = harness.run(outwait, harness.queue())

        assert left > 0
        assert len(harness.take()) == 1

    def test_a_message_that_a_foreign_transaction_commits_is_found_by_polling(self, harness: Harness) -> None:
        queue = harness.queue()

        def insert() -> None:
            until(harness.waits_for, "somebody waits")
            harness.ask("insert into pgqrs.q_jobs (lane, body) values (0, 'x')")

        with meanwhile(insert):
            found = harness.take(patience=30)

        assert len(found) == 1
        assert queue.name == "jobs"

    def test_a_lease_that_runs_out_while_others_wait_is_noticed(self, harness: Harness) -> None:
        harness.send()
        harness.take(lease=0.3)

        (item,) = harness.take(patience=30)

        assert item.attempt == 2

    @pytest.mark.usefixtures("without_probes")
    @pytest.mark.parametrize("payload", ["", "x", "-1", "99999999999999999999", "1.5", "'; drop table x"])
    def test_nonsense_on_the_channel_wakes_nobody_and_breaks_nothing(self, harness: Harness, payload: str) -> None:
        queue = harness.queue()

        def talk() -> None:
            until(harness.waits_for, "somebody waits")
            harness.ask("select pg_notify('pgqrs:pgqrs', %s)", payload)
            send_once_somebody_waits(harness)()

        with meanwhile(talk):
            left = harness.run(outwait, queue)

        assert left > 0

    @pytest.mark.usefixtures("without_probes")
    def test_a_notification_that_arrives_with_the_answer_to_a_statement_is_not_lost(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection that listens also marks and probes; psycopg takes what arrives meanwhile."""
        queue = harness.queue()
        wakeups = harness.engine.wakeups
        execute = wakeups._execute
        ring = f"notify \"pgqrs:pgqrs\", '{queue.id}'"
        probes: list[Any] = []

        def is_first_probe(effect: Any) -> bool:
            probes.extend([effect] if effect.query.name == "probe" else [])
            return len(probes) == 1 and probes[-1] is effect

        def execute_and_ring(link: Any, effect: Any) -> Any:
            rows = execute(link, effect)
            if is_first_probe(effect):
                link.connection.execute(ring)
            return rows

        async def execute_and_ring_async(link: Any, effect: Any) -> Any:
            rows = await execute(link, effect)
            if is_first_probe(effect):
                await link.connection.execute(ring)
            return rows

        monkeypatch.setattr(pgqrs_core.interest, "QUICK", 0.3)
        replacement = execute_and_ring if harness.kind == "sync" else execute_and_ring_async
        monkeypatch.setattr(wakeups, "_execute", replacement)

        harness.run(sleep_once, queue, 5.0)  # Ends as soon as the queue is marked.
        left = harness.run(sleep_once, queue, 5.0)

        assert left > 0

    def test_several_consumers_of_one_process_share_one_listening_connection(self, harness: Harness) -> None:
        for number in range(3):
            harness.create(f"q{number}")
            harness.run(outwait, harness.queue(f"q{number}"), 0.05)

        idle = harness.ask(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )

        assert idle[0][0] <= 3  # a durable and a relaxed one for statements, and the one that listens

    def test_a_consumer_that_leaves_says_so(self, harness: Harness) -> None:
        queue = harness.queue()
        until(lambda: [harness.run(outwait, queue, 0.1), harness.waits_for()][1], "it says that it waits")

        harness.close()

        assert not harness.waits_for()

    @pytest.mark.usefixtures("without_probes")
    def test_wake_ups_work_again_after_all_connections_were_killed(self, harness: Harness) -> None:
        queue = harness.queue()
        harness.run(outwait, queue, 0.1)
        harness.ask("delete from pgqrs.waiters")
        harness.kill_backends()
        until(lambda: [harness.run(outwait, queue, 0.1), harness.waits_for()][1], "it listens again")

        with meanwhile(send_once_somebody_waits(harness)):
            left = harness.run(outwait, queue)

        assert left > 0

    def test_whoever_waits_while_the_connections_are_killed_goes_on(self, harness: Harness) -> None:
        def kill_and_send() -> None:
            until(harness.waits_for, "somebody waits")
            harness.kill_backends()
            harness_free_send(harness.dsn)()

        with meanwhile(kill_and_send):
            try:
                found = harness.take(patience=30)
            except Unavailable:
                # The claim itself may meet the dead connection; then the caller is told.
                found = harness.take(patience=30)

        assert len(found) == 1


def harness_free_send(dsn: str) -> Any:
    """A producer that knows nothing of wake-ups."""
    return lambda: ask(dsn, "insert into pgqrs.q_jobs (lane, body) values (0, 'x')")


class TestConnections:
    def test_the_next_operation_works_after_all_connections_were_killed(self, harness: Harness) -> None:
        harness.send(b"a")
        harness.take(1)
        harness.kill_backends()

        harness.send(b"b")

        assert harness.bodies() == [b"b"]

    def test_a_connection_that_dies_under_an_enqueue_leaves_its_outcome_unknown(self, harness: Harness) -> None:
        harness.ask(
            "create function die() returns trigger language plpgsql as "
            "$$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$; "
            "create trigger die before insert on pgqrs.q_jobs for each row execute function die()"
        )

        with pytest.raises(EnqueueUnknown, match="jobs"):
            harness.send()

        harness.ask("drop trigger die on pgqrs.q_jobs")
        harness.send(b"later")
        assert harness.bodies() == [b"later"]

    def test_at_the_limit_a_caller_waits_his_time_and_is_told(self, open_harness: Callable[..., Harness]) -> None:
        small = open_harness(max_connections=2, connection_timeout_seconds=1)
        pool = small.engine.connections
        link = small.do(pool.get, relaxed=False)
        try:
            with pytest.raises(TimedOut, match="raise max_connections"):
                small.run(queues.list_queues)
        finally:
            small.do(pool.put, link)

    def test_at_the_limit_a_caller_gets_the_next_free_connection(self, open_harness: Callable[..., Harness]) -> None:
        small = open_harness(max_connections=2)
        small.transact(schema.install, "pgqrs")
        link = small.do(small.engine.connections.get, relaxed=False)
        small.do(small.engine.connections.put, link)

        assert small.run(queues.list_queues) == []
        assert small.engine.connections.total == 1

    def test_the_first_relaxed_connection_takes_the_place_of_a_durable_one(
        self, open_harness: Callable[..., Harness]
    ) -> None:
        small = open_harness(max_connections=4)
        pool = small.engine.connections
        durable = [small.do(pool.get, relaxed=False) for _ in range(3)]
        small.do(pool.put, durable.pop())

        relaxed = small.do(pool.get, relaxed=True)

        assert pool.total == 3
        count = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        until(lambda: small.ask(count) == [(3,)], "three connections are left")
        for link in (relaxed, *durable):
            small.do(pool.put, link)

    @pytest.mark.parametrize("most", [2, 3, 4])
    def test_the_limit_holds_for_all_kinds_together(self, open_harness: Callable[..., Harness], most: int) -> None:
        """The connection of wake-ups included: where durable ones have used it up, the first relaxed one waits for one."""
        small = open_harness(max_connections=most)
        small.transact(schema.install, "pgqrs")
        pool = small.engine.connections
        durable = [small.do(pool.get, relaxed=False) for _ in range(most - 1)]
        small.do(small.engine.wakeups.wait, Wait(Queue(1, "jobs", "jobs", QueueOptions()), 0.05))

        relaxed = get_while_giving(small, durable.pop())

        assert (pool.total, relaxed.relaxed) == (most - 1, most > 2)
        sessions = "backend_type = 'client backend' and application_name = 'pgqrs'"
        until(lambda: len(small.backends(sessions)) <= most, "no more sessions than there may be")
        for link in (relaxed, *durable):
            small.do(pool.put, link)

    def test_a_glance_takes_whatever_connection_is_idle(self, harness: Harness) -> None:
        fresh = harness.engine.connections
        before = fresh.total
        link = harness.do(fresh.get, relaxed=True)
        harness.do(fresh.put, link)

        glanced = harness.do(fresh.get, relaxed=None)
        harness.do(fresh.put, glanced)

        assert glanced is link
        assert fresh.total == before + 1

    def test_a_glance_opens_a_connection_when_none_becomes_free(self, harness: Harness) -> None:
        pool = harness.engine.connections
        busy = [harness.do(pool.get, relaxed=relaxed) for relaxed in (True, False)]

        spare = harness.do(pool.get, relaxed=None)

        assert (pool.total, spare.relaxed) == (3, False)
        for link in (*busy, spare):
            harness.do(pool.put, link)

    def test_an_enqueue_does_not_wait_for_anothers_connection(self, harness: Harness) -> None:
        """Commits that wait for the disk at the same time are written at one go."""
        pool = harness.engine.connections
        links = [harness.do(pool.get, relaxed=False) for _ in range(4)]

        assert pool.total == 4
        for link in links:
            harness.do(pool.put, link)

    def test_idle_connections_are_kept_up_to_the_pools_size(self, open_harness: Callable[..., Harness]) -> None:
        small = open_harness(performance={"connection_pool_size": 2})
        pool = small.engine.connections
        links = [small.do(pool.get, relaxed=False) for _ in range(4)]
        for link in links:
            small.do(pool.put, link)

        assert pool.total == 2

    def test_a_connection_that_comes_back_within_a_transaction_is_not_kept(self, harness: Harness) -> None:
        pool = harness.engine.connections
        link = harness.do(pool.get, relaxed=False)
        harness.do(link.connection.execute, "begin")

        harness.do(pool.put, link)

        assert link.connection.closed

    def test_a_closed_engine_says_so(self, harness: Harness) -> None:
        harness.do(harness.engine.close)

        with pytest.raises(Unavailable, match="closed"):
            harness.send()

    def test_closing_twice_is_harmless(self, harness: Harness) -> None:
        harness.run(outwait, harness.queue(), 0.05)
        harness.do(harness.engine.close)
        spare = os.open(os.devnull, os.O_RDONLY)

        harness.do(harness.engine.close)

        os.close(spare)

    def test_closing_leaves_no_session_behind(self, harness: Harness) -> None:
        harness.send()
        harness.run(outwait, harness.queue(), 0.05)

        harness.do(harness.engine.close)

        until(lambda: not harness.backends(), "all sessions are gone")

    def test_a_statement_that_takes_too_long_is_cancelled_and_named_so(
        self, open_harness: Callable[..., Harness]
    ) -> None:
        hasty = open_harness(query_timeout_seconds=0.2)
        hasty.transact(schema.install, "pgqrs")
        hasty.create("jobs")
        with psycopg.connect(hasty.dsn) as other:
            other.execute("lock table pgqrs.q_jobs")

            with pytest.raises(TimedOut):
                hasty.send()

    def test_a_conflict_is_tried_again(self, harness: Harness) -> None:
        """A deadlock's victim is the statement that closes the circle; it runs again by itself."""
        harness.ask(
            "create sequence public.tries; create function public.refuse() returns trigger language plpgsql as $$ begin "
            "if nextval('public.tries') = 1 then raise exception 'conflict' using errcode = '40P01'; end if; "
            "return new; end $$; "
            "create trigger refuse before insert on pgqrs.q_jobs for each row execute function public.refuse()"
        )

        harness.send(b"once")

        assert harness.bodies() == [b"once"]

    def test_a_changed_table_does_not_break_prepared_statements(self, harness: Harness) -> None:
        harness.send(b"a")
        harness.bodies()
        harness.ask("drop view pgqrs.v_jobs; alter table pgqrs.q_jobs alter column attempt type bigint")

        harness.send(b"b")

        assert harness.bodies() == [b"b"]

    def test_our_sessions_are_set_up(self, harness: Harness) -> None:
        """Each switched-off step is one that ruined the claim, alone or together with another."""
        off = ["sort", "bitmapscan", "seqscan", "hashjoin", "mergejoin"]

        found = harness.run(show, *(f"enable_{step}" for step in off), "jit", "plan_cache_mode", "timezone")

        assert found == (*["off"] * 6, "force_generic_plan", "UTC")


class TestBadServers:
    def refused(self, open_harness: Callable[..., Harness], url: str) -> Unavailable:
        with pytest.raises(Unavailable) as caught:
            open_harness(url).run(queues.list_queues)
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cret" not in str(error)
            error = error.__cause__
        return caught.value

    def test_a_server_that_is_not_there_is_named(self, open_harness: Callable[..., Harness]) -> None:
        error = self.refused(open_harness, "host=/tmp/nowhere port=1 dbname=base user=me password=s3cret")

        assert "/tmp/nowhere" in str(error)
        assert "base" in str(error)
        assert not error.in_flight

    def test_a_database_that_is_not_there_is_named(
        self, open_harness: Callable[..., Harness], pgqrs_server: str
    ) -> None:
        url = psycopg.conninfo.make_conninfo(pgqrs_server, dbname="no_such_database")

        error = self.refused(open_harness, url)

        assert "no_such_database" in str(error)

    def test_a_wrong_password_is_refused_and_never_shown(
        self, open_harness: Callable[..., Harness], pgqrs_private_cluster: Any
    ) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(pgqrs_private_cluster.dsn)
        url = psycopg.conninfo.make_conninfo(**{**parts, "password": "s3cret"})

        error = self.refused(open_harness, url)

        assert "password authentication failed" in str(error)

    def test_the_pool_is_not_used_up_by_failures(self, open_harness: Callable[..., Harness]) -> None:
        lost = open_harness("host=/tmp/nowhere port=1", max_connections=2)
        for _ in range(5):
            with pytest.raises(Unavailable, match="cannot connect"):
                lost.run(queues.list_queues)

        assert lost.engine.connections.total == 0


class TestSchemaChecks:
    def test_a_database_without_our_tables_says_what_to_run(self, bare: Harness) -> None:
        with pytest.raises(SchemaMissing, match="Run `pgqrs install`"):
            bare.send()

    def test_installing_afterwards_helps_the_same_engine(self, bare: Harness) -> None:
        with pytest.raises(SchemaMissing):
            bare.send()

        bare.transact(schema.install, "pgqrs")
        bare.create("jobs")

        assert bare.send()

    def test_an_older_schema_is_refused(self, bare: Harness) -> None:
        bare.transact(schema.install, "pgqrs")
        bare.ask("delete from pgqrs.migrations where version > 1")

        with pytest.raises(SchemaTooOld, match="version 1, this code needs"):
            bare.send()

    def test_tables_without_the_record_of_their_version_are_refused(self, bare: Harness) -> None:
        bare.transact(schema.install, "pgqrs")
        bare.ask("delete from pgqrs.migrations")

        with pytest.raises(SchemaUnrecorded, match="pgqrs install --repair"):
            bare.send()
        with pytest.raises(SchemaUnrecorded):
            bare.transact(schema.install, "pgqrs")

    @pytest.mark.parametrize("safe", [True, False])
    def test_a_newer_schema_is_accepted_only_if_old_code_survives_it(self, harness: Harness, safe: bool) -> None:
        harness.ask("insert into pgqrs.migrations values ('pgqrs', 999, 'future', 'x', %s)", safe)
        harness.engine.forget("jobs")
        harness.engine._checked = False

        if safe:
            assert harness.send()
        else:
            with pytest.raises(SchemaTooNew, match="version 999"):
                harness.send()

    def test_a_schema_that_was_dropped_meanwhile_is_awaited(self, harness: Harness) -> None:
        harness.send()
        harness.ask("drop schema pgqrs cascade")

        with pytest.raises(SchemaUnavailable, match="migrations, queues"):
            harness.send()


def backend() -> Any:
    """Ask for the process that serves us."""
    rows = yield Execute(Query("backend", "select pg_backend_pid()"))
    return rows[0][0]


def test_a_forked_child_uses_connections_of_its_own_and_leaves_the_parents_alone(engine: SyncHarness) -> None:
    engine.send(b"parent")
    engine.run(outwait, engine.queue(), 0.05)
    sessions = {row[0] for row in engine.backends()}
    with warnings.catch_warnings():
        # From Python 3.12 on; a forking web server does it too.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            own = engine.run(backend) not in sessions
            found = engine.engine.on("jobs", claim.claim, Marks(), limit=10, lease=30.0)
            engine.engine.on("jobs", settle.ack, [item.lease for item in found])
            engine.send(b"child")
            # Its own thread and connection, too: those that wait in the parent did not come along.
            woken = engine.run(outwait, engine.queue(), 20.0) > 0
            engine.close()
            status = 0 if own and woken and [item.body for item in found] == [b"parent"] else 2
        finally:
            os._exit(status)
    _, outcome = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(outcome) == 0
    assert sessions <= {row[0] for row in engine.backends()}
    assert engine.bodies() == [b"child"]
    engine.send(b"again")
    assert engine.bodies() == [b"again"]
    assert engine.run(outwait, engine.queue(), 0.05) == 0


def test_an_engine_is_shared_by_many_threads(engine: SyncHarness) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: engine.send(b"%d" % number), range(120)))
        found = list(pool.map(lambda _: engine.bodies(), range(12)))

    assert sorted(int(body) for bodies in found for body in bodies) == list(range(120))


def get_while_giving(harness: Harness, link: Any) -> Any:
    """Ask for a relaxed connection where there is no room, give another one back meanwhile, and return what came."""
    pool = harness.engine.connections

    async def both() -> Any:
        wanted = asyncio.create_task(pool.get(relaxed=True))
        await asyncio.sleep(0)
        assert pool.total == pool.usage.limit
        await pool.put(link)
        return await wanted

    if harness.kind == "async":
        return harness.do(both)
    got: list[Any] = []
    with meanwhile(lambda: got.append(pool.get(relaxed=True))):
        until(lambda: pool._waiting, "it waits")
        assert pool.total == pool.usage.limit
        pool.put(link)
    return got[0]


class TestALentTransaction:
    def test_what_runs_in_it_commits_together(self, engine: SyncHarness, pgqrs_dsn: str) -> None:
        with engine.engine.transaction() as connection:
            engine.engine.run_in(connection, queues.pause_queue, "jobs")
            assert ask(pgqrs_dsn, "select count(*) from pgqrs.queues where paused_at is not null") == [(0,)]

        assert ask(pgqrs_dsn, "select count(*) from pgqrs.queues where paused_at is not null") == [(1,)]

    def test_it_rolls_back_when_the_block_fails_and_gives_its_connection_back(
        self, engine: SyncHarness, pgqrs_dsn: str
    ) -> None:
        def fail_late() -> None:
            with engine.engine.transaction() as connection:
                engine.engine.run_in(connection, queues.pause_queue, "jobs")
                raise KeyError

        with pytest.raises(KeyError):
            fail_late()

        assert ask(pgqrs_dsn, "select count(*) from pgqrs.queues where paused_at is not null") == [(0,)]
        assert engine.engine.connections.total == 1
