"""Each condition of the statements of ``queries.sql``, one at a time and next to what it must not let through."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import SyncHarness, ask, draft

from pgqrs_core.arrays import numbers, texts
from pgqrs_core.doorbell import notification
from pgqrs_core.effects import Execute
from pgqrs_core.messages import CLAIM_LANES, DEAD_LANE, Lease
from pgqrs_core.operations import enqueue, queues, schema, settle
from pgqrs_core.sql import queries
from pgqrs_core.testing import eventually, with_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqrs_core.effects import Op, Rows
    from pgqrs_core.messages import Queue

MINUTE = 60.0


class Bench(SyncHarness):
    """An engine with queues ``jobs`` and ``others``, and what stands in the table of ``jobs``."""

    def answer(self, effect: Execute) -> Rows:
        """Run one statement, and return what it answers."""

        def op() -> Op[Rows]:
            return (yield effect)

        found: Rows = self.run(op)
        return found

    def put(self, lane: int = 0, **columns: Any) -> int:
        """Write a row by hand, and return its id; times are seconds from now."""
        values = {"lane": lane, "priority": lane if lane >= 0 else max(-1 - lane, 0) % 10, "body": b"x", **columns}
        for name in ("due_at", "lease_until", "expires_at", "enqueued_at"):
            if values.get(name) is not None:
                values[name] = datetime.now(timezone.utc) + timedelta(seconds=values[name])
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        text = f"insert into pgqrs.q_jobs ({names}) overriding system value values ({places}) returning message_id"
        return int(self.ask(text, *values.values())[0][0])

    def rows(self, columns: str = "*") -> list[tuple[Any, ...]]:
        return self.ask(f"select {columns} from pgqrs.q_jobs order by message_id")

    def seconds(self, column: str) -> list[int]:
        """How far from now times are, rounded to tens of seconds: the test itself takes some."""
        return [round(row[0], -1) for row in self.rows(f"extract(epoch from {column} - now())::int")]

    def claimed(self, limit: int = 10, **marks: int) -> list[int]:
        """The ids that a claim takes, with these marks by lane."""
        lowest = [marks.get(f"lane{lane}", 0) for lane in CLAIM_LANES]
        params = {"lanes": numbers(CLAIM_LANES), "marks": numbers(lowest), "limit": limit, "lease": MINUTE, "token": 7}
        return [row[1] for row in self.answer(Execute(queries["claim"], params, self.queue()))]

    def probe(self) -> tuple[bool, float | None]:
        ((_, claimable, next_due, *_),) = self.answer(Execute(queries["probe"], queues=(self.queue(),)))
        return claimable, next_due


@pytest.fixture(scope="module")
def server(pgqrs_server: str) -> Iterator[Bench]:
    name = f"pgqrs_statements_{secrets.token_hex(4)}"
    ask(pgqrs_server, f"create database {name} template template0")
    bench = Bench(with_database(pgqrs_server, name), query_timeout_seconds=5)
    bench.transact(schema.install, "pgqrs")
    bench.create("jobs", archive=True, max_attempts=3)
    bench.create("others")
    yield bench
    bench.close()
    ask(pgqrs_server, f"drop database {name} with (force)")


@pytest.fixture
def bench(server: Bench) -> Iterator[Bench]:
    """All is empty, and nothing is paused."""
    yield server
    server.ask(
        "truncate pgqrs.q_jobs, pgqrs.a_jobs, pgqrs.waiters, pgqrs.idempotency_keys; "
        "update pgqrs.queues set paused_at = null"
    )


#: How each statement that stores is reached.
FORMS: dict[str, list[dict[str, Any]]] = {
    "enqueue_plain": [{}],
    "enqueue_one": [{"ttl": 2 * MINUTE}],
    "enqueue_alike": [{"ttl": 2 * MINUTE}] * 2,
    "enqueue_mixed": [{"ttl": 2 * MINUTE}, {"ttl": 2 * MINUTE, "priority": 3}],
    "enqueue_keyed": [{"ttl": 2 * MINUTE, "idempotency_key": "k"}, {"ttl": 2 * MINUTE}],
}


def storing(queue: Queue, form: str, **more: Any) -> Execute:
    drafts = [draft(**{**fields, **more}) for fields in FORMS[form]]
    effect = (enqueue._insert_keyed if form == "enqueue_keyed" else enqueue._insert)(queue, drafts)
    assert effect.query.name == form
    return effect


def replacing(bench: Bench, **fields: Any) -> Execute:
    """A statement that replaces a message that is held."""
    number = bench.put(lease_until=MINUTE, lease_token=7, attempt=2)
    return next(settle.replace(bench.queue(), Lease(0, number, 7), draft(b"new", **fields)))  # type: ignore[return-value]


@pytest.mark.parametrize("form", [*FORMS, "replace"])
@pytest.mark.parametrize(
    ("queue", "seconds", "told"), [("others", MINUTE, False), ("jobs", -MINUTE, False), ("jobs", MINUTE, True)]
)
def test_a_producer_is_told_of_those_who_sleep_on_his_queue_now(
    bench: Bench, form: str, queue: str, seconds: float, told: bool
) -> None:
    effect = replacing(bench) if form == "replace" else storing(bench.queue(), form)
    bench.ask(
        "insert into pgqrs.waiters (queue_id, consumer, until) "
        "select queue_id, 1, now() + %s * interval '1 second' from pgqrs.queues where name = %s returning 1",
        *(seconds, queue),
    )

    assert {row[1] for row in bench.answer(effect)} == {told}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "enqueue_plain"])
def test_delays_and_times_to_live_count_from_now(bench: Bench, form: str) -> None:
    bench.answer(storing(bench.queue(), form, delay=MINUTE))

    assert set(bench.seconds("due_at")) == {60}
    assert set(bench.seconds("expires_at")) == {120}


def test_what_replaces_another_is_as_if_it_were_enqueued_now(bench: Bench) -> None:
    effects = [replacing(bench, priority=4), replacing(bench, delay=MINUTE, ttl=2 * MINUTE)]
    bench.ask("update pgqrs.q_jobs set enqueued_at = 'epoch', last_error = '{}' returning 1")
    for effect in effects:
        bench.answer(effect)

    assert bench.rows("lane, priority, attempt, lease_until = 'epoch', lease_token, body, last_error::text") == [
        (-5, 4, 0, True, 0, b"new", None),
        (-1, 0, 0, True, 0, b"new", None),
    ]
    assert bench.rows("due_at = enqueued_at, expires_at is null") == [(True, True), (False, False)]
    assert bench.seconds("enqueued_at") == [0, 0]
    assert bench.seconds("due_at") == [0, 60]
    assert bench.ask("select round(extract(epoch from max(expires_at) - now())::int, -1) from pgqrs.q_jobs") == [(120,)]


class TestKeys:
    def test_those_without_keep_their_order_beside_one(self, bench: Bench) -> None:
        drafts = [draft(b"%d" % number) for number in range(100)]
        drafts.insert(50, draft(b"keyed", idempotency_key="k"))

        answers = bench.answer(enqueue._insert_keyed(bench.queue(), drafts))

        without = [row[0] for row in answers if row[2] is None]
        bodies = dict(bench.rows("message_id, body"))
        assert [bodies[number] for number in without] == [b"%d" % number for number in range(100)]
        assert [bodies[row[0]] for row in answers if row[2] is not None] == [b"keyed"]

    @pytest.mark.parametrize(("seconds", "is_known"), [(MINUTE, True), (-MINUTE, False)])
    def test_one_is_known_until_it_expires(self, bench: Bench, seconds: float, is_known: bool) -> None:
        effect = enqueue._insert_keyed(bench.queue(), [draft(idempotency_key="k")])
        ((first, *_),) = bench.answer(effect)
        bench.ask(
            "update pgqrs.idempotency_keys set expires_at = now() + %s * interval '1 second' returning 1", seconds
        )

        ((second, *_),) = bench.answer(effect)

        assert (second == first) is is_known
        assert len(bench.rows()) == (1 if is_known else 2)
        keys = "select message_id, expires_at > now() + interval '2 minutes' from pgqrs.idempotency_keys"
        assert bench.ask(keys) == [(second, not is_known)]


#: By name: what a claim takes, and what it must pass by.
CLAIMABLE: dict[str, dict[str, Any]] = {
    "ready": {},
    "ready, its lease over": {"lease_until": -MINUTE, "lease_token": 5, "attempt": 1},
    "ready, not yet expired": {"expires_at": MINUTE},
    "due": {"lane": -1, "due_at": -MINUTE},
    "due, its lease over": {"lane": -1, "due_at": -MINUTE, "lease_until": -MINUTE, "lease_token": 5},
    "due, not yet expired": {"lane": -1, "due_at": -MINUTE, "expires_at": MINUTE},
}
PASSED_BY: dict[str, dict[str, Any]] = {
    "held": {"lease_until": MINUTE, "lease_token": 5},
    "held, to expire": {"lease_until": MINUTE, "lease_token": 5, "expires_at": 2 * MINUTE},
    "expired": {"expires_at": -MINUTE},
    "delayed": {"lane": -1, "due_at": MINUTE},
    "delayed, to expire": {"lane": -1, "due_at": MINUTE, "expires_at": 2 * MINUTE},
    "due, held": {"lane": -1, "due_at": -MINUTE, "lease_until": MINUTE, "lease_token": 5},
    "due, held, to expire": {"lane": -1, "due_at": -MINUTE, "lease_until": MINUTE, "expires_at": 2 * MINUTE},
    "due, expired": {"lane": -1, "due_at": -MINUTE, "expires_at": -MINUTE},
    "dead": {"lane": DEAD_LANE, "due_at": -MINUTE},
}


class TestClaim:
    @pytest.mark.parametrize("state", CLAIMABLE)
    def test_it_takes_what_is_claimable_whatever_lies_beside_it(self, bench: Bench, state: str) -> None:
        for other in PASSED_BY.values():
            bench.put(**other)
        number = bench.put(**CLAIMABLE[state])
        before = bench.rows("*")

        assert bench.claimed() == [number]

        assert bench.rows("*")[:-1] == before[:-1]
        ((attempt, token),) = bench.ask(f"select attempt, lease_token from pgqrs.q_jobs where message_id = {number}")
        assert (attempt, token) == (CLAIMABLE[state].get("attempt", 0) + 1, 7)
        assert bench.seconds("lease_until")[-1] == 60

    @pytest.mark.parametrize("lane", list(CLAIM_LANES))
    def test_it_reads_every_lane(self, bench: Bench, lane: int) -> None:
        number = bench.put(lane, due_at=-MINUTE if lane < 0 else None)

        assert bench.probe() == (True, None)
        assert bench.claimed() == [number]

    def test_it_takes_the_eldest_of_the_last_lane_that_it_has_room_for(self, bench: Bench) -> None:
        ready = [bench.put(0) for _ in range(60)]
        late, early = (bench.put(-1, due_at=-MINUTE * age) for age in (2, 3))
        urgent = bench.put(9)

        assert sorted(bench.claimed(2)) == sorted([early, urgent])
        assert sorted(bench.claimed(5)) == sorted([late, *ready[:4]])

    def test_of_those_due_at_one_moment_it_takes_the_eldest(self, bench: Bench) -> None:
        first, *_ = [bench.put(-1, due_at=-MINUTE) for _ in range(3)]
        bench.ask("update pgqrs.q_jobs set due_at = 'epoch' returning 1")

        assert bench.claimed(1) == [first]

    def test_it_begins_with_the_mark_itself(self, bench: Bench) -> None:
        first, second = bench.put(0), bench.put(0)

        assert bench.claimed(lane0=second) == [second]
        assert bench.claimed() == [first]

    @pytest.mark.parametrize("columns", [{}, {"lane": -1, "due_at": -MINUTE}], ids=["ready", "due"])
    def test_it_does_not_wait_for_what_another_has_locked(self, bench: Bench, columns: dict[str, Any]) -> None:
        locked, free = bench.put(**columns), bench.put(**columns)
        with psycopg.connect(bench.dsn) as other:
            other.execute("select from pgqrs.q_jobs where message_id = %s for update", [locked])

            assert bench.claimed() == [free]

    def test_it_takes_nothing_while_its_own_queue_is_paused(self, bench: Bench) -> None:
        number = bench.put()
        bench.run(queues.pause_queue, "jobs")
        assert (bench.claimed(), bench.probe()) == ([], (False, None))

        bench.run(queues.pause_queue, "others")
        bench.run(queues.resume_queue, "jobs")

        assert bench.probe() == (True, None)
        assert bench.claimed() == [number]


class TestProbe:
    @pytest.mark.parametrize("state", CLAIMABLE)
    def test_it_sees_what_is_claimable(self, bench: Bench, state: str) -> None:
        bench.put(**CLAIMABLE[state])

        assert bench.probe() == (True, None)

    @pytest.mark.parametrize("state", PASSED_BY)
    def test_it_passes_by_what_a_claim_does(self, bench: Bench, state: str) -> None:
        bench.put(**PASSED_BY[state])

        assert bench.probe()[0] is False

    def test_it_tells_when_the_next_is_due(self, bench: Bench) -> None:
        for lane, due in ((-1, 3 * MINUTE), (-1, 2 * MINUTE), (-10, MINUTE), (DEAD_LANE, 10.0)):
            bench.put(lane, due_at=due)

        claimable, seconds = bench.probe()

        assert not claimable
        assert seconds is not None
        assert 50 < seconds <= MINUTE


SETTLING: dict[str, dict[str, Any]] = {
    "ack": {},
    "archive": {},
    "extend": {"lease": MINUTE},
    "nack": {"max_attempts": 3, "delays": "{60}", "burials": "{f}", "errors": "{NULL}"},
    "release": {"refund": 1},
    "postpone": {"errors": "{NULL}"},
    "replace": {},
}


def settling(bench: Bench, name: str, lease: Lease, **more: Any) -> Rows:
    if name == "replace":
        return bench.answer(next(settle.replace(bench.queue(), lease, draft(b"new"))))  # type: ignore[arg-type]
    # Where the row with this id is: the place alone must not let anything through.
    places = bench.ask("select ctid::text from pgqrs.q_jobs where message_id = %s", lease.message_id)
    params = {
        "lanes": f"{{{lease.lane}}}",
        "ids": f"{{{lease.message_id}}}",
        "tokens": f"{{{lease.token}}}",
        "places": texts(row[0] for row in places),
    }
    return bench.answer(Execute(queries[name], {**params, **SETTLING[name], **more}, bench.queue()))


@pytest.mark.parametrize("name", SETTLING)
class TestFences:
    def held(self, bench: Bench) -> tuple[int, int]:
        """Two messages with one token each; no two of their lanes, ids and tokens go together but their own."""
        return (
            bench.put(0, lease_until=10.0, lease_token=7, attempt=1),
            bench.put(5, lease_until=10.0, lease_token=8, attempt=1),
        )

    @pytest.mark.parametrize("wrong", [(5, 0, 7), (0, 1, 7), (0, 0, 8), (5, 1, 7), (0, 1, 8), (5, 0, 8)])
    def test_what_names_no_row_by_lane_and_id_and_token_changes_none(
        self, bench: Bench, name: str, wrong: tuple[int, int, int]
    ) -> None:
        lane, place, token = wrong
        numbers_of = self.held(bench)
        before = bench.rows()

        assert settling(bench, name, Lease(lane, numbers_of[place], token)) == []

        assert bench.rows() == before
        assert bench.ask("select from pgqrs.a_jobs") == []

    def test_what_names_one_changes_that_alone(self, bench: Bench, name: str) -> None:
        first, _ = self.held(bench)
        before = bench.rows()

        answer = settling(bench, name, Lease(0, first, 7))

        assert [row[0] for row in answer] == [first]
        assert before[0] not in bench.rows()
        assert bench.rows()[-1] == before[1]
        assert bench.ask("select message_id from pgqrs.a_jobs") == ([(first,)] if name == "archive" else [])


class TestSettling:
    STATE = "lane, attempt, lease_until = 'epoch', lease_token"

    def held(self, bench: Bench, attempt: int = 1) -> Lease:
        return Lease(3, bench.put(3, lease_until=10.0, lease_token=7, attempt=attempt, enqueued_at=-120.0), 7)

    def test_an_extended_lease_runs_from_now(self, bench: Bench) -> None:
        settling(bench, "extend", self.held(bench))

        assert bench.seconds("lease_until") == [60]

    @pytest.mark.parametrize(("refund", "attempt"), [(1, 0), (0, 1)])
    def test_what_is_released_is_due_since_it_was_enqueued(self, bench: Bench, refund: int, attempt: int) -> None:
        settling(bench, "release", self.held(bench), refund=refund)

        assert bench.rows(f"{self.STATE}, due_at = enqueued_at") == [(-4, attempt, True, 0, True)]

    def test_what_failed_is_due_after_its_delay(self, bench: Bench) -> None:
        settling(bench, "nack", self.held(bench, 2), errors='{"{\\"type\\":\\"E\\"}"}')

        assert bench.rows(f"{self.STATE}, last_error::text") == [(-4, 2, True, 0, '{"type":"E"}')]
        assert bench.seconds("due_at") == [60]

    @pytest.mark.parametrize(("attempt", "burials"), [(3, "{f}"), (4, "{f}"), (1, "{t}")])
    def test_what_is_dead_is_so_since_now(self, bench: Bench, attempt: int, burials: str) -> None:
        settling(bench, "nack", self.held(bench, attempt), burials=burials)

        assert bench.rows(f"{self.STATE}, due_at <= now()") == [(DEAD_LANE, attempt, True, 0, True)]


class TestSleepers:
    """Each is a session that holds the lock on its number, and listens under it."""

    @pytest.fixture(autouse=True)
    def sessions(self, bench: Bench) -> Iterator[dict[int, psycopg.Connection[Any]]]:
        self.sessions_: dict[int, psycopg.Connection[Any]] = {}
        for number in (1, 2, 3, 4):
            session = self.sessions_[number] = psycopg.connect(bench.dsn, autocommit=True)
            session.execute(f"select pg_advisory_lock({number})".encode())
            session.execute(f'listen "pgqrs:{number}"'.encode())
        yield self.sessions_
        for session in self.sessions_.values():
            session.close()

    def watch(
        self, bench: Bench, name: str, consumer: int, queue: str, seconds: float = MINUTE, **more: bool
    ) -> list[tuple[Any, ...]]:
        params = {"queue_ids": numbers([bench.queue(queue).id]), "consumer": consumer}
        params |= {"seconds": seconds, "fresh": False} if name == "watch" else {"polled": False}
        return bench.answer(Execute(queries[name], params | more))

    def notify(self, bench: Bench, count: int, but: int = 0) -> int:
        return len(bench.answer(notification(bench.queue("jobs").id, count, but=but)))

    def kill(self, bench: Bench, number: int) -> None:
        """End a session, and wait until its locks are gone."""
        self.sessions_[number].close()
        eventually(
            lambda: bench.ask("select pg_try_advisory_xact_lock_shared(%s)", number) == [(True,)],
            what="the lock is gone",
        )

    def told(self, number: int) -> list[str]:
        """What was told to a session up to now."""
        session = self.sessions_[number]
        session.execute("select 1")
        return [notice.payload for notice in session.notifies(timeout=0)]

    def sleepers(self, bench: Bench) -> list[tuple[Any, ...]]:
        return bench.ask(
            "select consumer, name, round(extract(epoch from until - now())::int, -1)::int "
            "from pgqrs.waiters join pgqrs.queues using (queue_id) order by 1, 2"
        )

    def test_whoever_sleeps_again_sleeps_from_now(self, bench: Bench) -> None:
        self.watch(bench, "watch", 1, "jobs")
        self.watch(bench, "watch", 1, "jobs", 2 * MINUTE)

        assert self.sleepers(bench) == [(1, "jobs", 120)]

    def test_whoever_wakes_up_says_so_for_himself_and_for_these_queues(self, bench: Bench) -> None:
        for consumer, queue in ((1, "jobs"), (1, "others"), (2, "jobs")):
            self.watch(bench, "watch", consumer, queue)

        self.watch(bench, "unwatch", 1, "jobs")

        assert self.sleepers(bench) == [(1, "others", 60), (2, "jobs", 60)]

    def test_the_answer_tells_how_many_others_sleep_and_how_many_come_first(self, bench: Bench) -> None:
        for consumer, queue in ((1, "jobs"), (3, "jobs"), (2, "others")):
            self.watch(bench, "watch", consumer, queue)

        ((number, others, place, *_),) = self.watch(bench, "watch", 4, "jobs")

        assert (number, others, place) == (bench.queue("jobs").id, 2, 2)

    def test_those_that_have_died_are_removed_and_the_first_two_are_told_to_poll(self, bench: Bench) -> None:
        for consumer in (1, 2, 3):
            self.watch(bench, "watch", consumer, "jobs")
        self.kill(bench, 2)

        ((_, others, place, *_),) = self.watch(bench, "watch", 4, "jobs")

        assert (others, place) == (2, 2)
        assert [row[0] for row in self.sleepers(bench)] == [1, 3, 4]
        assert self.told(1) == self.told(3) == [f"{bench.queue('jobs').id} poll"]

    def test_those_whose_time_is_up_are_removed(self, bench: Bench) -> None:
        self.watch(bench, "watch", 1, "jobs", -1.0)

        ((_, others, _, *_),) = self.watch(bench, "watch", 2, "jobs")

        assert others == 0
        assert [row[0] for row in self.sleepers(bench)] == [2]

    def test_a_new_sleeper_tells_one_that_believed_to_be_alone(self, bench: Bench) -> None:
        self.watch(bench, "watch", 1, "jobs", fresh=True)
        self.watch(bench, "watch", 2, "jobs", fresh=True)
        self.watch(bench, "watch", 3, "jobs", fresh=True)

        assert self.told(1) == [f"{bench.queue('jobs').id} poll"]
        assert self.told(2) == []

    def test_whoever_polled_for_others_tells_the_first_two_that_he_goes(self, bench: Bench) -> None:
        for consumer in (1, 2, 3, 4):
            self.watch(bench, "watch", consumer, "jobs")

        self.watch(bench, "unwatch", 1, "jobs", polled=True)

        assert [len(self.told(number)) for number in (1, 2, 3, 4)] == [0, 1, 1, 0]

    def test_as_many_are_notified_as_asked_for_and_no_more(self, bench: Bench) -> None:
        for consumer in (1, 2, 3, 4):
            self.watch(bench, "watch", consumer, "jobs")

        assert self.notify(bench, 2) == 2

        assert sorted(len(self.told(number)) for number in (1, 2, 3, 4)) == [0, 0, 1, 1]

    def test_each_is_chosen_as_often_as_the_others(self, bench: Bench) -> None:
        for consumer in (1, 2, 3, 4):
            self.watch(bench, "watch", consumer, "jobs")
        counts = dict.fromkeys((1, 2, 3, 4), 0)
        for _ in range(200):
            self.notify(bench, 1)
        for number in counts:
            counts[number] = len(self.told(number))

        assert sum(counts.values()) == 200
        assert min(counts.values()) >= 20

    def test_neither_the_dead_nor_the_sender_nor_sleepers_on_other_queues_are_notified(self, bench: Bench) -> None:
        for consumer, queue in ((1, "jobs"), (2, "jobs"), (3, "others"), (4, "jobs")):
            self.watch(bench, "watch", consumer, queue)
        self.kill(bench, 2)

        assert self.notify(bench, 4, but=1) == 1
        assert self.told(4) == [str(bench.queue("jobs").id)]
