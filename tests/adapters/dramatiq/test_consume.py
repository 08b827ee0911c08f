"""Consumers: what they answer and when, what becomes of what they delivered, whoever settles it."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import Middleware
from dramatiq_support import Station, eventually, noting, quiet, take
from pgqrs_dramatiq import MessageFailed, PgqrsBroker

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.operations import maintenance
from pgqrs_core.operations.queues import alter_queue


def send(broker: PgqrsBroker, *numbers: int, queue: str = "default") -> list[Any]:
    broker.declare_queue(queue)
    return broker.enqueue_many([dramatiq.Message(queue, "act", (number,), {}, {}) for number in numbers])


class TestWaiting:
    def test_an_idle_consumer_answers_none_in_time(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        consumer = broker.consume("default", timeout=50)
        began = time.monotonic()

        assert next(consumer) is None
        assert 0.04 < time.monotonic() - began < 2

    def test_a_saturated_consumer_answers_none_until_something_is_settled(self, broker: PgqrsBroker) -> None:
        send(broker, 1, 2, 3)
        consumer = broker.consume("default", prefetch=2, timeout=100)
        first, _ = take(consumer), take(consumer)

        assert next(consumer) is None
        consumer.ack(first)
        assert take(consumer).args == (3,)

    def test_an_undeclared_queue_is_not_consumed(self, broker: PgqrsBroker) -> None:
        with pytest.raises(QueueNotFound):
            broker.consume("default")

    def test_a_waiting_consumer_is_woken(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        consumer = broker.consume("default", timeout=20_000)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(next(consumer)))
        thread.start()
        eventually(lambda: station.sql("select 1 from pgqrs.waiters"))

        send(station.broker(), 1)

        thread.join(10)
        assert found[0].args == (1,)


class TestSettling:
    def test_whoever_settles_settles_the_delivery_that_he_was_given(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        send(broker, *range(40))
        old = broker.consume("default", prefetch=20, timeout=1000)
        messages = [take(old) for _ in range(20)]
        old.close()
        new = broker.consume("default", prefetch=20, timeout=1000)
        threads = [threading.Thread(target=new.ack, args=[message]) for message in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(take(new).args[0] for _ in range(20)) == list(range(20, 40))
        new.close()
        assert station.rows() == 20

    def test_what_a_stale_owner_says_changes_nothing(self, station: Station, broker: PgqrsBroker) -> None:
        send(broker, 1, 2, 3)
        other = station.broker(max_connections=5)
        other.declare_queue("default")
        consumer = broker.consume("default", prefetch=3, timeout=1000)
        stale = [take(consumer) for _ in range(3)]
        station.let_leases_end()
        second = other.consume("default", prefetch=3, timeout=1000)
        live = [take(second) for _ in range(3)]

        consumer.ack(stale[0])
        consumer.nack(stale[1])
        consumer.requeue(stale[2:])

        assert station.rows() == 3
        assert station.dead() == []
        for message in live:
            second.ack(message)
        second.close()
        assert station.rows() == 0

    def test_settling_twice_or_what_is_foreign_does_no_harm(self, station: Station, broker: PgqrsBroker) -> None:
        (sent,) = send(broker, 1)
        consumer = broker.consume("default", timeout=1000)
        message = take(consumer)
        consumer.ack(message)
        consumer.ack(message)
        consumer.nack(message)
        consumer.ack(dramatiq.MessageProxy(sent))
        consumer.requeue(iter(()))
        consumer.close()

        assert station.rows() == 0
        assert station.dead() == []

    def test_what_is_requeued_keeps_its_place_and_is_there_at_once(self, broker: PgqrsBroker) -> None:
        send(broker, 1, 2, 3)
        consumer = broker.consume("default", prefetch=2, timeout=1000)
        first, second = take(consumer), take(consumer)

        consumer.requeue(message for message in (second, first))
        consumer.close()

        again = broker.consume("default", prefetch=3, timeout=1000)
        assert [take(again).args[0] for _ in range(3)] == [1, 2, 3]

    def test_closing_gives_back_what_was_not_delivered_and_keeps_what_was(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        send(broker, *range(10))
        consumer = broker.consume("default", prefetch=5, timeout=1000)
        message = take(consumer)
        eventually(lambda: len(consumer._source.claimed) == 4)

        consumer.close()

        held = "select count(*) from pgqrs.q_default where lease_until > now()"
        assert station.sql(held) == [(1,)]
        consumer.ack(message)
        consumer.close()
        assert station.rows() == 9

    def test_a_message_that_dramatiq_lost_comes_again_when_its_lease_is_over(self, station: Station) -> None:
        broker = station.broker(lease=0.6)
        send(broker, 1)
        consumer = broker.consume("default", timeout=100)
        message = take(consumer)

        del message
        gc.collect()

        assert next(consumer) is None
        assert take(consumer).delivery.attempt == 2

    def test_leases_are_renewed_while_a_task_takes_its_time(self, station: Station) -> None:
        broker = station.broker(lease=0.6)
        send(broker, 1)
        consumer = broker.consume("default", timeout=1000)
        message = take(consumer)
        (first,) = station.sql("select lease_until from pgqrs.q_default")[0]

        eventually(lambda: station.sql("select lease_until > %s from pgqrs.q_default", first) == [(True,)])
        assert station.sql("select attempt from pgqrs.q_default") == [(1,)]
        consumer.ack(message)


class TestClosing:
    def test_what_was_acked_is_written_by_the_time_the_broker_is_closed(self, station: Station) -> None:
        # Two brokers at one address share what settles.
        broker, other = station.broker(), station.broker()
        send(broker, *range(100))
        consumer = broker.consume("default", prefetch=100, timeout=1000)
        messages = [take(consumer) for _ in range(100)]
        for message in messages:
            consumer.ack(message)

        broker.close()
        broker.close()

        assert station.rows() == 0
        assert other._database is broker._database

    def test_a_closed_broker_opens_again_when_it_is_used(self, station: Station, broker: PgqrsBroker) -> None:
        send(broker, 1)
        broker.close()
        eventually(lambda: station.connections() == 0)

        send(broker, 2)
        consumer = broker.consume("default", prefetch=2, timeout=1000)

        messages = [take(consumer), take(consumer)]
        assert [message.args[0] for message in messages] == [1, 2]


class TestDeadLetters:
    def test_an_undecodable_message_is_dead_with_its_bytes_and_stops_nobody(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        send(broker, 1)
        for body in (
            b"\xff\0",
            b"{}",
            b'{"queue_name":"default","actor_name":"a","args":[],"kwargs":{},"options":null}',
        ):
            station.sql("insert into pgqrs.q_default (lane, body) values (9, %s)", body)

        assert take(broker.consume("default", timeout=1000)).args == (1,)

        broker.close()
        assert {reason["type"] for reason in station.dead()} == {"DecodeError"}
        assert (b"\xff\0",) in station.sql("select body from pgqrs.q_default where lane = -100")

    def test_a_message_that_kills_its_workers_is_dead_in_the_end(self, station: Station) -> None:
        told: list[Any] = []
        spy = Middleware()
        spy.after_nack = lambda broker, message: told.append(message.message_id)  # type: ignore[method-assign]
        broker = station.broker(max_attempts=3)
        broker.add_middleware(spy)
        (message,) = send(broker, 1)
        station.sql("update pgqrs.q_default set attempt = 3")

        assert next(broker.consume("default", timeout=200)) is None

        broker.close()
        assert told == [message.message_id]
        assert station.dead()[0]["type"] == "AttemptsExhausted"

    def test_an_unknown_actor_is_dead_at_once(self, station: Station, broker: PgqrsBroker) -> None:
        send(broker, 1)

        with quiet(), station.worker(broker):
            broker.join("default", timeout=10_000)

        assert [reason["type"] for reason in station.dead()] == ["ActorNotFound"]

    def test_what_an_actor_raised_is_kept_with_its_traceback(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker, max_retries=0)
        def act() -> None:
            raise ValueError("a\0b \ud800")

        with quiet(), station.worker(broker):
            act.send()
            broker.join("default", timeout=10_000)

        (reason,) = station.dead()
        assert (reason["type"], reason["message"]) == ("ValueError", "a\ufffdb ?")
        assert "raise ValueError" in reason["traceback"]

    def test_dead_letters_stay_in_their_queue_until_its_retention_ends(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        send(broker, 1)
        consumer = broker.consume("default", timeout=1000)
        consumer.nack(take(consumer))
        consumer.close()
        station.sql("update pgqrs.q_default set due_at = due_at - interval '1 year' where lane = -100")
        engine = broker._database.engine

        engine.run(maintenance.maintain, engine.schema)
        assert len(station.dead()) == 1
        assert station.sql("select name from pgqrs.queues") == [("default",)]

        engine.run(alter_queue, "default", {"dead_retention_seconds": 86_400.0})
        engine.run(maintenance.maintain, engine.schema)
        assert station.dead() == []


class TestQueues:
    def test_fifty_queues_make_progress_on_four_connections(self, station: Station, broker: PgqrsBroker) -> None:
        done: set[int] = set()
        most: list[int] = []
        actors = [
            dramatiq.actor(noting(done.add), actor_name=f"act_{number}", queue_name=f"queue_{number}", broker=broker)
            for number in range(50)
        ]
        with station.worker(broker, threads=8):
            for turn in range(4):
                for number, actor in enumerate(actors):
                    actor.send(50 * turn + number)
                most.append(station.connections())
            eventually(lambda: len(done) == 200)
            most.append(station.connections())

        assert max(most) <= 4

    def test_enqueueing_to_a_foreign_queue_does_not_consume_it(self, station: Station, broker: PgqrsBroker) -> None:
        service_b = station.broker()
        send(service_b, 1, queue="b")
        with station.worker(broker) as worker:
            broker.declare_queue("default")
            broker.enqueue(dramatiq.Message("b", "act", (2,), {}, {}))
            eventually(lambda: "default" in worker.consumers)
            assert set(worker.consumers) == {"default"}

        assert broker.get_declared_queues() == {"default"}
        assert station.rows("b") == 2

    def test_an_actors_priority_orders_what_a_worker_has_prefetched(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        seen: list[str] = []
        gates = threading.Event(), threading.Event()
        busy: list[int] = []

        @dramatiq.actor(broker=broker)
        def wait(number: int) -> None:
            busy.append(number)
            gates[number].wait(20)

        late = dramatiq.actor(noting(seen.append), actor_name="late", broker=broker, priority=10)
        early = dramatiq.actor(noting(seen.append), actor_name="early", broker=broker, priority=1)
        # Two threads prefetch four messages.
        with station.worker(broker, threads=2) as worker:
            for number in range(2):
                wait.send(number)
            eventually(lambda: len(busy) == 2)
            late.send("late")
            early.send("early")
            eventually(lambda: worker.work_queue.qsize() == 2)
            # One thread takes both in turn.
            gates[0].set()
            eventually(lambda: len(seen) == 2)
            gates[1].set()

        assert seen == ["early", "late"]

    def test_a_busy_queue_does_not_starve_another(self, station: Station, broker: PgqrsBroker) -> None:
        seen: list[str] = []
        dramatiq.actor(noting(seen.append), actor_name="act", queue_name="busy", broker=broker)
        other = dramatiq.actor(noting(seen.append), actor_name="other", queue_name="other", broker=broker)
        broker.enqueue_many([dramatiq.Message("busy", "act", ("busy",), {}, {}) for _ in range(5000)])
        other.send("other")

        with station.worker(broker):
            eventually(lambda: "other" in seen)

        assert seen.index("other") < 2000

    @pytest.mark.parametrize("states", ["ready", "delayed", "held", "dead"])
    def test_flush_removes_messages_of_every_state(self, station: Station, broker: PgqrsBroker, states: str) -> None:
        send(broker, 1)
        consumer = broker.consume("default", timeout=1000) if states in ("held", "dead") else None
        if states == "delayed":
            broker.enqueue(dramatiq.Message("default", "act", (), {}, {}), delay=60_000)
        if consumer is not None:
            message = take(consumer)
            if states == "dead":
                consumer.nack(message)
                consumer.close()

        broker.flush_all()

        assert station.sql("select count(*) from pgqrs.q_default") == [(0,)]

    def test_the_counts_are_ready_delayed_and_dead(self, broker: PgqrsBroker) -> None:
        send(broker, 1, 2, 3)
        broker.enqueue_many([dramatiq.Message("default", "act", (), {}, {}) for _ in range(3)], delay=60_000)
        consumer = broker.consume("default", prefetch=2, timeout=1000)
        dead, _held = take(consumer), take(consumer)
        consumer.nack(dead)
        consumer.close()

        assert broker.get_queue_message_counts("default") == (1, 3, 1)

    def test_what_was_flushed_is_not_delivered_from_memory(self, broker: PgqrsBroker) -> None:
        send(broker, *range(10))
        consumer = broker.consume("default", prefetch=5, timeout=200)
        take(consumer)
        eventually(lambda: len(consumer._source.claimed) == 4)

        broker.flush("default")

        assert next(consumer) is None


class TestJoin:
    @pytest.mark.parametrize("delay", [None, 60_000])
    def test_it_times_out_while_something_is_left(self, broker: PgqrsBroker, delay: int | None) -> None:
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", (), {}, {}), delay=delay)

        with pytest.raises(dramatiq.QueueJoinTimeout):
            broker.join("default", timeout=50)

    def test_what_is_in_flight_is_left(self, broker: PgqrsBroker) -> None:
        send(broker, 1)
        consumer = broker.consume("default", timeout=1000)
        message = take(consumer)

        with pytest.raises(dramatiq.QueueJoinTimeout):
            broker.join("default", timeout=50, interval=10)
        consumer.ack(message)
        broker.join("default", 2, 10, timeout=10_000)

    @pytest.mark.parametrize("times", [{"interval": 60}, {"interval": 1, "idle_time": 60}], ids=str)
    def test_it_looks_as_often_and_as_far_apart_as_it_is_told(self, broker: PgqrsBroker, times: dict[str, int]) -> None:
        broker.declare_queue("default")
        began = time.monotonic()

        broker.join("default", min_successes=3, **times)

        assert time.monotonic() - began >= 0.12

    def test_it_fails_fast_when_told_to(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker, max_retries=0)
        def act() -> None:
            raise ValueError("no")

        act.send_with_options(delay=300)
        # Without fail_fast it would wait for this one.
        act.send_with_options(delay=60_000)
        with quiet(), station.worker(broker), pytest.raises(MessageFailed, match="ValueError: no"):
            broker.join("default", fail_fast=True, timeout=20_000)

    def test_an_unknown_queue_is_said(self, broker: PgqrsBroker) -> None:
        with pytest.raises(QueueNotFound):
            broker.join("nowhere")


def test_plugins_prepare_what_is_stored_and_what_is_delivered(station: Station, broker: PgqrsBroker) -> None:
    class Reverser:
        @hookimpl
        def pgqrs_before_enqueue(self, batch: Any) -> None:
            assert batch.adapter == "dramatiq"
            for draft in batch.drafts:
                draft.body, draft.content_type = draft.body[::-1], "x/reversed"

        @hookimpl
        def pgqrs_before_consume(self, batch: Any) -> None:
            for delivery in batch.deliveries:
                delivery.body = delivery.body[::-1]

    plugins = broker._database.engine.plugins = type(broker._database.engine.plugins).core()
    plugins.register(Reverser(), "reverser")
    broker._database.engine.plugins = plugins
    station.sql("create schema pgqrs")
    psycopg.connect(station.dsn).close()
    runs: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=0, max_backoff=0)
    def act(number: int) -> None:
        runs.append(number)
        if len(runs) == 1:
            raise ValueError

    with quiet(), station.worker(broker):
        act.send(7)
        broker.join("default", timeout=10_000)

    assert runs == [7, 7]
