"""What plugins encode stays encoded in the tables of the transport, ephemeral queues included."""

from __future__ import annotations

import base64
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
