"""Exchanges, queues and bindings are the database's: what one process declares, all others use."""

from __future__ import annotations

import pytest
from amqp.exceptions import ChannelError, NotFound, PreconditionFailed
from kombu import Exchange, Producer, Queue

from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox, plain

PUBLISH = """
import sys
from kombu import Connection, Producer
with Connection(sys.argv[1]) as connection:
    Producer(connection).publish({"from": "elsewhere"}, exchange=sys.argv[2], routing_key=sys.argv[3])
"""


@pytest.mark.parametrize(
    ("kind", "binding", "key"), [("direct", "k", "k"), ("topic", "a.*.#", "a.b.c.d"), ("fanout", "", "anything")]
)
@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_process_that_declared_nothing_reaches_the_queue_of_another(
    bench: Bench, kind: str, binding: str, key: str, ephemeral: bool
) -> None:
    exchange = Exchange("ex", kind)
    inbox = Inbox(bench.connect(), Queue("q", exchange, routing_key=binding, auto_delete=ephemeral))
    bench.python(PUBLISH, "ex", key)
    assert inbox.bodies(1) == [{"from": "elsewhere"}]
    assert inbox.messages[0].delivery_info["exchange"] == "ex"
    assert inbox.messages[0].delivery_info["routing_key"] == key


@pytest.mark.parametrize("ephemeral", [False, True])
@pytest.mark.parametrize(
    ("binding", "key", "matches"),
    [
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "ab", False),
        ("#", "", True),
        ("#.z", "z", True),
        ("#.z", "x.y.z", True),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("a+b.(c)", "a+b.(c)", True),
        ("a+b", "aab", False),
        ("wörld.*", "wörld.ünd", True),
    ],
)
def test_topics_match_by_words(bench: Bench, binding: str, key: str, matches: bool, ephemeral: bool) -> None:
    channel = bench.connect().channel()
    queue = Queue("q", Exchange("t", "topic"), routing_key=binding, auto_delete=ephemeral)(channel)
    queue.declare()
    Producer(channel).publish("x", exchange="t", routing_key=key)
    assert queue.get(no_ack=True) is not None if matches else queue.get(no_ack=True) is None


def test_a_queue_that_is_bound_twice_gets_one_copy(bench: Bench) -> None:
    channel = bench.connect().channel()
    for ephemeral in (False, True):
        queue = Queue(f"q{ephemeral}", Exchange("t", "topic"), routing_key="a.*", auto_delete=ephemeral)(channel)
        queue.declare()
        queue.bind_to("t", routing_key="#")
    Producer(channel).publish("x", exchange="t", routing_key="a.b")
    for ephemeral in (False, True):
        assert channel.queue_declare(f"q{ephemeral}", passive=True).message_count == 1


def test_names_of_any_length_and_kind_are_distinct(bench: Bench) -> None:
    connection = bench.connect()
    names = ["my.queue", "my_queue", "x" * 255, "x" * 254 + "y", "ein Name; drop table", '"%s"', "celery@host.pidbox"]
    for name in names:
        Producer(connection).publish(name, routing_key=name, declare=[Queue(name)])
    for name in names:
        inbox = Inbox(connection, Queue(name))
        assert inbox.bodies(1) == [name]


def test_a_missing_queue_or_exchange_is_an_error_of_the_channel(bench: Bench) -> None:
    connection = bench.connect()
    channel = connection.channel()
    with pytest.raises(NotFound):
        channel.queue_declare("missing", passive=True)
    with pytest.raises(NotFound):
        channel.exchange_declare("missing", passive=True)
    with pytest.raises(NotFound):
        channel.basic_consume("missing", callback=print)
    with pytest.raises(NotFound):
        Producer(channel).publish("x", exchange="missing", routing_key="k")
    assert issubclass(NotFound, connection.channel_errors)


def test_a_message_to_no_queue_is_dropped_or_comes_back_if_it_is_mandatory(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    connection = bench.connect()
    Producer(connection).publish("x", routing_key="nowhere")
    assert "nowhere" in caplog.text
    with pytest.raises(ChannelError):
        Producer(connection).publish("x", routing_key="nowhere", mandatory=True)
    returned = []
    producer = Producer(connection, on_return=lambda *facts: returned.append(facts))
    producer.publish("x", routing_key="nowhere", mandatory=True)
    assert [fact[2] for fact in returned] == ["nowhere"]


def test_an_unknown_type_of_exchange_and_a_changed_one_are_refused(bench: Bench) -> None:
    channel = bench.connect().channel()
    with pytest.raises(ChannelError, match="headers"):
        channel.exchange_declare("h", "headers")
    channel.exchange_declare("e", "direct")
    with pytest.raises(PreconditionFailed):
        channel.exchange_declare("e", "topic")


def test_a_queue_cannot_change_its_kind(bench: Bench) -> None:
    channel = bench.connect().channel()
    channel.queue_declare("q")
    with pytest.raises(PreconditionFailed, match="durable"):
        channel.queue_declare("q", auto_delete=True)


def test_unbinding_and_deleting_take_effect_in_the_same_process_at_once(bench: Bench) -> None:
    channel = bench.connect().channel()
    queue = plain("q")(channel)
    queue.declare()
    producer = Producer(channel)
    producer.publish("one", exchange="q", routing_key="q")
    queue.unbind_from(queue.exchange, routing_key="q")
    producer.publish("two", exchange="q", routing_key="q")
    assert queue.purge() == 1
    queue.bind_to("q", routing_key="q")
    producer.publish("three", exchange="q", routing_key="q")
    assert queue.delete() == 1
    producer.publish("four", exchange="q", routing_key="q")
    assert bench.sql("select count(*) from pgqrs.kombu_bindings") == [(0,)]


def test_a_queue_whose_table_is_missing_can_be_deleted_and_declared_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    channel = bench.connect().channel()
    queue = plain("q")(channel)
    queue.declare()
    bench.sql("drop table pgqrs.q_q cascade")

    queue.delete()
    queue.declare()
    Producer(channel).publish("one", exchange="q", routing_key="q")

    assert "queue 'q' cannot be counted" in caplog.text
    assert queue.purge() == 1


def test_a_binding_that_another_process_removed_comes_back_when_it_is_declared(bench: Bench) -> None:
    channel = bench.connect().channel()
    queue = plain("q")(channel)
    queue.declare()
    bench.sql("delete from pgqrs.kombu_bindings")
    queue.declare()
    Producer(channel).publish("x", exchange="q", routing_key="q")
    assert queue.get(no_ack=True) is not None


def test_bindings_are_listed(bench: Bench) -> None:
    connection = bench.connect()
    plain("q")(connection.channel()).declare()
    found = connection.get_manager().get_bindings()
    assert found == [{"destination": "q", "source": "q", "routing_key": "q"}]


def test_an_auto_delete_queue_goes_with_its_last_consumer(bench: Bench) -> None:
    queue = plain("mail", auto_delete=True)
    one, two = Inbox(bench.connect(), queue), Inbox(bench.connect(), queue)
    one.consumer.cancel()
    assert bench.sql("select name from pgqrs.kombu_queues") == [("mail",)]
    two.consumer.cancel()
    assert bench.sql("select name from pgqrs.kombu_queues") == []


def test_an_exclusive_queue_goes_with_its_connection(bench: Bench) -> None:
    connection, other = bench.connect(), bench.connect()
    connection.channel().queue_declare("mine", exclusive=True)
    other.channel().queue_declare("yours", exclusive=True)
    connection.release()
    assert bench.sql("select name from pgqrs.kombu_queues") == [("yours",)]


def test_an_exclusive_queue_belongs_to_whoever_declared_it_last(bench: Bench) -> None:
    # A worker that comes back over another connection must not lose its mailbox to the end of the first one.
    first, second = bench.connect(), bench.connect()
    first.channel().queue_declare("mail", exclusive=True)
    inbox = Inbox(second, Queue("mail", exclusive=True))
    first.release()
    Producer(bench.connect()).publish("x", routing_key="mail")
    assert inbox.bodies(1) == ["x"]
    second.release()
    assert bench.sql("select name from pgqrs.kombu_queues") == []


def test_a_consumer_of_this_process_counts_until_its_connection_is_lost(bench: Bench) -> None:
    lost = bench.connect()
    Inbox(lost, plain("mail", expires=30))
    channel = bench.connect().channel()

    before = channel.queue_declare("mail", passive=True).consumer_count
    lost.collect()

    assert (before, channel.queue_declare("mail", passive=True).consumer_count) == (1, 0)


def test_a_queue_without_consumers_expires_with_its_bindings_and_messages(bench: Bench) -> None:
    connection = bench.connect()
    channel = connection.channel()
    plain("mail", expires=0.05)(channel).declare()
    plain("kept", expires=30)(channel).declare()
    Producer(channel).publish("x", exchange="mail", routing_key="mail")
    broker = connection.transport.broker

    def gone() -> bool:
        broker.use_mailbox(0)
        return bench.sql("select name from pgqrs.kombu_queues") == [("kept",)]

    eventually(gone)
    assert bench.sql("select count(*) from pgqrs.kombu_bindings") == [(1,)]
    broker.engine.run(_sweep_now)
    assert bench.sql("select count(*) from pgqrs.kombu_mail where enqueued_at < now() - interval '1 hour'") == [(0,)]


def _sweep_now():  # type: ignore[no-untyped-def]
    from pgqrs_kombu.topology import sweep_orphans

    return (yield from sweep_orphans())
