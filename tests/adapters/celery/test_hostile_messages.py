"""Rows that no program of Celery's wrote, beside honest tasks: the worker stays, each is handled or dead with a reason."""

from __future__ import annotations

import json
import pickle
import random
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from pgqrs_core.testing import eventually
from tests.support.database import Database

from .celery_support import Workers

TASK = "celery_app.say"
BODY = json.dumps([["bad"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
DEEP = b"[" * 50_000 + b"]" * 50_000
#: Values of every type that JSON has, at their limits.
VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 10**400, 1e308, "", "x", "\ud800", "x" * 5_000, [], [[]], {}, {"a": [1]},
    [None, "x"], ["x", 1], [1, 2, 3], [1e9, -5], {"__type__": "datetime", "__value__": "x"}, "2999-01-01",
    "0001-01-01T00:00:00", "9999-12-31T23:59:59+00:00", "infinity",
]  # fmt: skip
FIELDS = [
    "task", "id", "root_id", "parent_id", "group", "group_index", "eta", "expires", "retries", "timelimit", "argsrepr",
    "kwargsrepr", "origin", "lang", "shadow", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
    "compression", "_kombu", "__type__", "meth",
]  # fmt: skip
TYPES = [
    "application/json",
    "application/data",
    "text/plain",
    "application/x-python-serialize",
    "application/x-yaml",
    "x",
    "",
]
BODIES = [
    b"", b"1", b"null", b'"x"', b"{}", b"[]", b"[1]", b"[1,2,3]", b"[[],{}]", b'[[],{},null]', b'[{},[],{}]',
    b'[null,null]', b'[null,null,null]',
    b'[["a"],{"1":2},{"callbacks":1,"errbacks":"x","chain":{"a":1},"chord":[1]}]', b'[["a"],{},{"errbacks":[1]}]',
    b'[["a"],{},{"chain":[1,2]}]', b'[["a"],{},{"chord":{"task":1}}]', b'[["a"],{},[]]', b"\xff\xfe", b"\0", DEEP,
    b'{"task":1}', b'{"task":"celery_app.say"}', b'{"task":"celery_app.say","id":"x","args":1,"kwargs":2}',
    b'{"task":"celery_app.say","id":null,"args":["a"],"kwargs":{}}', b'{"task":{},"id":[]}', b'{"task":"nope","id":"x"}',
    b'{"task":"nope"}', b'{"id":"x"}', b'[' + b"9" * 5_000 + b",{},{}]", b'[["\\ud800"],{},{}]', zlib.compress(BODY),
    pickle.dumps([["bad"], {}, {}]), b"- *a", b"NaN", b"1e999",
]  # fmt: skip
PROPERTIES: list[Any] = [
    1, [], {}, {"delivery_info": 1}, {"delivery_info": {"exchange": [], "routing_key": {}}}, {"reply_to": {}},
    {"correlation_id": [1]}, {"priority": "x"}, {"headers": 1}, {"delivery_tag": "x"}, {"expiration": "x"},
]  # fmt: skip
ENCODINGS: list[Any] = [None, "utf-8", "binary", "rot13", "idna", "zlib", "\0", 1, [], "x" * 1_000]


def rows(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Content type, headers and body of messages that are wrong in one way, and of ``count`` that are in several."""
    rng = random.Random(16)

    def headers(**changes: Any) -> dict[str, Any]:
        properties = {"correlation_id": "x", "delivery_info": {"exchange": "", "routing_key": "celery"}}
        kombu = {"properties": properties, "content_encoding": "utf-8"}
        return {"task": TASK, "id": f"bad-{rng.random()}", "lang": "py", "_kombu": kombu, **changes}

    def text(value: Any) -> str:
        # As PostgreSQL's type json takes it: a lone surrogate is a text of ASCII there.
        return json.dumps(value)

    for body in BODIES:
        for kind in TYPES:
            yield kind, text(headers()), body
            yield kind, "{}", body
    for field in FIELDS:
        for value in VALUES:
            yield "application/json", text(headers(**{field: value})), BODY
        without = headers()
        without.pop(field, None)
        yield "application/json", text(without), BODY
    for properties in PROPERTIES:
        yield "application/json", text(headers(_kombu={"properties": properties, "content_encoding": "utf-8"})), BODY
    for encoding in ENCODINGS:
        yield "text/plain", text(headers(_kombu={"properties": {}, "content_encoding": encoding})), BODY
    for odd in ("[]", "1", "null", '"x"', '{"_kombu":{"typed":true}}', '{"a":' * 500 + "1" + "}" * 500):
        yield "application/json", odd, BODY
    for _ in range(count):
        chosen = {field: rng.choice(VALUES) for field in rng.sample(FIELDS, 3)}
        yield rng.choice(TYPES), text(headers(**chosen)), rng.choice(BODIES)


def slip_in(crew: Workers, made: list[tuple[str, str, bytes]]) -> None:
    for row in made:
        crew.sql("insert into pgqrs.q_celery (lane, content_type, headers, body) values (0, %s, %s::json, %s)", *row)


@pytest.mark.parametrize(("pool", "every"), [("solo", 1), ("prefork", 7), ("threads", 7)])
def test_a_worker_goes_on_whatever_lies_in_its_queue(crew: Workers, pool: str, every: int) -> None:
    crew.app.amqp.queues["celery"](crew.app.connection_for_write().default_channel).declare()
    hostile = list(rows(150))[::every]
    for start in range(0, len(hostile), 100):
        slip_in(crew, hostile[start : start + 100])
        crew.tasks.say.delay(f"honest {start}")
    worker = crew.start(pool, "-c", "1", prefetch="50")

    for start in range(0, len(hostile), 100):
        crew.wait_for(f"say honest {start}")
    # A task of the year 2999 waits for it.
    left = "select headers::text, body from pgqrs.q_celery where lane > -100 and headers::text !~ '[29]999-' limit 5"
    eventually(lambda: not crew.sql(left), 60)

    assert worker.process.poll() is None, worker.log[-5_000:]
    dead = crew.sql("select message_id, last_error from pgqrs.q_celery where lane = -100")
    assert len(dead) > len(hostile) / 2
    assert [number for number, error in dead if not (error and error.get("type") and error.get("message"))] == []
    crew.tasks.say.delay("after")
    crew.wait_for("say after")


ORDERS: list[Any] = [
    1, None, "x", [], {}, {"method": 1}, {"method": None}, {"method": "nope"}, {"method": "ping", "arguments": 1},
    {"method": "ping", "arguments": {"x": 1}}, {"method": "ping", "destination": 5}, {"method": "ping", "destination": {}},
    {"method": "ping", "pattern": 1, "matcher": 2}, {"method": "ping", "pattern": "[", "matcher": "pcre"},
    {"method": "ping", "reply_to": 1}, {"method": "ping", "reply_to": {}}, {"method": "ping", "reply_to": {"exchange": 1}},
    {"method": "ping", "reply_to": {"exchange": "celery", "routing_key": "x"}, "ticket": {}},
    {"method": "ping", "reply_to": {"exchange": "amq.topic", "routing_key": "x" * 500}},
    {"method": "revoke", "arguments": {"task_id": {}}},
    {"method": "rate_limit", "arguments": {"task_name": [], "rate_limit": {}}},
    {"method": "time_limit", "arguments": {"task_name": "celery_app.say", "hard": "x"}}, {"method": ["shutdown"]},
    {"method": "query_task", "arguments": {"ids": 1}}, {"method": "add_consumer", "arguments": {"queue": 1}},
    {"method": "add_consumer", "arguments": {"queue": "x" * 500}}, {"method": "add_consumer", "arguments": {"queue": {}}},
    {"method": "cancel_consumer", "arguments": {"queue": []}},
]  # fmt: skip


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_goes_on_whatever_lies_in_its_mailbox(crew: Workers, pool: str) -> None:
    worker = crew.start(pool, "-c", "1")
    place = "select queue_id, %s, %s::json, %s from pgqrs.kombu_queues where name like '%%.celery.pidbox'"
    bodies = [json.dumps(order).encode() for order in ORDERS] + [b"", b"{", DEEP, b"\xff", pickle.dumps(1)]
    clocks: list[Any] = [None, 0, -1, "x", [], {}, 10**4_000, 1.5]
    made = [(kind, "{}", body) for body in bodies for kind in ("application/json", "application/data", "x")]
    made += [("application/json", json.dumps({"clock": clock}), b'{"method":"ping"}') for clock in clocks]
    made += [("application/json", odd, b'{"method":"ping"}') for odd in ("[]", "1", "null", '{"_kombu":1}')]

    for row in made:
        crew.sql(f"insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) {place}", *row)
    crew.tasks.say.delay("honest")
    crew.wait_for("say honest")

    eventually(lambda: crew.sql("select count(*) from pgqrs.kombu_mail") == [(0,)], 60)
    answer = crew.inspect(worker).ping()
    assert answer is not None, worker.log[-6_000:]
    assert list(answer) == [worker.name]
    assert worker.process.poll() is None


ANSWER = (
    "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) values (%s, 'application/json', %s::json, %s)"
)


def test_programs_that_ask_workers_go_on_whatever_answers_there_are(crew: Workers) -> None:
    worker = crew.start("solo")
    ended = threading.Event()

    def slip_in_answers() -> None:
        database = Database(crew.dsn)
        done: set[int] = set()
        while not ended.wait(0.005):
            found = database.sql("select queue_id from pgqrs.kombu_queues where name like '%.reply.celery.pidbox'")
            for queue_id in {number for (number,) in found} - done:
                done.add(queue_id)
                for body in (b"1", b"[1]", b'"x"', b"null"):
                    for clock in (None, "x", [], 10**400, -1, 1.5):
                        headers = json.dumps({"clock": clock, "expires": clock})
                        database.sql(ANSWER, queue_id, headers, body)
        database.close()

    thread = threading.Thread(target=slip_in_answers)
    thread.start()
    try:
        # An answer that is none may still count as the one that was waited for.
        assert crew.inspect(worker).ping().keys() <= {worker.name}
        # It asks others when it starts.
        other = crew.start("solo", name="two")
    finally:
        ended.set()
        thread.join()

    assert other.process.poll() is None
    assert list(crew.inspect(worker).ping()) == [worker.name]
