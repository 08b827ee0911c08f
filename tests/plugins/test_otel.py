"""Traces from producers to handlers, whatever the front end; and metrics by OpenTelemetry."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceState
from pgqrs_native import Client
from pgqrs_otel import passing, record_metrics
from pgqrs_otel.tracing import Tracing

from pgqrs_core.errors import QueueNotFound
from pgqrs_core.events import Draft, EnqueueBatch
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from tests.adapters.native_support import Native, Seen

PATIENCE = 30.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """A provider, the plugin that uses it, and what it has collected."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.plugins = Plugins.core()
        self.plugins.register(Tracing(self.provider), "otel")

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.wait(name, 1)
        return span

    def wait(self, name: str, count: int) -> list[ReadableSpan]:
        pause, deadline = threading.Event(), time.monotonic() + PATIENCE
        while len(self.all(name)) < count:
            assert time.monotonic() < deadline, [span.name for span in self.exporter.get_finished_spans()]
            pause.wait(0.01)
        return self.all(name)


def ids(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return (span.parent.trace_id, span.parent.span_id) if span.parent else None


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(params=["sync", "async"])
def native(request: pytest.FixtureRequest, pgqrs_dsn: str) -> Iterator[Native]:
    made = Native(request.param, pgqrs_dsn)
    yield made
    made.close()


@pytest.fixture
def client(native: Native, spans: Spans) -> Any:
    client = native.client(plugins=spans.plugins)
    client.admin.install()
    client.admin.create_queue("jobs", max_attempts=2, backoff_base=0.0)
    return client


# Native


def test_a_handler_runs_in_a_span_whose_parent_is_the_producers(native: Native, client: Any, spans: Spans) -> None:
    worker, seen = native.worker(client, housekeeping=False), Seen()

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        with spans.tracer.start_as_current_span("query"):
            seen.add((message.id, message.headers))

    with spans.tracer.start_as_current_span("request"):
        sent = client.producer.enqueue("jobs", {"n": 1}, headers={"tenant": "a"})
    with native.working(worker):
        [(got, headers)] = seen.wait_for(1)
        process = spans.one("process jobs")

    enqueue = spans.one("enqueue jobs")
    assert parent(enqueue) == ids(spans.one("request"))
    assert parent(process) == ids(enqueue)
    assert parent(spans.one("query")) == ids(process)
    assert (got, headers["tenant"]) == (sent, "a")
    assert headers["traceparent"].split("-")[2] == f"{enqueue.context.span_id:016x}"
    assert (enqueue.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    common = {"messaging.system": "pgqrs", "messaging.destination.name": "jobs", "pgqrs.adapter": "native"}
    assert dict(enqueue.attributes or {}) == {
        **common,
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.message.id": str(sent),
    }
    assert dict(process.attributes or {}) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": str(sent),
        "pgqrs.attempt": 1,
    }
    # A worker's claims are not traced: its handlers are.
    assert spans.all("receive jobs") == []


def test_a_handlers_error_is_recorded_and_each_attempt_has_a_span(native: Native, client: Any, spans: Spans) -> None:
    worker = native.worker(client, housekeeping=False)

    @worker.handler("jobs")
    def handle(message: Any) -> None:
        raise ValueError("no such order")

    client.producer.enqueue("jobs", 1)
    with native.working(worker):
        first, second = spans.wait("process jobs", 2)

    for attempt, span in enumerate((first, second), 1):
        assert span.attributes is not None
        assert span.attributes["pgqrs.attempt"] == attempt
        assert span.attributes["error.type"] == "ValueError"
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no such order")
        assert [event.name for event in span.events] == ["exception"]


def test_a_batch_handlers_span_links_to_every_producer_once(native: Native, client: Any, spans: Spans) -> None:
    worker, seen = native.worker(client, housekeeping=False, prefetch=100), Seen()

    @worker.batch_handler("jobs", count=10)
    def handle(messages: list[Any]) -> None:
        seen.add(len(messages))

    client.producer.batch_enqueue("jobs", [1, 2, 3])
    client.producer.enqueue("jobs", 4)
    with native.working(worker):
        assert sum(seen.wait_for(1)) == 4
        process = spans.one("process jobs")

    batch, single = sorted(spans.all("enqueue jobs"), key=lambda span: span.start_time or 0)
    assert (batch.attributes or {})["messaging.batch.message_count"] == 3
    assert linked(process) == [ids(batch), ids(single)]
    assert process.parent is None
    assert (process.attributes or {})["messaging.batch.message_count"] == 4


def test_what_a_batch_handler_returns_as_failed_is_recorded_for_each_message(
    native: Native, client: Any, spans: Spans
) -> None:
    worker, seen = native.worker(client, housekeeping=False), Seen()

    @worker.batch_handler("jobs", count=10)
    def handle(messages: list[Any]) -> list[Exception | None]:
        seen.add(len(messages))
        return [ValueError("odd") if message.payload % 2 else None for message in messages]

    sent = client.producer.batch_enqueue("jobs", [0, 1, 2, 3])
    with native.working(worker):
        seen.wait_for(1)
        process = spans.wait("process jobs", 1)[0]

    assert (process.status.status_code, process.status.description) == (StatusCode.ERROR, "2 of 4 messages failed")
    assert (process.attributes or {})["error.type"] == "ValueError"
    recorded = [(event.name, (event.attributes or {})["messaging.message.id"]) for event in process.events]
    assert recorded == [("exception", str(sent[1])), ("exception", str(sent[3]))]


def test_what_is_read_without_a_worker_is_a_span_with_links(native: Native, client: Any, spans: Spans) -> None:
    for number in range(3):
        client.producer.enqueue("jobs", number)
    assert client.consumer.read_batch("jobs", count=2)
    assert client.consumer.read("jobs")
    assert client.consumer.read("jobs") is None

    first, second = spans.all("receive jobs")
    sent = list(map(ids, spans.all("enqueue jobs")))

    assert (linked(first), linked(second)) == (sent[:2], sent[2:])
    assert first.kind == SpanKind.CLIENT
    assert (first.attributes or {})["messaging.batch.message_count"] == 2
    assert "messaging.message.id" in (second.attributes or {})
    assert first.end_time is not None
    assert first.start_time is not None
    assert first.end_time > first.start_time


def test_the_block_of_a_lease_is_traced_as_a_handler(native: Native, client: Any, spans: Spans) -> None:
    client.producer.enqueue("jobs", 1)
    with pytest.raises(KeyError), client.consumer.lease("jobs"):
        raise KeyError("x")

    process = spans.one("process jobs")

    assert parent(process) == ids(spans.one("enqueue jobs"))
    assert (process.attributes or {})["error.type"] == "KeyError"


def test_where_a_span_is_current_it_is_the_parent_and_the_producer_a_link(pgqrs_dsn: str, spans: Spans) -> None:
    with Client(pgqrs_dsn, plugins=spans.plugins) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.enqueue("jobs", 1)
        with spans.tracer.start_as_current_span("tick"), client.consumer.lease("jobs") as message:
            current = trace.get_current_span().get_span_context()

    assert message is not None
    assert current.span_id == spans.one("process jobs").context.span_id
    process = spans.one("process jobs")
    assert parent(process) == ids(spans.one("tick"))
    assert linked(process) == [ids(spans.one("enqueue jobs"))]


def test_a_trace_context_that_a_message_brings_is_respected(native: Native, client: Any, spans: Spans) -> None:
    client.producer.enqueue("jobs", 1, headers={"traceparent": PARENT, "tracestate": "a=1"})

    message = client.consumer.read("jobs")

    enqueue = spans.one("enqueue jobs")
    assert message.headers == {"traceparent": PARENT, "tracestate": "a=1"}
    assert linked(enqueue) == [(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)]
    assert linked(spans.one("receive jobs")) == linked(enqueue)


def test_an_enqueue_that_fails_is_an_error_and_names_no_message(native: Native, client: Any, spans: Spans) -> None:
    with pytest.raises(QueueNotFound):
        client.producer.enqueue("nowhere", 1)
    with pytest.raises(Exception, match="headers"):
        client.producer.enqueue("jobs", 1, headers={"n": object()})

    [failed] = spans.all("enqueue jobs")
    assert failed.status.status_code == StatusCode.ERROR
    assert "messaging.message.id" not in (failed.attributes or {})


def test_headers_are_the_producers_own_and_are_not_changed(native: Native, client: Any, spans: Spans) -> None:
    mine = {"tenant": "a"}

    client.producer.batch_enqueue("jobs", [1, 2], headers=mine)

    assert mine == {"tenant": "a"}
    assert all("traceparent" in message.headers for message in client.consumer.read_batch("jobs"))


def test_plugins_that_change_headers_in_place_change_those_of_one_message(pgqrs_dsn: str, spans: Spans) -> None:
    class Numbers:
        @hookimpl
        def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
            for number, draft in enumerate(batch.drafts):
                assert draft.headers is not None
                draft.headers["number"] = number

    spans.plugins.register(Numbers(), "numbers")
    with Client(pgqrs_dsn, plugins=spans.plugins) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.batch_enqueue("jobs", [1, 2, 3])
        assert [message.headers["number"] for message in client.consumer.read_batch("jobs")] == [0, 1, 2]


def test_a_message_in_the_callers_transaction_is_traced_too(pgqrs_dsn: str, spans: Spans) -> None:
    with Client(pgqrs_dsn, plugins=spans.plugins) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        with client.engine.transaction() as connection:
            client.producer.enqueue("jobs", 1, connection=connection)
        message = client.consumer.read("jobs")

    assert message is not None
    assert f"{spans.one('enqueue jobs').context.span_id:016x}" in message.headers["traceparent"]


def test_concurrent_tasks_each_keep_their_own_trace(pgqrs_dsn: str, spans: Spans) -> None:
    import asyncio

    from pgqrs_native import AsyncClient

    async def produce(client: AsyncClient, number: int) -> None:
        with spans.tracer.start_as_current_span(f"request {number}"):
            await client.producer.enqueue("jobs", number)

    async def run() -> dict[int, str]:
        async with AsyncClient(pgqrs_dsn, plugins=spans.plugins) as client:
            await client.admin.install()
            await client.admin.create_queue("jobs")
            await asyncio.gather(*(produce(client, number) for number in range(20)))
            found = await client.consumer.read_batch("jobs", count=20)
            return {message.payload: message.headers["traceparent"].split("-")[1] for message in found}

    traces = asyncio.run(run())

    assert traces == {n: f"{spans.one(f'request {n}').context.trace_id:032x}" for n in range(20)}


def test_headers_written_by_other_means_are_no_trouble(pgqrs_dsn: str, spans: Spans) -> None:
    import psycopg

    with Client(pgqrs_dsn, plugins=spans.plugins) as client, psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.batch_enqueue("jobs", [1, 2, 3])
        for number, headers in enumerate((["no"], {"traceparent": 7}, {"traceparent": "garbage"}), 1):
            connection.execute(
                "update pgqrs.q_jobs set headers = %s where message_id = %s", (json.dumps(headers), number)
            )
        for _ in range(3):
            with client.consumer.lease("jobs") as message:
                assert message is not None

    assert [span.links for span in spans.all("receive jobs")] == [()] * 3
    assert [span.parent for span in spans.all("process jobs")] == [None] * 3


def test_without_a_provider_contexts_are_passed_on_all_the_same(pgqrs_dsn: str, spans: Spans) -> None:
    plugins = Plugins.core()
    plugins.register(Tracing(trace.NoOpTracerProvider()), "otel")
    with Client(pgqrs_dsn, plugins=plugins) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        with spans.tracer.start_as_current_span("request") as request:
            client.producer.enqueue("jobs", 1)
        client.producer.enqueue("jobs", 2)
        with_one, without = client.consumer.read_batch("jobs")

    assert with_one.headers["traceparent"].split("-")[2] == f"{request.get_span_context().span_id:016x}"
    assert without.headers == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": PARENT},
        {"traceparent": PARENT[:-2] + "00", "tenant": "a", "n": [1, {"x": None}]},
        {"traceparent": PARENT[:-2] + "03"},
        {"traceparent": PARENT, "tracestate": "a=1,b=2"},
        {"traceparent": PARENT, "baggage": "user=ada"},
        {"traceparent": PARENT, "tracestate": 7},
        {"traceparent": f" {PARENT}\t"},
        {"traceparent": f"{PARENT}-more"},
        {"traceparent": f"01{PARENT[2:]}-more"},
        {"traceparent": f"ff{PARENT[2:]}"},
        {"traceparent": PARENT.upper()},
        {"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"},
        {"traceparent": f"00-{'1' * 32}-{'0' * 16}-01"},
        {"traceparent": "", "baggage": "user=ada"},
        {"traceparent": None},
        {"traceparent": PARENT, "odd": "\ud800"},
        {"tenant": "a"},
    ],
)
def test_what_is_read_directly_is_what_the_propagator_reads(headers: dict[str, Any]) -> None:
    stored = json.dumps(headers)
    texts = {key: value for key, value in headers.items() if isinstance(value, str)}
    expected = propagate.extract(texts, Context())
    span = trace.get_current_span(expected).get_span_context()

    found = passing.with_parent(stored, Context())

    assert trace.get_current_span(found).get_span_context() == span
    assert baggage.get_all(found) == baggage.get_all(expected)
    assert [link.context for link in passing.links_of([stored, stored, None])] == [span] * span.is_valid


@pytest.mark.parametrize("state", [None, TraceState([("a", "1")])])
@pytest.mark.parametrize("user", [None, "ada"])
@pytest.mark.parametrize("flags", [0, 1])
def test_what_is_written_directly_is_what_the_propagator_writes(
    state: TraceState | None, user: str | None, flags: int
) -> None:
    outer = baggage.set_baggage("user", user, Context()) if user else Context()
    span = trace.NonRecordingSpan(SpanContext(0xAF76, 0xB7AD, False, trace.TraceFlags(flags), state))
    expected: dict[str, str] = {}
    propagate.inject(expected, trace.set_span_in_context(span, outer))
    drafts = [Draft("jobs", b"", "x"), Draft("jobs", b"", "x", {"mine": 1}), Draft("jobs", b"", "x", {"baggage": "b"})]

    passing.inject(drafts, passing.headers_of(drafts), span, outer)

    assert [draft.headers for draft in drafts] == [expected, {"mine": 1, **expected}, {"baggage": "b"}]


def test_another_propagator_is_asked_for_what_it_writes_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(TextMapPropagator):
        fields = {"own"}  # noqa: RUF012

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            carrier["own"] = f"{trace.get_current_span(context).get_span_context().span_id:x}"

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
            span = SpanContext(1, int(carrier.get("own", "0"), 16), True)
            return trace.set_span_in_context(trace.NonRecordingSpan(span), context)

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Own())
    draft = Draft("jobs", b"", "x")
    passing.inject(
        [draft], passing.headers_of([draft]), trace.NonRecordingSpan(SpanContext(1, 0xB7AD, False)), Context()
    )
    stored = json.dumps({**(draft.headers or {}), "traceparent": PARENT})

    assert draft.headers == {"own": "b7ad"}
    assert [link.context.span_id for link in passing.links_of([stored])] == [0xB7AD]
    assert trace.get_current_span(passing.with_parent(stored, Context())).get_span_context().span_id == 0xB7AD


def test_a_span_has_so_many_links_and_no_more() -> None:
    stored = [json.dumps({"traceparent": f"00-{'a' * 32}-{n:016x}-01"}) for n in range(1, 1000)]

    assert len(passing.links_of(stored)) == passing.MOST_LINKS


def test_a_provider_that_is_set_late_is_used_soon(monkeypatch: pytest.MonkeyPatch, spans: Spans) -> None:
    now = [100.0]
    monkeypatch.setattr("pgqrs_otel.tracing.monotonic", lambda: now[0])
    tracing, batch = Tracing(), EnqueueBatch("jobs", "native", [Draft("jobs", b"", "x")])
    assert tracing.pgqrs_around_enqueue(batch) is None

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    now[0] += 0.1
    work = tracing.pgqrs_around_enqueue(batch)
    assert work is not None
    with work:
        pass

    assert f"{spans.one('enqueue jobs').context.span_id:016x}" in (batch.drafts[0].headers or {})["traceparent"]


# Kombu and Celery


@pytest.fixture
def kombu_bench(pgqrs_dsn: str, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("kombu")
    import pgqrs_kombu.plugin

    from tests.adapters.kombu.kombu_support import Bench

    spans.plugins.register(pgqrs_kombu.plugin, "kombu")
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: spans.plugins)
    bench = Bench(pgqrs_dsn)
    yield bench
    bench.close()


def test_messages_of_kombu_carry_their_producers_context(kombu_bench: Any, spans: Spans) -> None:
    import kombu

    from tests.adapters.kombu.kombu_support import Inbox

    connection = kombu_bench.connect()
    inbox = Inbox(connection, kombu.Queue("mail"))
    with spans.tracer.start_as_current_span("request"):
        kombu.Producer(connection.channel()).publish({"n": 1}, routing_key="mail", headers={"mine": "x"})
    [message] = inbox.wait(1)
    message.ack()

    enqueue = spans.one("enqueue mail")
    assert parent(enqueue) == ids(spans.one("request"))
    assert (enqueue.attributes or {})["pgqrs.adapter"] == "kombu"
    assert message.headers["mine"] == "x"
    assert f"{enqueue.context.span_id:016x}" in message.headers["traceparent"]
    assert linked(spans.one("receive mail")) == [ids(enqueue)]


APP = """
import os
from celery import Celery
from kombu import Queue
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class File(SpanExporter):
    def export(self, spans):
        with open(os.environ["TEST_SPANS"], "a") as file:
            for span in spans:
                file.write(span.to_json(indent=None) + "\\n")
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(File()))
trace.set_tracer_provider(provider)
app = Celery("traced", broker=os.environ["TEST_BROKER"])
app.conf.update(task_default_queue="celery", task_queues=[Queue("celery")], task_ignore_result=True,
                broker_connection_retry_on_startup=True)

@app.task(shared=False)
def outer(text):
    with trace.get_tracer("app").start_as_current_span("inside"):
        inner.delay(text)

@app.task(shared=False)
def inner(text):
    raise ValueError(text)
"""
SEND = """
import celery_traced
from opentelemetry import trace
with trace.get_tracer("app").start_as_current_span("request"):
    celery_traced.outer.delay("wrong")
"""


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_celerys_tasks_run_in_spans_wherever_they_run(pgqrs_dsn: str, tmp_path: Path, pool: str) -> None:
    pytest.importorskip("celery")
    import os
    import subprocess

    from tests.adapters.kombu.kombu_support import url_of

    (tmp_path / "celery_traced.py").write_text(APP)
    notes = tmp_path / "spans"
    environment = {
        **{key: text for key, text in os.environ.items() if not key.startswith("OTEL_")},
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "TEST_BROKER": url_of(pgqrs_dsn),
        "TEST_SPANS": str(notes),
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "celery", "-A", "celery_traced", "worker", "-l", "INFO", "-c", "1", "-P", pool]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        subprocess.run([sys.executable, "-c", SEND], env=environment, check=True, timeout=2 * PATIENCE)
        pause, deadline = threading.Event(), time.monotonic() + 2 * PATIENCE
        found: list[dict[str, Any]] = []
        while sum(span["name"] == "process celery" for span in found) < 2:
            assert time.monotonic() < deadline, (found, (tmp_path / "log").read_text())
            pause.wait(0.05)
            found = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    finally:
        worker.terminate()
        worker.wait(PATIENCE)

    by_id = {span["context"]["span_id"]: span for span in found}
    [failed] = [span for span in found if span["name"] == "process celery" and span["status"]["status_code"] == "ERROR"]
    names, span = [], failed
    while span is not None:
        names.append(span["name"])
        span = by_id.get(span["parent_id"])  # type: ignore[arg-type]
    # From the failing task back to the first request, through two processes or more.
    assert names == ["process celery", "enqueue celery", "inside", "process celery", "enqueue celery", "request"]
    assert len({span["context"]["trace_id"] for span in found if span["name"] != "receive celery"}) == 1
    assert failed["attributes"]["pgqrs.adapter"] == "celery"
    assert failed["attributes"]["error.type"] == "ValueError"
    assert failed["attributes"]["pgqrs.attempt"] == 1
    assert int(failed["attributes"]["messaging.message.id"]) > 0


# Metrics


def test_metrics_are_recorded_by_the_conventions(pgqrs_dsn: str) -> None:
    reader, plugins = InMemoryMetricReader(), Plugins.core()
    with Client(pgqrs_dsn, plugins=plugins) as client:
        record_metrics(engine=client.engine, meter_provider=MeterProvider([reader]))
        client.admin.install()
        client.admin.create_queue("jobs", max_attempts=2)
        client.producer.batch_enqueue("jobs", [1, 2, 3])
        done, failed = client.consumer.read_batch("jobs", count=2)
        client.consumer.dequeue(done)
        client.consumer.nack(failed, bury=True, error="no")
        found = points(reader)

    def total(name: str, **labels: str) -> Any:
        wanted = {key.replace("__", "."): text for key, text in labels.items()}
        return sum(
            getattr(point, "count", None) or getattr(point, "value", 0)
            for point in found[name]
            if wanted.items() <= dict(point.attributes).items()
        )

    queue = {"messaging__destination__name": "jobs"}
    assert total("messaging.client.sent.messages", **queue) == 3
    assert total("messaging.client.consumed.messages", **queue) == 2
    assert total("pgqrs.messages.settled", pgqrs__outcome="acked", pgqrs__adapter="native") == 1
    assert total("pgqrs.messages.settled", pgqrs__outcome="dead") == 1
    assert total("messaging.process.duration") == 2
    assert total("messaging.client.operation.duration", messaging__operation__type="send") == 1
    assert total("pgqrs.claim.longest_wait") == 1
    assert total("pgqrs.queue.messages", pgqrs__state="ready", **queue) == 1
    assert total("pgqrs.queue.messages", pgqrs__state="dead", **queue) == 1
    assert total("pgqrs.connections") >= 1
    assert {"pgqrs.wakeups.notifications", "pgqrs.queue.oldest_ready"} <= found.keys()


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
