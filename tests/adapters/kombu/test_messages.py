"""What is published arrives as it was: bodies, headers, properties, priorities, times to live; other tools can read it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Producer, Queue
from kombu.simple import SimpleQueue
from pgqrs_native import Client

from pgqrs_core.drivers.pool import Connections
from pgqrs_core.effects import Execute
from pgqrs_core.events import ConsumeBatch, EnqueueBatch
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox, plain


@pytest.mark.parametrize("ephemeral", [False, True])
@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"a": [1, None, "ü"]}, {}),
        (b"\x00\xff", {}),
        ("text", {"content_type": "text/plain"}),
        ({"a": "b" * 10_000}, {"compression": "zlib"}),
    ],
)
def test_bodies_arrive_as_they_were(bench: Bench, body: object, options: dict[str, str], ephemeral: bool) -> None:
    inbox = Inbox(bench.connect(), plain("q", auto_delete=ephemeral))
    Producer(bench.connect()).publish(body, exchange="q", routing_key="q", **options)
    assert inbox.bodies(1) == [body]


@pytest.mark.parametrize("ephemeral", [False, True])
def test_headers_and_properties_arrive_as_they_were(bench: Bench, ephemeral: bool) -> None:
    inbox = Inbox(bench.connect(), plain("q", auto_delete=ephemeral))
    when = datetime(2030, 1, 2, tzinfo=timezone.utc)
    headers = {"n": 1, "nested": {"x": [1, 2]}, "when": when, "id": uuid.UUID(int=7)}
    Producer(bench.connect()).publish(
        "x", exchange="q", routing_key="q", headers=headers, correlation_id="c", reply_to="r", priority=7
    )
    message = inbox.wait(1)[0]
    assert message.headers == headers
    assert message.properties["correlation_id"] == "c"
    assert message.properties["reply_to"] == "r"
    assert message.properties["priority"] == 7
    assert message.delivery_info["redelivered"] is False
    assert isinstance(message.delivery_tag, int)


@pytest.mark.parametrize(("mode", "durable"), [(1, False), ("transient", False), (2, True), (None, True)])
def test_only_transient_messages_do_not_wait_for_the_disk(
    bench: Bench, mode: int | str | None, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer(bench.connect())
    inbox = Inbox(bench.connect(), plain("q"))
    written: list[bool] = []
    send = Connections.run

    def run(self: Connections, effect: Execute, statements: Any) -> Any:
        if effect.query.name.startswith("enqueue_"):
            written.append(not effect.query.relaxed)
        return send(self, effect, statements)

    monkeypatch.setattr(Connections, "run", run)
    producer.publish("x", exchange="q", routing_key="q", delivery_mode=mode)

    assert inbox.bodies(1) == ["x"]
    assert written == [durable]


def test_higher_priorities_come_first_and_each_counts(bench: Bench) -> None:
    producer = Producer(bench.connect())
    for priority in (3, 0, 9, 5, 4, 6, 1, 99):
        producer.publish(priority, routing_key="q", priority=priority, declare=[Queue("q", max_priority=10)])
    inbox = Inbox(bench.connect(), Queue("q", max_priority=10))
    assert inbox.bodies(8) == [9, 99, 6, 5, 4, 3, 1, 0]


@pytest.mark.parametrize("ephemeral", [False, True])
@pytest.mark.parametrize("by_queue", [False, True])
def test_messages_expire_by_their_own_time_or_the_queues(bench: Bench, by_queue: bool, ephemeral: bool) -> None:
    channel = bench.connect().channel()
    queue = plain("q", auto_delete=ephemeral, message_ttl=0.05 if by_queue else None)(channel)
    queue.declare()
    # Another process, which has declared nothing, abides by the queue's time all the same.
    Producer(bench.connect()).publish("short", exchange="q", routing_key="q", expiration=None if by_queue else 0.05)
    table = "kombu_mail" if ephemeral else "q_q"
    eventually(lambda: bench.sql(f"select expires_at < now() from pgqrs.{table}") == [(True,)])
    assert queue.queue_declare(passive=True).message_count == 0
    assert queue.get() is None


def test_an_eta_is_held_by_the_database_until_it_is_due(bench: Bench) -> None:
    inbox = Inbox(bench.connect(), Queue("q"))
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    producer = Producer(bench.connect())
    producer.publish("later", routing_key="q", headers={"eta": eta.isoformat()})
    producer.publish("now", routing_key="q", headers={"eta": None})
    assert inbox.bodies(1) == ["now"]
    assert bench.sql("select count(*) from pgqrs.q_q where lane < 0 and due_at = %s", eta) == [(1,)]
    assert inbox.bodies(2) == ["now", "later"]
    assert datetime.now(timezone.utc) >= eta


def test_an_eta_can_be_left_to_the_worker(bench: Bench) -> None:
    inbox = Inbox(bench.connect(), Queue("q"))
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    Producer(bench.connect(hold_eta=False)).publish("later", routing_key="q", headers={"eta": eta.isoformat()})
    assert inbox.bodies(1) == ["later"]


def test_the_native_client_reads_what_kombu_wrote(bench: Bench) -> None:
    Producer(bench.connect()).publish({"x": 1}, routing_key="q", headers={"task": "t"}, declare=[Queue("q")])
    with Client(bench.dsn) as client:
        message = client.consumer.read("q")
        assert message is not None
        assert message.payload == {"x": 1}
        assert message.headers["task"] == "t"


def test_kombu_reads_what_the_native_client_wrote(bench: Bench) -> None:
    inbox = Inbox(bench.connect(), Queue("q"))
    with Client(bench.dsn) as client:
        client.producer.enqueue("q", {"x": 1}, headers={"h": "v"}, priority=4)
        client.producer.enqueue("q", b"\x00")
        client.producer.enqueue("q", {"held": "eta"}, headers={"_kombu": "nonsense"})
    messages = inbox.wait(3)
    assert [message.payload for message in messages] == [{"x": 1}, b"\x00", {"held": "eta"}]
    assert messages[0].headers["h"] == "v"
    assert messages[0].properties["priority"] == 4
    assert messages[0].delivery_info["routing_key"] == "q"


def test_what_cannot_be_stored_is_refused_and_nothing_changes(bench: Bench) -> None:
    connection = bench.connect(max_body_bytes=1000)
    producer = Producer(connection)
    producer.publish("x", routing_key="q", declare=[Queue("q")])
    with pytest.raises(PreconditionFailed, match="1,000 bytes"):
        producer.publish("x" * 2000, routing_key="q")
    with pytest.raises(PreconditionFailed):
        producer.publish("x", routing_key="q", headers={"f": object()})
    assert bench.rows("q") == 1


def test_simple_queues_work(bench: Bench) -> None:
    with SimpleQueue(bench.connect(), "simple") as queue:
        queue.put({"x": 1})
        queue.put({"x": 2})
        assert queue.qsize() == 2
        message = queue.get(timeout=10)
        assert message.payload == {"x": 1}
        message.ack()
        assert queue.get(timeout=10).payload == {"x": 2}
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.1)


def test_basic_get_takes_one_and_purge_counts_the_rest(bench: Bench) -> None:
    channel = bench.connect().channel()
    for ephemeral in (False, True):
        queue = plain(f"q{ephemeral}", auto_delete=ephemeral)(channel)
        queue.declare()
        for number in range(5):
            Producer(channel).publish(number, exchange=queue.name, routing_key=queue.name)
        message = queue.get()
        assert message is not None
        assert message.payload == 0
        message.ack()
        assert channel.queue_declare(queue.name, passive=True).message_count == 4
        assert queue.purge() == 4
        assert queue.get() is None


class Mirror:
    """Stores bodies backwards, and turns them round again for consumers."""

    @hookimpl
    def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
        for draft in batch.drafts:
            draft.body = draft.body[::-1]

    @hookimpl
    def pgqrs_before_consume(self, batch: ConsumeBatch) -> None:
        for delivery in batch.deliveries:
            delivery.body = delivery.body[::-1]


@pytest.mark.parametrize("ephemeral", [False, True])
def test_whoever_takes_a_message_gets_it_as_plugins_prepare_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ephemeral: bool
) -> None:
    connection = bench.connect()
    queue = plain("q", auto_delete=ephemeral)(connection.channel())
    queue.declare()
    plugins = Plugins.core()
    plugins.register(Mirror(), "mirror")
    monkeypatch.setattr(connection.transport.broker.engine, "plugins", plugins)
    for body in (b"got", b"consumed"):
        Producer(connection).publish(body, exchange="q", routing_key="q")

    assert queue.get(no_ack=True).body == b"got"
    assert Inbox(connection, queue).wait(1)[0].body == b"consumed"
