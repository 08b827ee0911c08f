"""Queues: many on one worker, counted, emptied, and waited for until they are empty."""

from __future__ import annotations

import threading
import time

import dramatiq
import pytest
from dramatiq.errors import DramatiqError, QueueNotFound
from pgqrs_dramatiq import MessageFailed, PgqrsBroker

from pgqrs_core.testing import eventually

from .dramatiq_support import Station, noting, quiet, send, take


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

    def test_expired_messages_are_neither_ready_nor_delayed_and_join_does_not_wait_for_them(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        assert broker.get_queue_message_counts("default") == (0, 0, 0)
        station.sql(
            "insert into pgqrs.q_default (lane, due_at, expires_at, lease_until, body) values "
            "(0, null, now() - interval '1 s', 'epoch', ''), (-1, now() + interval '1 h', now(), 'epoch', ''), "
            "(-100, now(), now() - interval '1 s', 'epoch', '')"
        )

        assert broker.get_queue_message_counts("default") == (0, 0, 1)
        broker.join("default", timeout=2_000)

    def test_join_waits_for_a_message_that_expires_while_it_is_handled(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        assert broker.get_queue_message_counts("default") == (0, 0, 0)
        station.sql(
            "insert into pgqrs.q_default (lane, expires_at, lease_until, body) "
            "values (0, now() - interval '1 s', now() + interval '1 h', '')"
        )

        with pytest.raises(dramatiq.errors.QueueJoinTimeout):
            broker.join("default", timeout=100)

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

    def test_a_queue_that_cannot_be_flushed_does_not_keep_the_others_from_it(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        send(broker, 1)
        for name in ("aaa", "zzz"):
            broker.declare_queue(name)
            broker.enqueue(dramatiq.Message(name, "act", (), {}, {}))
        station.sql("drop table pgqrs.q_aaa cascade")

        with pytest.raises(DramatiqError, match="q_aaa"):
            broker.flush_all()

        assert station.sql("select count(*) from pgqrs.q_default") == [(0,)]
        assert station.sql("select count(*) from pgqrs.q_zzz") == [(0,)]

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
