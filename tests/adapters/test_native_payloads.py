"""Typed payloads: what goes in comes out, what does not fit names its field, what is broken spares the others."""

from __future__ import annotations

import enum
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from typing_extensions import TypedDict

from pgqrs_core.errors import DecodeError, DecoderMissing, EncodeError, InvalidArgument, PayloadMismatch, PluginError
from pgqrs_core.events import ConsumeBatch, Consumed, EnqueueBatch, Enqueued
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually

from .native_support import Native, Seen


class Urgency(enum.Enum):
    LOW = "low"
    HIGH = "high"


@dataclass
class Mail:
    to: str
    copies: int = 1
    tags: list[str] = field(default_factory=list)


class Order(msgspec.Struct):
    number: int
    items: list[Mail]
    urgency: Urgency = Urgency.LOW


class Note(TypedDict):
    text: str
    stars: int


@dataclass
class Rich:
    key: uuid.UUID
    price: Decimal
    at: datetime
    attachment: bytes


class Renamed(msgspec.Struct):
    __message_type__ = "mail.v2"
    to: str


MAIL = Mail("a@example.org", 2, ["x", "y"])
RICH = Rich(uuid.UUID(int=7), Decimal("1.10"), datetime(2026, 1, 2, tzinfo=timezone.utc), b"\0\xff")


@pytest.mark.parametrize(
    ("payload", "type_", "message_type"),
    [
        (MAIL, Mail, "Mail"),
        (Order(7, [MAIL], Urgency.HIGH), Order, "Order"),
        (RICH, Rich, "Rich"),
        (Renamed("b"), Renamed, "mail.v2"),
        ({"text": "hi", "stars": 5}, Note, None),
        ([1, 2], list[int], None),
        ({"a": [1, {"b": None}]}, dict, None),
        (b"\0\1\xff", bytes, None),
        ("text", str, None),
        (7, int, None),
        (None, None, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_payload_comes_back_as_the_type_that_is_asked_for(
    client: Any, jobs: str, payload: object, type_: Any, message_type: str | None
) -> None:
    client.producer.enqueue(jobs, payload)

    message = client.consumer.read(jobs, type_)

    assert message.payload == payload
    assert type(message.payload) is type(payload)
    assert message.message_type == message_type
    assert message.headers == ({"message_type": message_type} if message_type else {})


def test_read_without_a_type_gives_plain_values(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, MAIL)

    assert client.consumer.read(jobs).payload == {"to": "a@example.org", "copies": 2, "tags": ["x", "y"]}


def test_read_batch_takes_a_type(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [Mail("a"), Mail("b")])

    assert [message.payload for message in client.consumer.read_batch(jobs, Mail)] == [Mail("a"), Mail("b")]


def test_a_lease_takes_a_type(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, MAIL)

    with client.consumer.lease(jobs, Mail) as message:
        assert message.payload == MAIL


def test_the_senders_own_message_type_wins(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, MAIL, headers={"message_type": "post", "k": 1})

    assert client.consumer.read(jobs).headers == {"message_type": "post", "k": 1}


def test_payloads_of_several_types_in_one_batch_keep_their_names(client: Any, jobs: str) -> None:
    client.producer.batch_enqueue(jobs, [MAIL, Renamed("b"), {}], headers={"k": 1})

    found = client.consumer.read_batch(jobs)

    assert [message.message_type for message in found] == ["Mail", "mail.v2", None]
    assert all(message.headers["k"] == 1 for message in found)


def test_the_callers_headers_are_not_changed(client: Any, jobs: str) -> None:
    headers = {"k": 1}

    client.producer.enqueue(jobs, MAIL, headers=headers)

    assert headers == {"k": 1}


@pytest.mark.parametrize(
    "payload",
    [
        {"inf": [math.inf, -math.inf]},
        {"nul": "a\0b", "\0": 1},
        {"surrogate": "\ud800", "pair": "\U0001f4ec"},
        2**200,
        "",
        {},
        "\x7f\u2028",
    ],
    ids=ascii,
)
def test_values_that_databases_and_parsers_stumble_over_come_back_intact(client: Any, jobs: str, payload: Any) -> None:
    client.producer.enqueue(jobs, payload)

    assert client.consumer.read(jobs).payload == payload


def test_nan_comes_back_as_nan(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, {"x": math.nan, "y": None})

    payload = client.consumer.read(jobs).payload

    assert math.isnan(payload["x"])
    assert payload["y"] is None


def test_headers_with_odd_text_come_back_intact(client: Any, jobs: str) -> None:
    headers = {"nul": "a\0b", "surrogate": "\ud800", "emoji": "📬", "nested": {"a": [1, None, True]}}

    client.producer.enqueue(jobs, 1, headers=headers)

    assert client.consumer.read(jobs).headers == headers


class Circle:
    """Nothing has a form for this."""


def nested() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize("payload", [Circle(), {"x": Circle()}, nested()], ids=["class", "within", "cycle"])
def test_what_cannot_be_serialised_is_refused_and_its_batch_is_not_stored(client: Any, jobs: str, payload: Any) -> None:
    with pytest.raises(EncodeError):
        client.producer.batch_enqueue(jobs, [1, payload, 2])

    assert client.admin.peek(jobs) == []


def test_an_unknown_content_type_is_refused_with_the_known_ones(client: Any, jobs: str) -> None:
    with pytest.raises(EncodeError, match="known are: application/json, application/octet-stream"):
        client.producer.enqueue(jobs, 1, content_type="text/klingon")


def test_the_sender_may_choose_the_content_type(client: Any, jobs: str) -> None:
    with pytest.raises(EncodeError, match="not bytes"):
        client.producer.enqueue(jobs, {"a": 1}, content_type="application/octet-stream")
    client.producer.enqueue(jobs, b"raw", content_type="application/octet-stream")

    assert client.consumer.read(jobs).payload == b"raw"


def test_a_type_that_nothing_can_be_decoded_as_is_refused_before_anything_is_claimed(client: Any, jobs: str) -> None:
    client.producer.enqueue(jobs, 1)

    with pytest.raises(InvalidArgument, match="payload type"):
        client.consumer.read(jobs, Circle)

    assert client.admin.peek(jobs)[0].attempt == 0


# What does not fit, or cannot be decoded

MISFITS: list[tuple[Any, str]] = [
    ({"to": 5}, "to"),
    ({}, "to"),
    ({"to": "x", "tags": ["a", 7]}, "tags[1]"),
    ([1], "$"),
]


@pytest.mark.parametrize(("payload", "wrong"), MISFITS, ids=str)
def test_a_payload_that_does_not_fit_is_buried_with_the_field_and_the_rest_is_delivered(
    client: Any, jobs: str, payload: Any, wrong: str
) -> None:
    ids = client.producer.batch_enqueue(jobs, [Mail("a"), payload, Mail("b")])

    found = client.consumer.read_batch(jobs, Mail)

    assert [message.payload.to for message in found] == ["a", "b"]
    dead = client.admin.show_dead(jobs, ids[1])
    assert (dead.error["type"], dead.error["field"]) == ("PayloadMismatch", wrong)
    assert wrong in dead.error["message"]
    assert dead.body == msgspec.json.encode(payload)


@pytest.mark.parametrize(("payload", "wrong"), MISFITS, ids=str)
def test_a_payload_that_does_not_fit_is_returned_when_asked(client: Any, jobs: str, payload: Any, wrong: str) -> None:
    client.producer.batch_enqueue(jobs, [Mail("a"), payload])

    good, bad = client.consumer.read_batch(jobs, Mail, mismatch="return")

    assert (good.payload, good.error) == (Mail("a"), None)
    with pytest.raises(PayloadMismatch) as caught:
        _ = bad.payload
    assert bad.error is caught.value
    assert (caught.value.type_name, caught.value.field) == ("Mail", wrong)
    assert bad.body == msgspec.json.encode(payload)
    client.consumer.nack(bad, delay=0)
    assert client.consumer.read(jobs).payload == payload


def insert(dsn: str, body: bytes, content_type: str = "application/json", headers: str | None = None) -> int:
    """Enqueue as a foreign producer would, by plain SQL."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "insert into pgqrs.q_jobs (lane, content_type, headers, body) values (0, %s, %s::json, %s) "
            "returning message_id",
            [content_type, headers, body],
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("body", [b"\xff\xfe{", b"{", b"", b"nul", b"[" * 100_000], ids=lambda body: repr(body[:8]))
def test_a_body_that_cannot_be_decoded_is_dead_with_bytes_and_reason_and_the_rest_is_delivered(
    client: Any, jobs: str, pgqrs_dsn: str, body: bytes
) -> None:
    client.producer.enqueue(jobs, "before")
    broken = insert(pgqrs_dsn, body)
    client.producer.enqueue(jobs, "after")

    found = client.consumer.read_batch(jobs)

    assert [message.payload for message in found] == ["before", "after"]
    dead = client.admin.show_dead(jobs, broken)
    assert (dead.body, dead.error["type"], dead.error["content_type"]) == (body, "DecodeError", "application/json")
    assert dead.error["reason"]


def test_a_body_of_an_unknown_content_type_is_left_to_a_process_that_reads_it(
    client: Any, jobs: str, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    insert(pgqrs_dsn, b"nuqneH", "text/klingon")
    client.producer.enqueue(jobs, "known")

    found = client.consumer.read_batch(jobs)

    assert [message.payload for message in found] == ["known"]
    with psycopg.connect(pgqrs_dsn) as connection:
        columns = "attempt, lane, last_error->>'message', due_at > now()"
        left = connection.execute(f"select {columns} from pgqrs.q_jobs where content_type = 'text/klingon'").fetchone()
    assert left is not None
    assert (*left[:2], left[3]) == (0, -1, True)
    assert "no serializer is loaded" in left[2]
    assert [line for line in caplog.messages if "left to a process that can read them" in line]


def test_a_body_of_an_unknown_content_type_is_returned_when_asked(client: Any, jobs: str, pgqrs_dsn: str) -> None:
    insert(pgqrs_dsn, b"nuqneH", "text/klingon")

    message = client.consumer.read(jobs, mismatch="return")

    assert isinstance(message.error, DecoderMissing)


@pytest.mark.parametrize("stack", ['[{"codec": "brotli"}]', '[{"codec": "aes-256-gcm", "key": "k9"}]'])
def test_what_needs_a_codec_or_key_of_others_is_left_to_them_and_the_rest_is_read_at_once(
    client: Any, jobs: str, pgqrs_dsn: str, stack: str
) -> None:
    client.producer.batch_enqueue(jobs, range(40))
    with psycopg.connect(pgqrs_dsn) as connection:
        headers = f'{{"pgqrs_encoding": {stack}}}'
        connection.execute("update pgqrs.q_jobs set headers = %s where message_id %% 4 = 1", [headers])
        connection.execute("update pgqrs.q_jobs set headers = %s where message_id < 15", [headers])

    found = client.consumer.read_batch(jobs, count=10)

    assert [message.payload for message in found] == [14, 15, 17, 18, 19, 21, 22, 23, 25, 26]
    with psycopg.connect(pgqrs_dsn) as connection:
        lanes = "select distinct lane, attempt from pgqrs.q_jobs where lane <= -1"
        assert connection.execute(lanes).fetchall() == [(-1, 0)]


def test_a_body_that_cannot_be_decoded_is_returned_when_asked(client: Any, jobs: str, pgqrs_dsn: str) -> None:
    insert(pgqrs_dsn, b"{")

    message = client.consumer.read(jobs, mismatch="return")

    assert isinstance(message.error, DecodeError)
    assert message.body == b"{"
    client.consumer.dequeue(message)


def test_a_reader_finds_the_good_message_behind_a_batch_of_broken_ones(client: Any, jobs: str, pgqrs_dsn: str) -> None:
    for _ in range(5):
        insert(pgqrs_dsn, b"{")
    client.producer.enqueue(jobs, "good")

    assert client.consumer.read_batch(jobs, count=2)[0].payload == "good"
    assert client.admin.queue_metrics(jobs).dead == 5


def test_a_replayed_misfit_can_be_read_as_what_it_is(client: Any, jobs: str) -> None:
    number = client.producer.enqueue(jobs, {"text": "hi", "stars": 5})
    assert client.consumer.read(jobs, Mail) is None

    client.admin.replay_dead(jobs, [number])

    assert client.consumer.read(jobs, Note).payload == {"text": "hi", "stars": 5}


# Errors as dead letters keep them


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ValueError("a\0b"), "a\ufffdb"),
        (lambda: ValueError("\ud800"), "?"),
        (Speechless, "<Speechless whose text cannot be had>"),
        (lambda: ValueError("x" * 10**6), "x" * 2_000),
        (lambda: "\ud800 as text", "? as text"),
    ],
    ids=["nul", "surrogate", "speechless", "long", "text"],
)
def test_any_error_can_be_kept(client: Any, jobs: str, make: Callable[[], Any], message: str) -> None:
    number = client.producer.enqueue(jobs, 1)

    client.consumer.nack(client.consumer.read(jobs), error=make(), bury=True)

    assert client.admin.show_dead(jobs, number).error["message"] == message


# Plugins around the client


def with_plugin(native: Native, plugin: object) -> Any:
    """Return a client on a queue ``jobs`` that uses one plugin."""
    plugins = Plugins.core()
    plugins.register(plugin, "mine")
    client = native.client(plugins=plugins)
    client.admin.install()
    client.admin.create_queue("jobs")
    return client


class Numbering:
    """Gives each message a header of its own."""

    @hookimpl
    def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
        for number, draft in enumerate(batch.drafts):
            draft.headers = draft.headers or {}
            draft.headers["number"] = number


def test_headers_that_a_plugin_changes_are_each_messages_own_and_not_the_callers(native: Native) -> None:
    client = with_plugin(native, Numbering())
    headers = {"k": 1}

    client.producer.batch_enqueue("jobs", [1, 2], headers=headers)
    client.producer.batch_enqueue("jobs", [Mail("a"), Mail("b")])

    found = client.consumer.read_batch("jobs")
    assert [message.headers["number"] for message in found] == [0, 1, 0, 1]
    assert headers == {"k": 1}


class Shouting:
    """Writes and reads in capitals."""

    content_type = "text/shout"

    def handles(self, payload: Any) -> bool:
        return isinstance(payload, str)

    def encode(self, payload: Any) -> bytes:
        return str(payload).upper().encode()

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        return body.decode()

    @hookimpl
    def pgqrs_serializers(self) -> list[Any]:
        return [self]


def test_the_serializer_of_a_plugin_is_used(native: Native) -> None:
    client = with_plugin(native, Shouting())

    client.producer.batch_enqueue("jobs", ["hello", 5])

    found = client.consumer.read_batch("jobs")
    assert [(message.payload, message.content_type) for message in found] == [
        ("HELLO", "text/shout"),
        (5, "application/json"),
    ]


class Watching:
    """Notes what became of messages."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.columns: list[Any] = []
        self.details: list[Any] = []

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        self.seen.append(("enqueued", event.queue, event.adapter, event.count))

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        self.seen += [(one.kind, one.attempt, one.error) for one in event.outcomes]
        self.columns += zip(event.kinds, event.seconds_in_handler)
        self.details += [(one.kind, one.seconds_in_handler) for one in event.outcomes]


def test_observers_see_what_was_stored_and_what_became_of_it(native: Native) -> None:
    watching = Watching()
    client = with_plugin(native, watching)
    client.producer.batch_enqueue("jobs", range(5))
    messages = client.consumer.read_batch("jobs")

    client.consumer.dequeue(messages[0])
    client.consumer.dequeue_batch([messages[0]])
    client.consumer.archive(messages[1])
    client.consumer.release(messages[2])
    client.consumer.nack(messages[3], delay=60, error=ValueError("two\nlines"))
    client.consumer.nack(messages[4], bury=True, error="no")

    assert watching.seen == [
        ("enqueued", "jobs", "native", 5),
        ("acked", 1, None),
        ("lost", 1, None),
        ("archived", 1, None),
        ("released", 1, None),
        ("nacked", 1, "two"),
        ("dead", 1, "no"),
    ]
    assert watching.columns == watching.details
    assert [kind for kind, seconds in watching.columns if seconds is None] == ["released"]


def test_observers_see_what_a_read_dead_lettered(native: Native) -> None:
    watching = Watching()
    client = with_plugin(native, watching)
    client.producer.enqueue("jobs", "no number")
    client.producer.enqueue("jobs", 2)

    (left,) = client.consumer.read_batch("jobs", int)

    assert left.payload == 2
    (outcome,) = watching.seen[2:]
    assert outcome[:2] == ("dead", 1)
    assert "int" in outcome[2]


class Faulty:
    """A serializer that finds itself broken at some messages."""

    content_type = "application/x-faulty"

    @hookimpl
    def pgqrs_serializers(self) -> list[Any]:
        return [self]

    def handles(self, payload: Any) -> bool:
        return isinstance(payload, str)

    def encode(self, payload: str) -> bytes:
        return payload.encode()

    def decode(self, body: bytes, type_: Any = Any) -> str:
        if body == b"broken":
            raise PluginError("mine", "no key")
        return body.decode()


def test_what_a_broken_serializer_cannot_decode_goes_back_and_the_reader_is_told(native: Native) -> None:
    client = with_plugin(native, Faulty())
    client.producer.batch_enqueue("jobs", ["fine", "broken"])

    with pytest.raises(PluginError, match="no key"):
        client.consumer.read_batch("jobs")

    assert client.admin.queue_metrics("jobs").in_flight == 0


def test_a_worker_goes_on_when_a_serializer_is_broken(native: Native) -> None:
    client = with_plugin(native, Faulty())
    worker, seen = native.worker(client), Seen()
    worker.handler("jobs")(lambda message: seen.add(message.payload))
    client.producer.batch_enqueue("jobs", ["broken", "fine"], delay=0)

    with native.working(worker):
        seen.wait_for(1)
        eventually(lambda: client.admin.queue_metrics("jobs").delayed == 1)
        client.producer.enqueue("jobs", "next")
        seen.wait_for(2)

    assert seen.items == ["fine", "next"]
    assert client.admin.queue_metrics("jobs").in_flight == 0


class Unprepared:
    """Cannot prepare what was claimed."""

    @hookimpl
    def pgqrs_before_consume(self, batch: ConsumeBatch) -> None:
        raise OSError("no key")


def test_what_a_plugin_cannot_prepare_goes_back_and_the_reader_is_told_by_whom(native: Native) -> None:
    client = with_plugin(native, Unprepared())
    client.producer.enqueue("jobs", 1)

    with pytest.raises(PluginError, match=r"'mine'.*no key"):
        client.consumer.read("jobs")

    assert client.admin.queue_metrics("jobs").delayed == 1
