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
from pgqrs_dramatiq import PgqrsBroker

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.operations import maintenance
from pgqrs_core.operations.queues import alter_queue
from pgqrs_core.testing import PATIENCE, eventually

from .dramatiq_support import Station, quiet, send, take


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

    def test_a_message_for_an_unknown_actor_waits_for_a_worker_that_knows_it(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        other, handled = station.broker(), threading.Event()
        send(broker, 1)
        with quiet(), station.worker(broker):
            eventually(lambda: station.sql("select attempt, lane from pgqrs.q_default") == [(0, -1)])

        dramatiq.actor(lambda _: handled.set(), broker=other, actor_name="act")

        with station.worker(other):
            assert handled.wait(PATIENCE)
        assert station.dead() == []

    def test_an_unknown_actor_is_dead_at_once_if_that_is_wished(self, station: Station) -> None:
        broker = station.broker(unknown_actors="bury")
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
