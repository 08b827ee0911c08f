"""Declarations that contradict what is there, queues deleted under their users, and what a channel sees of its own."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Exchange, Producer, Queue
from pgqrs_kombu import batch

from pgqrs_core.testing import eventually
from tests.support.versions import needs_batches

from .kombu_support import Bench, Inbox, plain


@pytest.mark.parametrize("change", [{"type": "topic"}, {"durable": False}, {"auto_delete": True}], ids=str)
def test_an_exchange_is_declared_again_only_as_it_is(bench: Bench, change: dict[str, Any]) -> None:
    channel = bench.connect().channel()
    given: dict[str, Any] = {"type": "direct", "durable": True, "auto_delete": False}
    channel.exchange_declare("ex", **given)
    channel.exchange_declare("ex", **given)

    with pytest.raises(PreconditionFailed, match=next(iter(change))) as caught:
        channel.exchange_declare("ex", **{**given, **change})

    assert caught.value.reply_code == 406
    channel.exchange_declare("ex", **given)


@pytest.mark.parametrize("how", ["requeue", "reject", "recover", "close"])
def test_what_a_channel_gave_back_it_can_get_at_once(bench: Bench, how: str) -> None:
    channel = bench.connect().channel()
    queue = Queue("q")(channel)
    queue.declare()
    Producer(channel).publish("first", routing_key="q")
    Producer(channel).publish("second", routing_key="q")
    for _ in range(10):
        message = queue.get(accept=None)
        assert message is not None
        assert message.payload == ("first" if how != "reject" else message.payload)
        if how == "requeue":
            message.requeue()
            assert queue.queue_declare(passive=True).message_count == 2
        elif how == "recover":
            channel.basic_recover(requeue=True)
        elif how == "close":
            channel.close()
            channel = bench.connect().channel()
            queue = Queue("q")(channel)
        else:
            message.reject()
            assert bench.rows("q") + len(bench.dead("q")) in (2, 3, 4)
            return


def test_a_property_that_cannot_be_stored_is_named(bench: Bench) -> None:
    channel = bench.connect().channel()
    Queue("q")(channel).declare()
    with pytest.raises(PreconditionFailed, match="property 'reply_to'"):
        Producer(channel).publish("x", routing_key="q", reply_to=object())
    with pytest.raises(PreconditionFailed, match="header 'trace'"):
        Producer(channel).publish("x", routing_key="q", headers={"trace": object()})
    assert bench.rows("q") == 0


def delete(bench: Bench, name: str) -> None:
    bench.python(
        "import pgqrs_kombu, sys\nfrom kombu import Connection\n"
        "with Connection(sys.argv[1]) as connection:\n    connection.channel().queue_delete(sys.argv[2])",
        name,
    )


@pytest.mark.parametrize(
    "way", ["default exchange", "exchange", "batch", pytest.param("Producer.batch", marks=needs_batches)]
)
def test_a_queue_that_somebody_deleted_is_declared_again_by_a_publisher(bench: Bench, way: str) -> None:
    connection = bench.connect()
    producer = Producer(connection)
    queue = plain("jobs")
    target = {"routing_key": "jobs", "exchange": "" if way == "default exchange" else "jobs"}
    producer.publish(1, declare=[queue], **target)
    delete(bench, "jobs")

    if way == "batch":
        with batch():
            producer.publish(2, declare=[queue], **target)
    elif way == "Producer.batch":
        with producer.batch():
            producer.publish(2, declare=[queue], **target)
    else:
        producer.publish(2, declare=[queue], **target)

    assert Inbox(bench.connect(), queue).bodies(1) == [2]


@pytest.mark.parametrize("exchange", ["", "jobs"])
def test_a_queue_that_another_process_declares_again_meanwhile_gets_the_message(bench: Bench, exchange: str) -> None:
    connection = bench.connect()
    producer = Producer(connection)
    queue = plain("jobs")
    producer.publish(1, declare=[queue], exchange=exchange, routing_key="jobs")
    delete(bench, "jobs")
    broker = connection.default_channel.broker
    # As after it was declared again once.
    broker.directory.forget("jobs")
    remembered = broker.remembered
    restore = remembered.restore_bound

    def late(*target: str) -> bool:
        bench.python(
            "import sys\nimport pgqrs_kombu\nfrom kombu import Connection, Exchange, Queue\n"
            "with Connection(sys.argv[1]) as connection:\n"
            "    Queue('jobs', Exchange('jobs'), routing_key='jobs')(connection.channel()).declare()"
        )
        return bool(restore(*target))

    with mock.patch.object(remembered, "restore_bound", late):
        producer.publish(2, exchange=exchange, routing_key="jobs")

    assert Inbox(bench.connect(), queue).bodies(1) == [2]


def test_a_consumer_declares_its_queue_again_and_its_own_deletion_holds(bench: Bench) -> None:
    connection = bench.connect()
    inbox = Inbox(connection, plain("jobs"))
    assert inbox.nothing()
    delete(bench, "jobs")

    def is_there() -> bool:
        inbox.nothing(0.1)
        return bench.sql("select count(*) from pgqrs.queues where name = 'jobs'") == [(1,)]

    eventually(is_there)
    bench.connect().channel().queue_delete("jobs")
    Producer(connection).publish("nobody", exchange="", routing_key="jobs")
    assert not is_there()


def test_messages_of_ephemeral_queues_come_by_priority(bench: Bench) -> None:
    connection = bench.connect()
    queue = Queue("mail", Exchange("mail"), routing_key="mail", auto_delete=True)
    inbox = Inbox(connection, queue, prefetch=1)
    producer = Producer(connection)
    for number, priority in enumerate([0, 0, 3, 9, 3, 0]):
        producer.publish(number, exchange="mail", routing_key="mail", priority=priority)

    got = []
    for count in range(1, 7):
        message = inbox.wait(count)[-1]
        got.append(message.payload)
        message.ack()

    assert got == [3, 2, 4, 0, 1, 5]
