"""What plugins encode stays encoded in the tables of the transport, ephemeral queues included."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kombu import Exchange, Producer, Queue
from pgqrs_crypto import plugin as crypto
from pgqrs_kombu import mail
from pgqrs_kombu import plugin as transport
from pgqrs_zstd import plugin as zstd

from pgqrs_core.marks import Marks
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox

pytest.importorskip("cryptography")
pytest.importorskip("zstandard")

KEY = "k1:" + base64.b64encode(b"k" * 32).decode()
BODIES = "select body from pgqrs.kombu_mail"
SECRET = b"hunter2 " * 500


def test_the_environment_configures_them_as_for_every_program(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PGQRS_PLUGINS_CRYPTO_KEYS", KEY)
    monkeypatch.setenv("PGQRS_PLUGINS_CRYPTO_ENCRYPT", "*")
    inbox = Inbox(bench.connect(), Queue("jobs"))
    Producer(bench.connect()).publish(SECRET, routing_key="jobs")

    assert inbox.wait(1)[0].body == SECRET
    assert b"hunter2" not in bench.sql("select body from pgqrs.q_jobs")[0][0]


@pytest.fixture(autouse=True)
def _sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins.core()
    plugins.register(transport, "kombu")
    plugins.register(crypto, "crypto", keys=[KEY], encrypt=["*"], required=True)
    plugins.register(zstd, "zstd", queues=["*"])
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)


def test_tasks_in_a_durable_queue_are_sealed_and_opened_with_their_headers(bench: Bench) -> None:
    inbox = Inbox(bench.connect(), Queue("jobs"))
    Producer(bench.connect()).publish(SECRET, routing_key="jobs", headers={"task": "pay"})

    message = inbox.wait(1)[0]

    assert (message.body, message.headers) == (SECRET, {"task": "pay"})
    assert b"hunter2" not in bench.sql("select body from pgqrs.q_jobs")[0][0]


def test_a_task_whose_name_was_changed_in_the_table_is_dead(bench: Bench) -> None:
    channel = bench.connect().channel()
    queue = Queue("jobs")(channel)
    queue.declare()
    Producer(bench.connect()).publish(b"10 EUR", routing_key="jobs", headers={"task": "pay"})
    bench.sql("update pgqrs.q_jobs set headers = replace(headers::text, '\"pay\"', '\"refund\"')::json")

    assert queue.get(accept=None) is None
    assert "were changed" in bench.dead("jobs")[0]["message"]


def test_what_goes_to_ephemeral_queues_through_an_exchange_opens_in_each_of_them(bench: Bench) -> None:
    fan = Exchange("news", "fanout")
    inboxes = [Inbox(bench.connect(), Queue(name, fan, auto_delete=True)) for name in ("one", "two")]
    Producer(bench.connect()).publish(SECRET, exchange="news")

    assert [inbox.wait(1)[0].body for inbox in inboxes] == [SECRET, SECRET]


def test_what_goes_back_to_an_ephemeral_queue_goes_back_sealed(bench: Bench) -> None:
    connection = bench.connect()
    queue = Queue("reply", auto_delete=True)(connection.channel())
    queue.declare()
    Producer(connection).publish(SECRET, routing_key="reply")
    engine = connection.transport.broker.engine
    [(number,)] = bench.sql("select queue_id from pgqrs.kombu_queues where name = 'reply'")

    found = engine.run(mail.receive, {number: mail.Sought("reply", Marks())}, 10, engine.plugins)
    engine.run(mail.put_back, found, engine.doorbell.channel)

    assert [item.body for _, item in found] == [SECRET]
    [(body,)] = bench.sql(BODIES)
    assert b"hunter2" not in body
    assert queue.get(accept=None).body == SECRET


def test_forged_mail_is_discarded_with_a_word_in_the_log(bench: Bench, caplog: Any) -> None:
    inbox = Inbox(bench.connect(), Queue("reply", auto_delete=True))
    Producer(bench.connect()).publish(SECRET, routing_key="reply", headers={"n": 1})
    eventually(lambda: inbox.wait(1))
    bench.sql(
        "insert into pgqrs.kombu_mail (queue_id, priority, content_type, body) "
        "select queue_id, 0, 'text/plain', 'forged' from pgqrs.kombu_queues where name = 'reply'"
    )
    Producer(bench.connect()).publish(b"next", routing_key="reply")

    assert inbox.wait(2)[1].body == b"next"
    assert "ephemeral queue 'reply' is discarded" in caplog.text


SEALED = "select queue_id, content_type, headers::text, body from pgqrs.kombu_mail order by mail_id"


def forge(bench: Bench, name: str, exchange: str, *, body: str = "forged") -> None:
    """Put a message into an ephemeral queue that says that it was published to an exchange."""
    headers = json.dumps({"_kombu": {"properties": {"delivery_info": {"exchange": exchange, "routing_key": ""}}}})
    bench.sql(
        "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) "
        "select queue_id, 'text/plain', %s::json, %s from pgqrs.kombu_queues where name = %s",
        headers,
        body.encode(),
        name,
    )


@pytest.fixture
def only_pidbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control messages alone must be signed, by the name of their exchange."""
    plugins = Plugins.core()
    plugins.register(transport, "kombu")
    plugins.register(crypto, "crypto", keys=[KEY], sign=["control"], required=True)
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)


CONTROL = Exchange("control", "fanout")


@pytest.mark.parametrize("claimed", ["", "other", "control", "amq.fanout", "x" * 500, "\N{SNOWMAN}"])
def test_what_a_message_says_of_itself_does_not_decide_what_it_must_be(
    bench: Bench, only_pidbox: None, claimed: str
) -> None:
    inbox = Inbox(bench.connect(), Queue("worker", CONTROL, auto_delete=True))

    forge(bench, "worker", claimed)
    Producer(bench.connect()).publish(b"honest", exchange=CONTROL)

    assert [message.body for message in inbox.wait(1)] == [b"honest"]
    assert inbox.nothing()


def test_a_sealed_message_opens_in_the_queue_that_it_was_sent_to_alone(bench: Bench, only_pidbox: None) -> None:
    connection = bench.connect()
    one = Queue("one", CONTROL, auto_delete=True)(connection.channel())
    two = Queue("two", CONTROL, auto_delete=True)(connection.channel())
    one.declare()
    two.declare()
    Producer(connection).publish(b"shutdown", exchange=CONTROL)
    bench.sql(
        "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) "
        "select q.queue_id, m.content_type, m.headers, m.body from pgqrs.kombu_mail m, pgqrs.kombu_queues q "
        "where m.queue_id = (select queue_id from pgqrs.kombu_queues where name = 'one') and q.name = 'two'"
    )

    assert [one.get(accept=None).body, two.get(accept=None).body] == [b"shutdown"] * 2
    assert one.get(accept=None) is None
    assert two.get(accept=None) is None


def test_a_sealed_message_does_not_open_in_a_later_queue_of_that_name(bench: Bench, only_pidbox: None) -> None:
    connection = bench.connect()
    queue = Queue("one", CONTROL, auto_delete=True)(connection.channel())
    queue.declare()
    Producer(connection).publish(b"shutdown", exchange=CONTROL)
    [(_, kind, headers, body)] = bench.sql(SEALED)
    queue.delete()
    queue.declare()
    bench.sql(
        "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) "
        "select queue_id, %s, %s::json, %s from pgqrs.kombu_queues where name = 'one'",
        kind,
        headers,
        body,
    )

    assert queue.get(accept=None) is None


def test_a_rule_by_the_name_of_the_ephemeral_queue_holds_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins.core()
    plugins.register(transport, "kombu")
    plugins.register(crypto, "crypto", keys=[KEY], sign=["worker"], required=True)
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)
    inbox = Inbox(bench.connect(), Queue("worker", CONTROL, auto_delete=True))

    forge(bench, "worker", "control")
    forge(bench, "worker", "")
    Producer(bench.connect()).publish(b"honest", exchange=CONTROL)
    Producer(bench.connect()).publish(b"direct", routing_key="worker")

    assert [message.body for message in inbox.wait(2)] == [b"honest", b"direct"]
    assert inbox.nothing()


def test_the_dead_letter_exchange_seals_nothing_that_was_not_sealed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = Plugins.core()
    plugins.register(transport, "kombu")
    plugins.register(crypto, "crypto", keys=[KEY], sign=["guarded", "source"], required=True)
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)
    connection = bench.connect()
    guarded = Queue("guarded")(connection.channel())
    guarded.declare()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "guarded"}
    inboxes = [
        Inbox(bench.connect(), Queue(name, queue_arguments=arguments), prefetch=1) for name in ("source", "open")
    ]
    for name in ("source", "open"):
        Producer(connection).publish(name.encode(), routing_key=name)
    for inbox in inboxes:
        inbox.wait(1)[0].reject()

    eventually(lambda: bench.rows("guarded") == 1)
    eventually(lambda: len(bench.dead("open")) == 1 and bench.dead("open")[0]["type"] == "Unroutable")

    assert guarded.get(accept=None).body == b"source"
    assert guarded.get(accept=None) is None
