"""Headers come back as they were written, or are refused, by every adapter; what cannot be read is a dead letter."""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import dramatiq
import psycopg
import pytest
from celery import Celery, states
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kombu import Connection, Consumer, Exchange, Queue
from pgqrs_dramatiq import PgqrsBroker
from pgqrs_kombu import batch
from pgqrs_native import Client

from pgqrs_core.config import Config
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.headers import MAX_HEADER_DEPTH, decode_headers, encode_headers, encode_reason
from pgqrs_core.testing import eventually

from .test_adapter_roles import url_of
from .test_hostile_envelopes import REFUSED
from .test_hostile_input import JSON, PURE, SERVER, TEXT, WRONG

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]

#: What Kombu's JSON has forms for.
TYPED = st.sampled_from(
    [
        datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        date(2030, 1, 2),
        uuid.UUID(int=7),
        Decimal("1.10"),
        b"\xff\x00",
        b"text",
    ]
)
#: A file whose name is no text, as `os.listdir` returns it.
FILE = "caf\udce9"


def read_back(value: Any) -> Any:
    """A value as JSON gives it back: with lists for tuples, and halves of a surrogate pair joined."""
    if isinstance(value, dict):
        return {read_back(key): read_back(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [read_back(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return value


def is_finite(value: Any) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return all(map(is_finite, inner)) and not (isinstance(value, float) and not math.isfinite(value))


HEADERS = st.dictionaries(TEXT.filter(lambda key: key not in ("_kombu", "compression")), JSON, max_size=4)


@pytest.fixture(scope="module")
def client(module_dsn: str) -> Iterator[Client]:
    with Client(Config.load(url=module_dsn, env={})) as made:
        made.admin.install()
        made.admin.create_queue("jobs")
        yield made


@pytest.fixture(scope="module")
def broker(client: Client, module_dsn: str) -> Iterator[Connection]:
    with Connection(url_of(module_dsn), transport_options={"create_schema": True}) as connection:
        yield connection


@pytest.fixture(scope="module")
def app(client: Client, module_dsn: str) -> Iterator[Celery]:
    url = url_of(module_dsn)
    made = Celery("t", broker=url, backend=url, set_as_current=False)
    made.conf.broker_transport_options = {"create_schema": True}
    yield made
    made.pool.force_close_all()
    made.close()


@pytest.fixture
def sql(module_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(module_dsn, autocommit=True) as connection:
        yield connection


@PURE
@given(headers=HEADERS)
@example(headers={"name": FILE})
@example(headers={"n": 10**4000})
@example(headers={"a": {"b": [[{}]]}})
def test_what_is_written_is_read(headers: dict[str, Any]) -> None:
    if is_finite(headers):
        assert decode_headers(encode_headers(headers)) == read_back(headers)
    else:
        with pytest.raises(InvalidArgument):
            encode_headers(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {1: "a", "1": "b"},
        {"deep": [{"deeper": {None: 1, "null": 2}}]},
        {"key": {(1, 2): 3}},
        {"n": math.nan},
        {"n": [math.inf]},
        {"n": 10**5000},
        {"b": b"bytes"},
        {"when": datetime.now(timezone.utc)},
    ],
)
def test_what_json_would_change_is_refused(headers: dict[Any, Any]) -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        encode_headers(headers)


def test_headers_may_be_nested_to_a_limit() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {} if depth == 1 else {"a": nested(depth - 1)}

    assert decode_headers(encode_headers(nested(MAX_HEADER_DEPTH))) == nested(MAX_HEADER_DEPTH)
    with pytest.raises(InvalidArgument, match="nested"):
        encode_headers(nested(MAX_HEADER_DEPTH + 1))


@PURE
@given(error=st.dictionaries(TEXT, JSON | WRONG, max_size=3))
def test_any_reason_can_be_stored(error: dict[str, Any]) -> None:
    text = encode_reason(error)
    assert text is not None
    assert "\\u0000" not in text
    assert isinstance(json.loads(text), dict)


@SERVER
@given(headers=HEADERS.filter(is_finite))
@example(headers={"name": FILE})
def test_the_native_client_reads_what_it_wrote(headers: dict[str, Any], client: Client) -> None:
    client.producer.enqueue("jobs", FILE, headers=headers)
    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.dequeue(message)
    assert (message.payload, message.headers) == (FILE, read_back(headers))


@SERVER
@given(headers=st.dictionaries(TEXT.filter(lambda key: key not in ("_kombu", "compression")), JSON | TYPED, max_size=4))
@example(headers={"name": FILE})
@example(headers={"name": FILE, "when": datetime(2030, 1, 2, tzinfo=timezone.utc)})
@example(headers={"mark": {"__type__": "nonsense", "__value__": 1}})
@pytest.mark.parametrize("ephemeral", [False, True])
def test_kombu_reads_what_it_wrote(headers: dict[str, Any], ephemeral: bool, broker: Connection) -> None:
    channel = broker.default_channel
    queue = Queue(f"q{ephemeral}", Exchange(f"q{ephemeral}"), "k", auto_delete=ephemeral)(channel)
    queue.declare()
    with contextlib.ExitStack() as stack:
        if not is_finite(headers):
            stack.enter_context(pytest.raises(REFUSED))
        broker.Producer(channel).publish(
            "x", exchange=queue.exchange, routing_key="k", headers=dict(headers), correlation_id=FILE
        )
    message = queue.get()
    if is_finite(headers):
        assert message is not None
        message.ack()
        assert message.headers == read_back(headers)
        assert message.properties["correlation_id"] == FILE
    else:
        assert message is None


def test_a_batch_keeps_the_headers_of_each(broker: Connection) -> None:
    queue = Queue("batch")(broker.default_channel)
    queue.declare()
    producer = broker.Producer()
    with batch():
        for name in (FILE, "good"):
            producer.publish("x", routing_key="batch", headers={"name": name})
    assert [queue.get(no_ack=True).headers["name"] for _ in range(2)] == [FILE, "good"]


UNREADABLE = {
    "no object": '["task"]',
    "too many digits": '{"n": ' + "9" * 5000 + "}",
    "an unknown mark": '{"_kombu": {"typed": true}, "x": {"__type__": "nonsense", "__value__": 1}}',
}


@pytest.mark.parametrize("headers", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("no_ack", [False, True])
@pytest.mark.parametrize("how", ["get", "consume"])
def test_what_kombu_cannot_read_is_a_dead_letter_and_the_next_one_is_delivered(
    headers: str,
    how: str,
    no_ack: bool,
    broker: Connection,
    sql: psycopg.Connection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = broker.channel()
    queue = Queue("odd")(channel)
    queue.declare()
    sql.execute("truncate pgqrs.q_odd")
    sql.execute(
        "insert into pgqrs.q_odd (lane, content_type, headers, body) values (0, 'text/plain', %s, 'bad')", [headers]
    )
    broker.Producer().publish("good", routing_key="odd")
    seen: list[Any] = []
    if how == "get":
        seen.append(queue.get(no_ack=no_ack))
    else:
        with Consumer(channel, [queue], on_message=seen.append, no_ack=no_ack, accept=None):
            while not seen:
                broker.drain_events(timeout=20)

    assert [message.payload for message in seen] == ["good"]
    dead = (
        "select last_error ->> 'type', last_error ->> 'message' like '%%headers%%' from pgqrs.q_odd where lane = -100"
    )
    eventually(lambda: sql.execute(dead).fetchall() == [("DecodeError", True)])
    eventually(lambda: "headers" in caplog.text)
    channel.close()


@settings(SERVER, max_examples=20)
@given(text=TEXT)
@example(text=FILE)
def test_celery_delivers_whatever_a_task_is_told(text: str, app: Celery) -> None:
    with app.connection() as connection:
        app.signature("t", args=(text,), shadow=text).apply_async(headers={"name": text}, stamped_headers=["s"], s=text)
        message = Queue("celery")(connection.default_channel).get(no_ack=True)
        assert message is not None
        assert message.headers["task"] == "t"
        assert (message.headers["name"], message.headers["stamps"]) == (read_back(text), {"s": read_back(text)})
        assert message.payload[0] == [read_back(text)]

    app.backend.store_result("id", text, states.SUCCESS)
    assert app.AsyncResult("id").get(timeout=20) == read_back(text)
    app.backend.forget("id")
    app.backend.store_result("id", ValueError(text), states.FAILURE, traceback=text)
    assert app.AsyncResult("id").get(timeout=20, propagate=False).args == (read_back(text),)
    app.backend.forget("id")


@settings(SERVER, max_examples=20)
@given(text=TEXT)
@example(text=FILE)
def test_dramatiq_delivers_whatever_an_actor_is_told(text: str, module_dsn: str, client: Client) -> None:
    broker = PgqrsBroker(module_dsn)
    broker.declare_queue("default")
    broker.enqueue(dramatiq.Message("default", text, (text,), {text: text}, {"name": text}, message_id=text))
    consumer = broker.consume("default", timeout=1000)
    message = eventually(lambda: next(consumer))
    consumer.ack(message)
    consumer.close()
    broker.close()
    assert (message.actor_name, message.message_id, message.args[0]) == (read_back(text),) * 3
    assert (message.kwargs, message.options) == ({read_back(text): read_back(text)}, {"name": read_back(text)})


def test_a_replayed_message_has_its_headers(client: Client) -> None:
    client.admin.create_queue("again")
    client.producer.batch_enqueue("again", [1, 2], headers={"name": FILE})
    dying, kept = client.consumer.read_batch("again", count=2)
    client.consumer.nack(dying, error=ValueError(FILE), bury=True)
    client.consumer.archive(kept)
    assert [dead.headers for dead in client.admin.list_dead("again")] == [{"name": FILE}]
    assert "caf" in client.admin.list_dead("again")[0].error["message"]
    client.admin.replay_dead("again")
    client.admin.replay_archive("again", [kept.id])
    replayed = client.consumer.read_batch("again", count=9)
    assert [message.headers for message in replayed] == [{"name": FILE}] * 2
