"""Dead-letter exchanges and greatest lengths, as RabbitMQ has them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Connection, Exchange, Producer, Queue
from pgqrs_kombu import batch, dead_letters

from pgqrs_core.operations import maintenance
from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox, drain

WORK = Queue("work", Exchange("work"), routing_key="work", queue_arguments={"x-dead-letter-exchange": "retry"})
#: Nobody consumes it: what expires goes back to the work.
RETRY = Queue(
    "retry",
    Exchange("retry"),
    routing_key="work",
    queue_arguments={"x-dead-letter-exchange": "work", "x-message-ttl": 300},
)


def declare(connection: Connection, *queues: Queue) -> None:
    for queue in queues:
        queue(connection.default_channel).declare()


def test_a_rejected_message_waits_in_a_queue_without_a_consumer_and_comes_back_with_its_history(bench: Bench) -> None:
    connection = bench.connect()
    declare(connection, WORK, RETRY)
    inbox = Inbox(connection, WORK)
    Producer(connection).publish({"n": 1}, exchange="work", routing_key="work", headers={"mine": 1})
    for count in range(1, 4):
        message = inbox.wait(count)[-1]
        assert message.payload == {"n": 1}
        assert message.headers["mine"] == 1
        deaths = message.headers.get("x-death", [])
        assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == (
            [("retry", "expired", count - 1), ("work", "rejected", count - 1)] if count > 1 else []
        )
        if count > 1:
            assert [(death["exchange"], death["routing-keys"]) for death in deaths] == [
                ("retry", ["work"]),
                ("work", ["work"]),
            ]
            assert message.headers["x-first-death-queue"] == "work"
            assert message.headers["x-last-death-queue"] == "retry"
            assert message.delivery_info["exchange"] == "work"
        if count < 3:
            message.reject()
    message.ack()
    eventually(lambda: bench.rows("work") + bench.rows("retry") == 0)
    assert bench.dead("work") == []


@pytest.mark.parametrize(
    ("arguments", "options", "arrives_by"),
    [
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "end"}, {"expiration": 0.2}, "end"),
        ({"x-dead-letter-exchange": "dlx", "x-message-ttl": 200}, {}, "first"),
        ({"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "end", "x-message-ttl": 200}, {}, "end"),
    ],
)
def test_what_expires_goes_where_the_arguments_say_and_lasts_there(
    bench: Bench, arguments: dict[str, Any], options: dict[str, Any], arrives_by: str
) -> None:
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("first", queue_arguments=arguments))
    for number in range(3):
        Producer(connection).publish(number, routing_key="first", **options)

    inbox = Inbox(bench.connect(), end)

    assert sorted(inbox.bodies(3)) == [0, 1, 2]
    assert {message.delivery_info["routing_key"] for message in inbox.messages} == {arrives_by}
    assert all("expiration" not in message.properties for message in inbox.messages)
    if options:
        assert inbox.messages[0].headers["x-death"][0]["original-expiration"] == "200"
    assert inbox.nothing()
    assert bench.rows("first") == 0


def test_what_no_queue_would_have_stays_as_a_dead_letter(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    connection = bench.connect()
    declare(connection, Queue("q", queue_arguments={"x-dead-letter-exchange": "nowhere", "x-message-ttl": 100}))
    Producer(connection).publish("x", routing_key="q")
    eventually(lambda: [error["type"] for error in bench.dead("q")] == ["Unroutable"])
    assert "'nowhere'" in caplog.text


def test_a_message_does_not_expire_in_a_circle_for_ever(bench: Bench) -> None:
    connection = bench.connect()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q", "x-message-ttl": 100}
    declare(connection, Queue("q", queue_arguments=arguments))
    Producer(connection).publish("x", routing_key="q")
    eventually(lambda: [error["type"] for error in bench.dead("q")] == ["Unroutable"])


def test_too_many_deliveries_are_a_reason_too(bench: Bench) -> None:
    connection = bench.connect(max_attempts=2)
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-dead-letter-exchange": "dlx"}))
    Producer(connection).publish("x", routing_key="q")
    inbox = Inbox(connection, Queue("q", no_declare=True))
    for count in (1, 2):
        inbox.wait(count)[-1].requeue()
    found = Inbox(connection, end)
    eventually(lambda: drain(connection, 0.2) or found.messages)
    assert [death["reason"] for death in found.messages[0].headers["x-death"]] == ["delivery_limit"]


@pytest.mark.parametrize(
    "death",
    [
        "text",
        [1, None],
        [{"queue": "q", "reason": "rejected", "count": "many"}],
        [{"queue": ["q"], "reason": {}, "count": 1e300}],
        {"queue": "q"},
    ],
    ids=str,
)
def test_a_history_that_is_none_holds_nothing_up(bench: Bench, death: Any) -> None:
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-dead-letter-exchange": "dlx"}))
    for number, headers in enumerate([{"x-death": death}, {}]):
        Producer(connection).publish(number, routing_key="q", headers=headers)
    inbox = Inbox(connection, Queue("q", no_declare=True))
    for message in inbox.wait(2):
        message.reject()
    assert sorted(Inbox(bench.connect(), end).bodies(2)) == [0, 1]


def test_a_message_that_cannot_be_passed_on_holds_up_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-dead-letter-exchange": "dlx"}))
    inbox = Inbox(connection, Queue("q", no_declare=True))
    before = dead_letters.dead_lettered

    def fails_once(queue: str, one: Any, rules: Any) -> Any:
        if one.delivery.id == inbox.messages[0].delivery_info["pgqrs"][1]:
            raise ZeroDivisionError
        return before(queue, one, rules)

    monkeypatch.setattr(dead_letters, "dead_lettered", fails_once)
    for number in range(2):
        Producer(connection).publish(number, routing_key="q")
    for message in inbox.wait(2):
        message.reject()
    assert Inbox(bench.connect(), end).bodies(1) == [1]
    eventually(lambda: [error["type"] for error in bench.dead("q")] == ["Unroutable"])


def test_dead_letters_that_stay_are_not_walked_over_in_each_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    before = dead_letters.fallen

    def fallen(queue: Any, limit: int, seconds: float) -> Any:
        looks.append(seconds)
        return before(queue, limit, seconds)

    monkeypatch.setattr(dead_letters, "fallen", fallen)
    connection = bench.connect()
    declare(connection, Queue("q", queue_arguments={"x-dead-letter-exchange": "nowhere"}))
    forwarder = connection.transport.broker.forwarder
    inbox = Inbox(connection, Queue("q", no_declare=True))
    for count in range(1, 4):
        Producer(connection).publish("x", routing_key="q")
        inbox.wait(count)[-1].reject()
        eventually(lambda count=count: [error["type"] for error in bench.dead("q")] == ["Unroutable"] * count)
        asked = len(looks)
        forwarder.hurry("q")
        eventually(lambda asked=asked: len(looks) > asked)

    assert looks[0] > 1e9
    assert looks[-1] < 100


def test_a_queue_holds_its_newest_messages(bench: Bench) -> None:
    connection = bench.connect()
    declare(connection, Queue("q", queue_arguments={"x-max-length": 3, "x-overflow": "drop-head"}))
    producer = Producer(connection)
    for number in range(5):
        producer.publish(number, routing_key="q")
    with batch():
        producer.publish(5, routing_key="q")
    assert bench.rows("q") == 3
    assert Inbox(bench.connect(), Queue("q", no_declare=True)).bodies(3) == [3, 4, 5]


def test_a_long_queue_is_not_counted_with_each_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    before = dead_letters.beyond_length

    def beyond_length(queue: Any, length: int, limit: int) -> Any:
        counts.append(length)
        return before(queue, length, limit)

    monkeypatch.setattr(dead_letters, "beyond_length", beyond_length)
    connection = bench.connect()
    declare(connection, Queue("q", queue_arguments={"x-max-length": 5_000}))
    bench.sql(
        "insert into pgqrs.q_q (lane, priority, message_id, body) overriding system value "
        "select 0, 0, -n, 'x' from generate_series(1, 5000) n"
    )
    for number in range(200):
        Producer(connection).publish(number, routing_key="q")

    assert len(counts) < 100
    eventually(lambda: bench.rows("q") == 5_000)


def test_what_a_full_queue_drops_goes_to_its_dead_letter_exchange(bench: Bench) -> None:
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-max-length": 1, "x-dead-letter-exchange": "dlx"}))
    for number in range(4):
        Producer(connection).publish(number, routing_key="q")
    inbox = Inbox(bench.connect(), end)
    assert sorted(inbox.bodies(3)) == [0, 1, 2]
    assert inbox.messages[0].headers["x-death"][0]["reason"] == "maxlen"
    assert bench.rows("q") == 1


def test_housekeeping_leaves_expired_messages_to_their_exchange(bench: Bench) -> None:
    connection = bench.connect()
    declare(connection, Queue("kept", queue_arguments={"x-dead-letter-exchange": "dlx"}), Queue("plain"))
    broker = connection.transport.broker
    broker.forwarder.close()
    for name in ("kept", "plain"):
        Producer(connection).publish("x", routing_key=name, expiration=0.001)
    eventually(lambda: bench.sql("select count(*) from pgqrs.q_kept where expires_at < now()") == [(1,)])
    broker.engine.run(maintenance.maintain, "pgqrs")

    assert (bench.rows("kept"), bench.rows("plain")) == (1, 0)


def test_each_of_many_messages_arrives_once_while_several_processes_move_them(bench: Bench) -> None:
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-dead-letter-exchange": "dlx", "x-message-ttl": 400}))
    producer = Producer(connection)
    with batch():
        for number in range(1_000):
            producer.publish(number, routing_key="q")
    script = (
        "import sys, time, pgqrs_kombu\nfrom kombu import Connection\n"
        "with Connection(sys.argv[1]) as connection:\n"
        "    connection.connect()\n    forwarder = connection.transport.broker.forwarder\n    forwarder.start()\n"
        "    until = time.monotonic() + 3\n"
        "    while time.monotonic() < until:\n        forwarder.hurry('q')\n        time.sleep(0.005)\n"
    )
    others = [threading.Thread(target=bench.python, args=(script,)) for _ in range(2)]
    for thread in others:
        thread.start()
    inbox = Inbox(bench.connect(), end)
    assert sorted(inbox.bodies(1_000)) == list(range(1_000))
    for thread in others:
        thread.join()
    assert inbox.nothing()
    assert bench.rows("q") == 0


REFUSED = [
    ("alternate-exchange", lambda c: c.exchange_declare("ex", arguments={"alternate-exchange": "other"})),
    ("x-max-length-bytes", lambda c: c.queue_declare("q", arguments={"x-max-length-bytes": 10})),
    ("x-overflow", lambda c: c.queue_declare("q", arguments={"x-overflow": "reject-publish"})),
    ("x-single-active-consumer", lambda c: c.queue_declare("q", arguments={"x-single-active-consumer": True})),
    ("x-delivery-limit", lambda c: c.queue_declare("q", arguments={"x-delivery-limit": 3})),
    ("x-queue-type", lambda c: c.queue_declare("q", arguments={"x-queue-type": "stream"})),
    ("x-dead-letter-routing-key", lambda c: c.queue_declare("q", arguments={"x-dead-letter-routing-key": "a"})),
    (
        "x-dead-letter-exchange",
        lambda c: c.queue_declare("q", auto_delete=True, arguments={"x-dead-letter-exchange": "a"}),
    ),
    ("x-max-length", lambda c: c.queue_declare("q", arguments={"x-max-length": -1})),
    ("x-priority", lambda c: c.basic_consume("there", arguments={"x-priority": 10})),
]


@pytest.mark.parametrize(("name", "ask"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_its_name(bench: Bench, name: str, ask: Callable[[Any], Any]) -> None:
    channel = bench.connect().channel()
    channel.queue_declare("there")
    with pytest.raises(PreconditionFailed, match=name):
        ask(channel)
    assert bench.sql("select count(*) from pgqrs.queues") == [(1,)]


def test_known_arguments_are_accepted(bench: Bench) -> None:
    channel = bench.connect().channel()
    channel.queue_declare("q", arguments={"x-max-priority": 10, "x-queue-type": "quorum", "mine": "note"})
    assert channel.queue_declare("q", passive=True).message_count == 0


TWIN = (
    "insert into pgqrs.q_q (lane, message_id, priority, due_at, attempt, last_error, content_type, headers, body) "
    "overriding system value "
    "select -100, message_id, priority, now(), 1, '{}', content_type, headers, body from pgqrs.q_q where lane >= 0"
)


def test_of_two_messages_with_one_id_both_go_to_the_exchange(bench: Bench) -> None:
    """One has expired, the other one is dead. Told apart by their ids alone, both were removed and one was sent."""
    connection = bench.connect()
    end = Queue("end", Exchange("dlx", "fanout"))
    declare(connection, end, Queue("q", queue_arguments={"x-dead-letter-exchange": "dlx"}))
    Producer(connection).publish("x", routing_key="q")
    bench.sql(TWIN)
    bench.sql("update pgqrs.q_q set expires_at = now() where lane >= 0")

    assert Inbox(bench.connect(), end).bodies(2) == ["x", "x"]
    assert bench.sql("select count(*) from pgqrs.q_q") == [(0,)]


def test_of_two_messages_with_one_id_that_no_queue_would_have_both_stay_as_dead_letters(bench: Bench) -> None:
    connection = bench.connect()
    declare(connection, Queue("q", queue_arguments={"x-dead-letter-exchange": "nowhere"}))
    for _ in range(2):
        Producer(connection).publish("x", routing_key="q")
    bench.sql(TWIN)
    bench.sql("update pgqrs.q_q set expires_at = now() where lane >= 0")

    eventually(
        lambda: bench.sql("select count(*), count(distinct message_id) from pgqrs.q_q where lane = -100") == [(4, 4)]
    )
