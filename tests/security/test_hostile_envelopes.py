"""What Kombu and Celery are sent, and told to do, by whoever means no good."""

from __future__ import annotations

import bz2
import contextlib
import json
import lzma
import pickle
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from queue import Empty
from typing import Any

import psycopg
import pytest
from amqp.exceptions import ChannelError
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kombu import Connection, Exchange, Queue
from kombu.compression import compress
from kombu.exceptions import ContentDisallowed
from pgqrs_celery.address import configuration
from pgqrs_kombu.compression import expand
from pgqrs_kombu.options import Options
from pgqrs_kombu.patterns import matches, pattern_of
from pgqrs_kombu.url import config_of

from pgqrs_core.config_address import masked
from pgqrs_core.errors import ConfigurationError, DecodeError, PgqrsError

from .test_adapter_roles import app_at, url_of
from .test_hostile_input import JSON, ODD_HEADERS, PIECES, PURE, SERVER, TEXT, WRONG

pytestmark = [
    pytest.mark.timeout(180),
    # A broker's threads draw their jitter while an example is being made.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

#: What a channel answers wrong requests with: AMQP's errors and ours.
REFUSED = (ChannelError, PgqrsError)


@pytest.fixture(scope="module")
def broker(module_dsn: str) -> Iterator[Connection]:
    with Connection(url_of(module_dsn), transport_options={"create_schema": True}) as connection:
        Queue("tasks", durable=True)(connection.default_channel).declare()
        yield connection


@pytest.fixture
def sql(module_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(module_dsn, autocommit=True) as connection:
        yield connection


def text_of(value: Any) -> str:
    """JSON as it can be stored: Python's way to write NaN is none."""
    return json.dumps(value).replace("NaN", "null").replace("-Infinity", "null").replace("Infinity", "null")


#: Kombu's part of the headers, right and wrong.
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "_kombu": JSON
        | st.fixed_dictionaries(
            {
                "properties": st.dictionaries(st.sampled_from(["delivery_info", "delivery_tag", "priority"]), JSON)
                | JSON
            },
            optional={"content_encoding": JSON | st.sampled_from(["utf-8", "binary", "rot13", "idna", "zlib", "\0"])},
        ),
        "compression": JSON | st.sampled_from(["zlib", "bzip2", "lzma", "application/x-gzip", "none"]),
        "__type__": JSON,
        "__value__": JSON,
        "id": JSON,
        "task": JSON,
        "eta": JSON,
    },
).map(text_of)
TYPES = st.sampled_from(
    [
        "application/json",
        "application/x-python-serialize",
        "application/x-yaml",
        "text/plain",
        "application/data",
        "",
        "x",
    ]
)
BODIES = st.binary(max_size=50) | st.sampled_from([b"1", pickle.dumps({"a": 1}), zlib.compress(b"1"), b"[" * 100_000])


@settings(SERVER, max_examples=40)
@given(rows=st.lists(st.tuples(TYPES, ENVELOPES | ODD_HEADERS, BODIES), min_size=1, max_size=5))
def test_every_message_reaches_its_consumer_or_an_error_of_its_own(
    rows: list[tuple[str, str | None, bytes]], broker: Connection, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("truncate pgqrs.q_tasks")
    for row in rows:
        sql.execute(
            "insert into pgqrs.q_tasks (lane, content_type, headers, body) values (0, %s, %s::json, %s)", list(row)
        )
    broker.Producer().publish("good", routing_key="tasks", serializer="json")

    channel = broker.channel()
    seen: list[Any] = []
    while (message := channel.basic_get("tasks")) is not None:
        with contextlib.suppress(Exception):
            seen.append(message.payload)
        repr(message)
        message.reject()
    channel.close()

    assert "good" in seen
    assert sql.execute("select count(*) from pgqrs.q_tasks where lane > -100").fetchone() == (0,)


@settings(SERVER, max_examples=40)
@given(
    headers=st.dictionaries(TEXT, JSON | WRONG, max_size=3),
    properties=st.dictionaries(
        st.sampled_from(["priority", "expiration", "correlation_id", "reply_to", "x"]), JSON | WRONG, max_size=3
    ),
    routing_key=TEXT,
)
def test_what_is_published_is_stored_or_refused(
    headers: Any, properties: dict[str, Any], routing_key: str, broker: Connection, sql: psycopg.Connection[Any]
) -> None:
    channel = broker.default_channel
    message = channel.prepare_message("x", None, "text/plain", "utf-8", headers, properties)
    for exchange, key in (("", "tasks"), ("", routing_key), ("amq.topic", routing_key), (routing_key, routing_key)):
        with contextlib.suppress(*REFUSED):
            channel.basic_publish(message, exchange, key)
    sql.execute("truncate pgqrs.q_tasks")


@settings(SERVER, max_examples=40)
@given(
    # Without a name a queue is given one.
    name=TEXT.filter(bool),
    key=TEXT,
    kind=st.sampled_from(["direct", "topic", "fanout", "headers", "x'y"]),
    arguments=st.dictionaries(st.sampled_from(["x-expires", "x-message-ttl", "x"]), JSON | WRONG, max_size=3),
    exclusive=st.booleans(),
)
def test_declarations_work_or_are_refused_and_leave_nothing(
    name: str, key: str, kind: str, arguments: Any, exclusive: bool, broker: Connection, sql: psycopg.Connection[Any]
) -> None:
    channel = broker.channel()
    before = sql.execute("select count(*) from pgqrs.queues").fetchone()
    with contextlib.suppress(*REFUSED):
        channel.exchange_declare(name, kind)
    with contextlib.suppress(*REFUSED):
        channel.queue_declare(name, exclusive=exclusive, auto_delete=exclusive, arguments=arguments)
    with contextlib.suppress(*REFUSED):
        channel.queue_bind(name, name, key, arguments)
        channel.basic_publish(channel.prepare_message("x", headers={}), name, key)
    with contextlib.suppress(*REFUSED):
        channel.queue_unbind(name, name, key)
    with contextlib.suppress(*REFUSED):
        channel.queue_delete(name)
    with contextlib.suppress(*REFUSED):
        channel.exchange_delete(name)
    channel.close()

    assert sql.execute("select count(*) from pgqrs.queues").fetchone() == before
    assert sql.execute("select count(*) from pgqrs.kombu_exchanges").fetchone() == (3,)


def test_pickle_is_never_loaded_unless_a_consumer_accepts_it(
    broker: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.Producer().publish({"a": 1}, routing_key="tasks", serializer="pickle")
    loaded: list[Any] = []
    monkeypatch.setattr(pickle, "loads", loaded.append)
    monkeypatch.setattr(pickle, "load", loaded.append)

    simple = broker.SimpleQueue("tasks")
    with pytest.raises(ContentDisallowed, match="Refusing to deserialize"):
        simple.get(timeout=10)
    simple.close()

    assert loaded == []


MEGABYTE = 1_048_576


@pytest.mark.parametrize("alias", ["zlib", "gzip", "bzip2", "lzma", "xz"])
@given(body=st.binary(max_size=2_000))
@PURE
def test_what_kombu_compresses_is_expanded(alias: str, body: bytes) -> None:
    packed, content_type = compress(body, alias)

    assert expand(packed, content_type) == expand(packed, alias) == body


@pytest.mark.parametrize(("alias", "pack"), [("zlib", zlib.compress), ("bzip2", bz2.compress), ("lzma", lzma.compress)])
def test_a_compressed_bomb_is_not_expanded(alias: str, pack: Any) -> None:
    bomb = pack(bytes(64 * MEGABYTE))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="expands to more than 1,048,576 bytes"):
            expand(bomb, alias, MEGABYTE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 16 * MEGABYTE


@pytest.mark.parametrize("alias", ["bzip2", "lzma"])
def test_bombs_in_a_row_are_counted_together(alias: str) -> None:
    packed, _ = compress(bytes(MEGABYTE // 2), alias)

    with pytest.raises(DecodeError, match="more than"):
        expand(packed * 5, alias, MEGABYTE)


@PURE
@given(body=st.binary(max_size=200), compression=JSON | st.sampled_from(["zlib", "bzip2", "lzma"]))
def test_what_cannot_be_expanded_is_said(body: bytes, compression: Any) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(expand(body, compression), bytes)


def test_a_bomb_is_rejected_by_its_consumer_and_takes_nobody_with_it(
    broker: Connection, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqrs_kombu.envelope.expand", lambda body, kind, limit: expand(body, kind, MEGABYTE))
    sql.execute("truncate pgqrs.q_tasks")
    broker.Producer().publish("0" * 8 * MEGABYTE, routing_key="tasks", serializer="json", compression="zlib")
    broker.Producer().publish("good", routing_key="tasks", serializer="json", compression="zlib")
    failures: list[Exception] = []
    received: list[Any] = []

    def failed(message: Any, error: Exception) -> None:
        failures.append(error)
        message.reject()

    def receive(body: Any, message: Any) -> None:
        received.append(body)
        message.ack()

    with broker.Consumer([Queue("tasks")], callbacks=[receive], on_decode_error=failed, accept=["json"]):
        deadline = time.monotonic() + 30
        while not (received and failures):
            assert time.monotonic() < deadline
            with contextlib.suppress(TimeoutError):
                broker.drain_events(timeout=1)

    assert received == ["good"]
    assert "expands to more than" in str(failures[0])


@PURE
@given(
    pattern=st.lists(st.sampled_from(["*", "#", "a", "b", ""]), min_size=1, max_size=5).map(".".join),
    key=st.lists(st.sampled_from(["a", "b", "", "c"]), min_size=1, max_size=5).map(".".join),
)
def test_python_and_postgresql_agree_on_topics(pattern: str, key: str) -> None:
    import re

    assert matches(pattern, key) == (re.fullmatch(pattern_of(pattern), f"{key}.") is not None)


def test_no_pattern_stretches_time(broker: Connection) -> None:
    hostile = ".".join(["#", "*"] * 60) + ".z"
    key = ".".join("a" * 120)
    exchange = Exchange("slow", "topic", durable=True)
    queue = Queue("tasks", exchange, routing_key=hostile, durable=True)
    queue(broker.default_channel).declare()
    ephemeral = Queue("listener", exchange, routing_key=hostile, exclusive=True, auto_delete=True)(
        broker.default_channel
    )
    ephemeral.declare()

    began = time.monotonic()
    broker.Producer().publish("x", exchange=exchange, routing_key=key, serializer="json")

    # A regular expression of Python's would take longer than the universe is old.
    assert time.monotonic() - began < 10
    broker.default_channel.exchange_delete("slow")


@PURE
@given(url=PIECES | TEXT)
def test_an_address_of_a_broker_is_understood_or_refused(url: str) -> None:
    class Client:
        hostname = url if "://" in url or "=" in url else f"pgqrs://{url}"
        ssl = None
        connect_timeout = 5
        port = userid = password = virtual_host = None

    with contextlib.suppress(ConfigurationError):
        repr(config_of(Client(), Options()))  # type: ignore[arg-type]


@PURE
@given(url=PIECES | TEXT)
def test_an_address_of_results_is_understood_or_refused(url: str) -> None:
    with contextlib.suppress(ImproperlyConfigured):
        configuration(url, {})
    masked(url)


@pytest.fixture(scope="module")
def app(module_dsn: str) -> Celery:
    return app_at(module_dsn)


#: An exception that a careless reader would make of it.
EXIT = b'{"exc_type": "SystemExit", "exc_module": "builtins", "exc_message": [1]}'
RESULTS = st.tuples(
    st.sampled_from(["SUCCESS", "FAILURE", "PENDING", "REVOKED", "x"]) | st.text("ab'\"%\\;", max_size=20),
    st.binary(max_size=40) | st.sampled_from([b"1", EXIT]),
    st.sampled_from(["application/json", "application/x-python-serialize", "x", ""]),
)


@settings(SERVER, max_examples=40)
@given(row=RESULTS)
@example(row=("FAILURE", EXIT, "application/json"))
def test_a_result_that_somebody_forged_is_an_error_and_runs_nothing(
    row: tuple[str, bytes, str], app: Celery, sql: psycopg.Connection[Any], broker: Connection
) -> None:
    sql.execute("truncate pgqrs.celery_results")
    sql.execute(
        "insert into pgqrs.celery_results (task_id, status, result, content_type) values ('forged', %s, %s, %s)",
        list(row),
    )
    sql.execute(
        "insert into pgqrs.celery_results (task_id, status, result, content_type) "
        "values ('good', 'SUCCESS', '42', 'application/json')"
    )

    with contextlib.suppress(Exception):
        app.AsyncResult("forged").get(timeout=0.01)

    assert app.AsyncResult("good").get(timeout=10) == 42


def test_an_empty_queue_is_just_empty(broker: Connection, sql: psycopg.Connection[Any]) -> None:
    sql.execute("truncate pgqrs.q_tasks")
    simple = broker.SimpleQueue("tasks")
    with pytest.raises(Empty):
        simple.get(timeout=0.1)
    simple.close()
