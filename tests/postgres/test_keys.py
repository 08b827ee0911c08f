"""Idempotency keys against a server: a message is stored once, however often, by whomever and after whatever."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import MAKES, SyncHarness, ask, borrow, draft, meanwhile, until

from pgqrs_core.errors import EnqueueUnknown, InvalidArgument, MessageIdsCollide, QueueNotFound, ServerError
from pgqrs_core.marks import LAG, Marks
from pgqrs_core.operations import claim, enqueue, maintenance, queues, settle
from pgqrs_core.pasting import advance_sequence

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Harness


def stored(harness: Harness, table: str = "q_jobs") -> int:
    count: int = harness.ask(f"select count(*) from pgqrs.{table}")[0][0]
    return count


def age_keys(harness: Harness, seconds: float) -> None:
    harness.ask("update pgqrs.idempotency_keys set expires_at = expires_at - %s * interval '1 second'", seconds)


class TestOnce:
    def test_the_same_key_is_stored_once_and_answers_with_the_id_of_the_first(self, harness: Harness) -> None:
        (first,) = harness.send(b"a", idempotency_key="k")

        assert harness.send(b"another body", idempotency_key="k") == [first]

        assert harness.bodies() == [b"a"]

    def test_other_keys_and_none_are_messages_of_their_own(self, harness: Harness) -> None:
        for key in ("k", "K", "k ", "ü", "x" * 255, "ü" * 255, "{,\"\\'}", "NULL", "%s", None, None):
            harness.send(idempotency_key=key)

        assert stored(harness) == 11

    def test_each_queue_knows_its_own_keys(self, harness: Harness) -> None:
        harness.create("other")

        harness.send(idempotency_key="k")
        harness.send(idempotency_key="k", queue="other")

        assert (stored(harness), stored(harness, "q_other")) == (1, 1)

    @pytest.mark.parametrize("fate", ["in flight", "acked", "archived", "buried", "purged", "expired"])
    def test_it_is_known_whatever_became_of_the_first(self, harness: Harness, fate: str) -> None:
        (first,) = harness.send(idempotency_key="k", ttl=0.001 if fate == "expired" else None)
        if fate == "purged":
            harness.on("jobs", queues.purge_queue)
        elif fate == "expired":
            until(lambda: harness.run(maintenance.maintain, "pgqrs").expired, "it has expired")
        else:
            (item,) = harness.take()
            if fate == "buried":
                harness.on("jobs", settle.nack, [settle.Failure(item.lease, bury=True)])
            elif fate != "in flight":
                harness.on("jobs", settle.ack if fate == "acked" else settle.archive, [item.lease])
        before = stored(harness)

        assert harness.send(idempotency_key="k") == [first]

        assert stored(harness) == before

    def test_a_message_with_a_key_keeps_all_its_fields(self, harness: Harness) -> None:
        harness.enqueue(
            draft(b"a", idempotency_key="a", priority=3, headers={"n": 1}, content_type="text/plain", ttl=60),
            draft(b"b", idempotency_key="b", delay=60, priority=2),
        )

        rows = harness.ask(
            "select lane, priority, due_at > now(), expires_at > now(), content_type, headers::text, body "
            "from pgqrs.q_jobs order by message_id"
        )

        octets = "application/octet-stream"
        assert rows == [(3, 3, None, True, "text/plain", '{"n":1}', b"a"), (-3, 2, True, None, octets, None, b"b")]

    @pytest.mark.parametrize("key", ["", "x" * 256, "nul\0", "\ud800", 7, b"k"], ids=repr)
    def test_a_senseless_key_is_refused_and_nothing_of_the_batch_is_stored(self, harness: Harness, key: Any) -> None:
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            harness.enqueue(draft(idempotency_key="good"), draft(idempotency_key=key))

        assert (stored(harness), stored(harness, "idempotency_keys")) == (0, 0)


class TestBatches:
    def test_ids_come_back_in_order_with_known_and_repeated_keys_and_none(self, harness: Harness) -> None:
        (known,) = harness.send(b"known", idempotency_key="b")
        keys = [None, "c", "b", "c", None, "a"]

        ids = harness.enqueue(*(draft(b"%d" % place, idempotency_key=key) for place, key in enumerate(keys)))

        assert ids[2] == known
        assert ids[1] == ids[3]
        assert dict(harness.ask("select message_id, body from pgqrs.q_jobs")) == {
            known: b"known",
            ids[0]: b"0",
            ids[1]: b"1",
            ids[4]: b"4",
            ids[5]: b"5",
        }

    def test_a_batch_sent_again_stores_nothing(self, harness: Harness) -> None:
        batch = [draft(b"%d" % number, idempotency_key=f"k{number}") for number in range(1000)]
        ids = harness.enqueue(*batch)

        assert harness.enqueue(*reversed(batch)) == ids[::-1]

        assert ids == sorted(ids)
        assert stored(harness) == 1000

    def test_a_batch_that_fails_leaves_no_key_behind(self, harness: Harness) -> None:
        """A key without its message would lose the retry."""
        harness.ask("alter table pgqrs.q_jobs add check (body <> 'bad')")

        with pytest.raises(ServerError):
            harness.enqueue(draft(b"good", idempotency_key="a"), draft(b"bad", idempotency_key="b"))

        assert (stored(harness), stored(harness, "idempotency_keys")) == (0, 0)

    def test_a_batch_of_thousand_keys_is_not_joined_row_by_row(self, engine: SyncHarness) -> None:
        """Hashed, or in time proportional to the square of its length."""
        with psycopg.connect(engine.dsn) as connection:
            engine.run_in(connection, enqueue.enqueue, engine.queue(), [draft(idempotency_key="k")])
            connection.execute("load 'auto_explain'")
            connection.execute("set local auto_explain.log_min_duration = 0")
            connection.execute("set local auto_explain.log_nested_statements = on")
            connection.execute("set local client_min_messages = log")
            for name in ("sort", "bitmapscan", "seqscan", "hashjoin", "mergejoin"):
                connection.execute(f"set local enable_{name} = off".encode())
            plans: list[str] = []
            connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
            batch = [draft(idempotency_key=f"k{number}") for number in range(10)]
            engine.run_in(connection, enqueue.enqueue, engine.queue(), batch)

        (plan,) = [text for text in plans if "idempotency_keys" in text]
        assert "hashed SubPlan" in plan
        assert "Seq Scan" not in plan


class TestIds:
    """What decides is the key: ids come again after a switch-over, a restore, or a TRUNCATE."""

    @pytest.mark.parametrize(
        "accident",
        [
            "truncate pgqrs.q_jobs restart identity",
            "select setval('pgqrs.q_jobs_message_id_seq', 1, false)",
            "alter sequence pgqrs.q_jobs_message_id_seq restart",
        ],
    )
    def test_a_known_key_is_known_though_its_id_is_drawn_again(self, harness: Harness, accident: str) -> None:
        batch = [draft(b"%d" % number, idempotency_key=f"invoice-{number}") for number in range(20)]
        ids = harness.enqueue(*batch)
        for item in harness.take(limit=20):
            harness.on("jobs", settle.ack, [item.lease])
        harness.ask(accident)

        assert harness.enqueue(*batch) == ids

        assert stored(harness) == 0

    def test_a_new_key_is_stored_though_another_key_has_the_id(self, harness: Harness) -> None:
        (first,) = harness.send(b"a", idempotency_key="a")
        harness.bodies()
        harness.ask("truncate pgqrs.q_jobs restart identity")

        assert harness.send(b"b", idempotency_key="b") == [first]

        assert harness.bodies() == [b"b"]

    @pytest.mark.parametrize("key", ["b", None])
    def test_an_id_that_collides_is_said_and_mended_as_the_error_says(self, harness: Harness, key: str | None) -> None:
        ids = [harness.send(b"%d" % number, idempotency_key=f"k{number}")[0] for number in range(3)]
        harness.ask("select setval('pgqrs.q_jobs_message_id_seq', 1, false)")

        with pytest.raises(MessageIdsCollide, match="behind") as caught:
            harness.send(b"new", idempotency_key=key)

        assert (caught.value.queue, stored(harness), stored(harness, "idempotency_keys")) == ("jobs", 3, 3)
        harness.ask(str(caught.value).partition("`")[2].partition("`")[0])
        assert harness.send(b"new", idempotency_key=key) > ids[-1:]

    def test_the_remedy_knows_the_archive_and_the_keys(self, harness: Harness) -> None:
        for number in range(3):
            harness.send(idempotency_key=f"k{number}" if number == 2 else None)
        for item in harness.take(limit=3):
            harness.on("jobs", settle.archive if item.id == 1 else settle.ack, [item.lease])
        harness.ask("truncate pgqrs.q_jobs restart identity")

        harness.ask(advance_sequence("pgqrs", harness.queue()))

        assert harness.send() == [4]


class TestHashes:
    def test_no_key_is_stored_as_it_is(self, harness: Harness) -> None:
        harness.send(idempotency_key="invoice-ada@example.org")

        ((row,),) = harness.ask("select k::text from pgqrs.idempotency_keys k")

        assert "ada" not in row
        assert enqueue.key_hash(harness.queue(), "invoice-ada@example.org").hex() in row

    def test_the_server_can_compute_one(self, harness: Harness) -> None:
        harness.send(idempotency_key="größe")

        asked = "select count(*) from pgqrs.idempotency_keys where key_hash = sha256(convert_to(%s, 'UTF8'))"
        assert harness.ask(asked, f"{harness.queue().id}:größe") == [(1,)]


class TestTime:
    def test_a_key_is_forgotten_after_the_time_of_its_queue(self, harness: Harness) -> None:
        harness.create("short", idempotency_seconds=60)
        (first,) = harness.send(queue="short", idempotency_key="k")
        age_keys(harness, 59)
        assert harness.send(queue="short", idempotency_key="k") == [first]
        age_keys(harness, 1)

        (second,) = harness.send(queue="short", idempotency_key="k")

        assert second != first
        assert harness.send(queue="short", idempotency_key="k") == [second]
        assert stored(harness, "q_short") == 2

    def test_housekeeping_removes_those_that_are_over_and_no_others(self, harness: Harness) -> None:
        harness.enqueue(*(draft(idempotency_key=f"old{number}") for number in range(1500)))
        age_keys(harness, 86_400)
        harness.create("gone")
        harness.send(queue="gone", idempotency_key="young")
        harness.transact(queues.delete_queue, "gone")

        assert harness.run(maintenance.maintain, "pgqrs").keys_pruned == 1500
        assert len(harness.ask("select 1 from pgqrs.idempotency_keys")) == 1

    def test_a_repetition_does_not_prolong_it(self, harness: Harness) -> None:
        harness.send(idempotency_key="k")
        before = harness.ask("select expires_at from pgqrs.idempotency_keys")

        harness.send(idempotency_key="k")

        assert harness.ask("select expires_at from pgqrs.idempotency_keys") == before

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e10, True, "1d"])
    def test_a_senseless_time_is_refused(self, harness: Harness, seconds: Any) -> None:
        with pytest.raises(InvalidArgument, match="idempotency_seconds"):
            harness.create("other", idempotency_seconds=seconds)


class TestQueuesMadeAnew:
    """A queue that is deleted and created again has another number, which the hashes of its keys hold."""

    @pytest.mark.parametrize("make", [None, *sorted({name for kind in MAKES.values() for name in kind})])
    def test_a_key_is_known_though_it_was_sent_by_a_process_that_knew_the_old_number(
        self, harness: Harness, make: str | None
    ) -> None:
        if make is not None and make not in MAKES[harness.kind]:
            return
        old = harness.queue()
        harness.transact(queues.delete_queue, "jobs")
        harness.create("jobs")
        connection = borrow(harness, make) if make is not None else None
        drafts = [draft(b"a", idempotency_key="k"), draft(b"b")]

        if connection is None:
            ids = harness.run(enqueue.enqueue, old, drafts)
        else:
            ids = harness.run_in(connection.raw, enqueue.enqueue, old, drafts)
            connection.commit()
            connection.close()

        assert harness.run(enqueue.enqueue, harness.queue(), drafts[:1]) == ids[:1]
        assert harness.bodies() == [b"a", b"b"]

    @pytest.mark.parametrize("key", [None, "k"])
    def test_one_that_was_deleted_is_said_to_be_gone(self, harness: Harness, key: str | None) -> None:
        harness.send(idempotency_key=key)
        harness.transact(queues.delete_queue, "jobs")

        with pytest.raises(QueueNotFound):
            harness.send(idempotency_key=key)


class TestTransactions:
    @pytest.mark.parametrize("make", sorted({name for kind in MAKES.values() for name in kind}))
    def test_key_and_message_belong_to_the_callers_transaction(self, harness: Harness, make: str) -> None:
        if make not in MAKES[harness.kind]:
            return
        connection = borrow(harness, make)
        try:
            for end in (connection.rollback, connection.commit):
                ids = harness.run_in(
                    connection.raw, enqueue.enqueue, harness.queue(), [draft(b"a", idempotency_key="k")] * 2
                )
                assert ids[0] == ids[1]
                assert (stored(harness), stored(harness, "idempotency_keys")) == (0, 0)
                end()
        finally:
            connection.close()

        assert harness.send(idempotency_key="k") == ids[:1]
        assert stored(harness) == 1

    @pytest.mark.parametrize("commits", [True, False])
    def test_whoever_comes_second_waits_for_the_first_and_stores_only_if_that_rolls_back(
        self, harness: Harness, commits: bool
    ) -> None:
        late: list[list[int]] = []
        queue = harness.queue()
        with psycopg.connect(harness.dsn) as first:
            other = SyncHarness(harness.dsn)
            try:
                ids = other.run_in(first, enqueue.enqueue, queue, [draft(b"first", idempotency_key="k")])
                with meanwhile(lambda: late.append(harness.send(b"second", idempotency_key="k"))):
                    until(lambda: harness.backends("wait_event_type = 'Lock'"), "the second waits")
                    assert late == []
                    (first.commit if commits else first.rollback)()
            finally:
                other.close()

        assert (late == [ids]) is commits
        assert harness.bodies() == [b"first" if commits else b"second"]

    def test_a_repeatable_read_that_cannot_see_the_first_fails_and_stores_nothing(self, engine: SyncHarness) -> None:
        with psycopg.connect(engine.dsn) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("select 1 from pgqrs.queues")
            engine.send(b"first", idempotency_key="k")

            with pytest.raises(ServerError, match="40001"):
                engine.run_in(connection, enqueue.enqueue, engine.queue(), [draft(b"second", idempotency_key="k")])

        assert engine.bodies() == [b"first"]

    def test_marks_wait_for_one_that_holds_an_id_and_waits_at_a_key(self, engine: SyncHarness) -> None:
        """It has written nothing yet. If no snapshot showed it, marks would pass the id that it was given."""
        now = [0.0]
        marks = Marks(lambda: now[0])

        def take() -> list[bytes]:
            now[0] += LAG / 20
            found = engine.on("jobs", claim.claim, marks, limit=1, lease=30.0)
            return [item.body for item in found]

        with psycopg.connect(engine.dsn) as first:
            engine.run_in(first, enqueue.enqueue, engine.queue(), [draft(b"first", idempotency_key="k")])
            with meanwhile(lambda: engine.send(b"second", idempotency_key="k")):
                until(lambda: engine.backends("wait_event_type = 'Lock'"), "the second waits")
                for number in range(5):
                    engine.send(b"%d" % number)
                assert [take() for _ in range(5)] == [[b"%d" % number] for number in range(5)]
                reached = marks.mark(0)
                first.rollback()

        (held,) = engine.ask("select message_id from pgqrs.q_jobs where body = 'second'")[0]
        assert reached <= held


class TestRaces:
    def test_many_threads_with_one_key_store_one_message(self, engine: SyncHarness) -> None:
        barrier = threading.Barrier(8)
        ids: list[int] = []
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for number in range(30):
                    barrier.wait(30)
                    ids.extend(engine.enqueue(draft(idempotency_key=f"k{number}"), draft(idempotency_key="same")))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert failures == []
        assert stored(engine) == 31
        assert {row[0] for row in engine.ask("select message_id from pgqrs.q_jobs")} == set(ids)

    def test_batches_with_the_same_keys_in_other_orders_do_not_block_each_other(self, engine: SyncHarness) -> None:
        names = [secrets.token_hex(4) for _ in range(200)]
        barrier = threading.Barrier(2)
        failures: list[BaseException] = []

        def work(order: list[str]) -> None:
            try:
                for round_ in range(10):
                    barrier.wait(30)
                    engine.enqueue(*(draft(idempotency_key=f"{round_}{name}") for name in order))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(order,)) for order in (names, names[::-1])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert failures == []
        assert stored(engine) == 2000


class TestUnknown:
    def break_commits(self, harness: Harness) -> None:
        harness.ask(
            "create function die() returns trigger language plpgsql as "
            "$$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$; "
            "create constraint trigger die after insert on pgqrs.q_jobs deferrable initially deferred "
            "for each row execute function die()"
        )

    @pytest.mark.parametrize(
        ("keys", "remedy"),
        [
            (("a", "b"), "Enqueue again with the same"),
            (("a", None), "may store it twice"),
            ((None,), "may store it twice"),
        ],
    )
    def test_the_error_says_what_to_do(self, harness: Harness, keys: tuple[str | None, ...], remedy: str) -> None:
        self.break_commits(harness)

        with pytest.raises(EnqueueUnknown, match=remedy) as caught:
            harness.enqueue(*(draft(idempotency_key=key) for key in keys))

        assert caught.value.keyed is (None not in keys)


def test_concurrent_tasks_that_are_written_together_may_have_the_same_key(pgqrs_dsn: str, engine: SyncHarness) -> None:
    import asyncio

    from pgqrs_native import AsyncClient

    async def work() -> list[int]:
        async with AsyncClient(pgqrs_dsn) as client:
            send: Callable[..., Any] = client.producer.enqueue
            return list(await asyncio.gather(*(send("jobs", number, idempotency_key="k") for number in range(20))))

    ids = asyncio.run(work())

    assert len(set(ids)) == 1
    assert stored(engine) == 1
    assert ask(pgqrs_dsn, "select count(*) from pgqrs.idempotency_keys") == [(1,)]
