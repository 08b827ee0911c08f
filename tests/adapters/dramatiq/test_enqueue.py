"""What is enqueued: when it is due, how it is stored, who may change or refuse it."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import dramatiq
import msgspec
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.encoder import Encoder, PickleEncoder
from dramatiq.middleware import Middleware, MiddlewareError
from pgqrs_dramatiq import PgqrsBroker

from pgqrs_core.operations.dead import list_dead

from .dramatiq_support import Station, take


class Spy(Middleware):
    """Notes what it is told, and may change or refuse what is enqueued."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.after: list[Any] = []
        self.veto = False

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if self.veto:
            raise MiddlewareError("no")
        self.before.append((message.options.get("eta"), delay))
        message.options["seen"] = True

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        self.after.append((message.message_id, delay))


def make(broker: PgqrsBroker, **options: Any) -> dramatiq.Message[Any]:
    return dramatiq.Message("default", "act", (1,), {}, options)


class TestIdleness:
    def test_nothing_is_connected_by_declaring_actors_and_queues(self, station: Station) -> None:
        broker = station.broker(url="postgresql://nobody@127.0.0.1:1/nowhere")

        dramatiq.actor(lambda: None, actor_name="act", queue_name="some", broker=broker)
        broker.declare_queue("other")

        assert broker.get_declared_queues() == {"some", "other"}
        assert broker.get_declared_delay_queues() == set()
        assert broker.get_declared_actors() == {"act"}

    def test_a_queue_is_declared_once_however_often_that_is_asked(self, broker: PgqrsBroker) -> None:
        told: list[str] = []
        spy = Middleware()
        spy.after_declare_queue = lambda broker, name: told.append(name)  # type: ignore[method-assign]
        broker.add_middleware(spy)

        broker.declare_queue("jobs")
        broker.declare_queue("jobs")

        assert told == ["jobs"]
        assert len(broker.queues) == 1

    def test_others_may_be_placed_around_the_first_middleware(self, broker: PgqrsBroker) -> None:
        first, second = Spy(), Middleware()
        broker.add_middleware(first, before=type(broker.middleware[0]))
        broker.add_middleware(second, after=Spy)

        assert broker.middleware[:2] == [first, second]

    def test_a_forked_child_enqueues_on_connections_of_its_own(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        broker.enqueue(make(broker))

        child = os.fork()
        if child == 0:
            try:
                broker.enqueue(make(broker))
                broker.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        broker.enqueue(make(broker))

        assert station.rows() == 3


class TestDelays:
    @pytest.mark.parametrize("delay", [None, 0, -5])
    def test_no_delay_and_none_above_zero_is_at_once(self, broker: PgqrsBroker, delay: int | None) -> None:
        broker.declare_queue("default")
        broker.enqueue(make(broker), delay=delay)

        assert broker.get_queue_message_counts("default") == (1, 0, 0)
        assert take(broker.consume("default", timeout=1000)).args == (1,)

    def test_what_is_delayed_stays_in_the_database_and_comes_without_its_eta(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        began, sent = time.monotonic(), int(time.time() * 1000)
        message = broker.enqueue(make(broker), delay=200)

        assert broker.get_queue_message_counts("default") == (0, 1, 0)
        assert message.queue_name == "default"
        assert message.options["eta"] >= sent + 200
        found = take(broker.consume("default", timeout=100))
        assert time.monotonic() - began >= 0.2
        assert "eta" not in found.options

    def test_an_eta_among_the_options_is_a_delay(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        broker.enqueue(make(broker, eta=time.time() * 1000 + 3_600_000))
        broker.enqueue(make(broker, eta=None))
        broker.enqueue(make(broker, eta=1))

        assert broker.get_queue_message_counts("default") == (2, 1, 0)

    def test_a_far_message_does_not_hide_a_near_one(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        broker.enqueue_many([make(broker) for _ in range(500)], delay=3_600_000)
        near = broker.enqueue(make(broker), delay=100)

        assert take(broker.consume("default", timeout=200)).message_id == near.message_id


class TestHooks:
    def test_middleware_sees_the_final_message_and_may_change_it(self, station: Station, broker: PgqrsBroker) -> None:
        spy = Spy()
        broker.add_middleware(spy)
        broker.declare_queue("default")

        message = broker.enqueue(make(broker), delay=50)

        assert spy.before == [(message.options["eta"], 50)]
        assert spy.after == [(message.message_id, 50)]
        assert take(broker.consume("default", timeout=200)).options["seen"] is True

    def test_middleware_may_refuse_a_message(self, broker: PgqrsBroker) -> None:
        spy = Spy()
        spy.veto = True
        broker.add_middleware(spy)
        broker.declare_queue("default")

        with pytest.raises(MiddlewareError):
            broker.enqueue(make(broker))

        assert broker.get_queue_message_counts("default") == (0, 0, 0)
        assert spy.after == []


class TestBodies:
    @pytest.mark.parametrize("argument", ["a\0b", float("inf"), "ü\ud800", {"deep": [None, 1.5]}], ids=repr)
    def test_whatever_the_encoder_writes_comes_back(self, broker: PgqrsBroker, argument: Any) -> None:
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", (argument,), {}, {}, message_id="no uuid \0 at all"))

        found = take(broker.consume("default", timeout=1000))

        assert (found.args, found.message_id) == ((argument,), "no uuid \0 at all")

    def test_pickled_messages_are_bytes_like_others(self, broker: PgqrsBroker) -> None:
        dramatiq.set_encoder(PickleEncoder())
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", ({1, 2}, b"\xff\0"), {}, {}))

        assert take(broker.consume("default", timeout=1000)).args == ({1, 2}, b"\xff\0")

    def test_an_encoder_may_be_anybodys(self, broker: PgqrsBroker) -> None:
        class MessagePack(Encoder):
            def encode(self, data: dict[str, Any]) -> bytes:
                return msgspec.msgpack.encode(data)

            def decode(self, data: bytes) -> dict[str, Any]:
                return msgspec.msgpack.decode(data)

        dramatiq.set_encoder(MessagePack())
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", (b"\xff\0", 1), {"k": None}, {}))

        found = take(broker.consume("default", timeout=1000))
        assert (found.args, found.kwargs) == ((b"\xff\0", 1), {"k": None})

    def test_a_message_enqueued_twice_is_there_twice(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        message = make(broker)
        broker.enqueue(message)
        broker.enqueue(message)
        consumer = broker.consume("default", prefetch=2, timeout=1000)

        first, second = take(consumer), take(consumer)
        consumer.ack(first)
        consumer.close()

        assert first.message_id == second.message_id
        assert station.rows() == 1


class TestMany:
    def test_many_are_stored_by_one_statement_and_come_in_order(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        broker.get_queue_message_counts("default")
        before = station.sql("select last_value, is_called from pgqrs.q_default_message_id_seq")

        sent = broker.enqueue_many([dramatiq.Message("default", "act", (n,), {}, {}) for n in range(1000)])

        assert before == [(1, False)]
        assert station.sql("select count(distinct xmin::text), count(*) from pgqrs.q_default") == [(1, 1000)]
        consumer = broker.consume("default", prefetch=1000, timeout=1000)
        messages = [take(consumer) for _ in range(1000)]
        assert [message.args[0] for message in messages] == list(range(1000))
        assert len(sent) == 1000

    def test_a_batch_that_raises_stores_nothing(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")

        def fail() -> None:
            with broker.batch():
                broker.enqueue(make(broker))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

        assert broker.get_queue_message_counts("default") == (0, 0, 0)

    def test_a_batch_for_several_queues_is_one_transaction(self, station: Station, broker: PgqrsBroker) -> None:
        for name in ("default", "other"):
            broker.declare_queue(name)
        spy = Spy()
        broker.add_middleware(spy)

        with broker.batch():
            broker.enqueue(make(broker))
            broker.enqueue(dramatiq.Message("other", "act", (), {}, {}), delay=60_000)
            assert spy.after == []

        assert len(spy.after) == 2
        (xmin,) = station.sql("select xmin::text from pgqrs.q_default")
        assert station.sql("select xmin::text from pgqrs.q_other") == [xmin]

    def test_a_group_is_stored_together_by_itself(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")

        dramatiq.group([make(broker) for _ in range(10)], broker=broker).run()

        assert station.sql("select count(distinct xmin::text), count(*) from pgqrs.q_default") == [(1, 10)]

    def test_a_group_of_pipelines_is_stored_together(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        pipes = [dramatiq.pipeline([make(broker), make(broker)], broker=broker) for _ in range(5)]

        dramatiq.group(pipes, broker=broker).run()

        assert station.sql("select count(distinct xmin::text), count(*) from pgqrs.q_default") == [(1, 5)]

    def test_groups_on_other_brokers_run_as_ever(self, broker: PgqrsBroker) -> None:
        stub = StubBroker()
        stub.declare_queue("default")

        dramatiq.group([make(broker), make(broker)], broker=stub).run()

        assert stub.queues["default"].qsize() == 2

    def test_threads_do_not_share_a_batch(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")

        with broker.batch():
            thread = threading.Thread(target=broker.enqueue, args=[make(broker)])
            thread.start()
            thread.join()
            assert broker.get_queue_message_counts("default") == (1, 0, 0)


class TestPriorities:
    def test_the_most_urgent_come_first_whenever_they_were_sent(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        for priority in (0, 5, 9, 250, None):
            broker.enqueue(make(broker, broker_priority=priority, n=priority))
        consumer = broker.consume("default", prefetch=9, timeout=1000)

        assert [take(consumer).options["n"] for _ in range(5)] == [9, 250, 5, 0, None]

    def test_an_actor_may_say_how_urgent_its_messages_are(self, station: Station, broker: PgqrsBroker) -> None:
        dramatiq.actor(lambda: None, actor_name="act", broker=broker, broker_priority=7).send()

        assert station.sql("select lane from pgqrs.q_default") == [(7,)]


def test_dead_letters_say_which_message_they_were(station: Station, broker: PgqrsBroker) -> None:
    dramatiq.actor(lambda: None, actor_name="act", broker=broker)
    message = broker.enqueue(make(broker))
    consumer = broker.consume("default", timeout=1000)
    consumer.nack(take(consumer))
    consumer.close()

    (dead,) = broker._database.engine.on("default", list_dead, 10)

    assert dead.headers == {"actor": "act", "message_id": message.message_id}
    assert dead.content_type == "application/json"
    assert dead.error["type"] == "Failed"
