"""Our spans of Celery's tasks beside those of OpenTelemetry's own instrumentation, whichever connected first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.instrumentation.celery")

from celery import Celery, signals
from celery.app.task import Context
from opentelemetry import context, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pgqrs_kombu import tasks
from pgqrs_otel.tracing import Tracing

from pgqrs_core.plugins import Plugins


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InMemorySpanExporter, TracerProvider]]:
    """What both write to. Nothing of either stays behind."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    plugins = Plugins.core()
    plugins.register(Tracing(provider), "otel")
    monkeypatch.setattr(tasks, "_plugins", lambda: plugins)
    before = {name: list(getattr(signals, name).receivers) for name in ("task_prerun", "task_postrun")}
    for name in before:
        getattr(signals, name).receivers = []
    yield made, provider
    CeleryInstrumentor().uninstrument()
    for name, receivers in before.items():
        getattr(signals, name).receivers = receivers


def run(task: Any, number: int) -> trace.Span:
    """Send the signals of a task that came by pgqrs; return the span that was current while it ran."""
    origin = ["celery", number, 1]
    task.request_stack.push(
        Context(id=f"task {number}", properties={"delivery_info": {tasks.KEY: origin}}, headers={}, delivery_info={})
    )
    try:
        signals.task_prerun.send(sender=task, task_id=f"task {number}", task=task, args=(), kwargs={})
        inside = trace.get_current_span()
        signals.task_postrun.send(
            sender=task, task_id=f"task {number}", task=task, args=(), kwargs={}, retval=None, state="SUCCESS"
        )
    finally:
        task.request_stack.pop()
    return inside


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_no_task_leaves_its_span_to_the_next(exporter: tuple[InMemorySpanExporter, TracerProvider], first: str) -> None:
    finished, provider = exporter
    app = Celery("traced", set_as_current=False)

    @app.task(shared=False)  # type: ignore[untyped-decorator]
    def traced() -> None: ...

    connect = [
        tasks.surround_tasks,
        lambda: CeleryInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True),
    ]
    for step in connect if first == "ours" else reversed(connect):
        step()
    empty = context.get_current()

    def in_a_fresh_thread() -> None:
        for number in range(4):
            run(traced, number)
            after.append(dict(context.get_current()) == dict(empty))

    after: list[bool] = []
    thread = threading.Thread(target=in_a_fresh_thread)
    thread.start()
    thread.join()

    assert after == [True] * 4
    spans = [span for span in finished.get_finished_spans() if span.name == "process celery"]
    assert len(spans) == 4
    assert len({span.context.trace_id for span in spans if span.context}) == 4
