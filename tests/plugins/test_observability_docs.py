"""docs/metrics.md and docs/tracing.md: their examples run, and they name every metric, label and attribute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

import prometheus_client
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pgqrs_native import Client
from pgqrs_otel import conventions
from pgqrs_otel.metering import Metering
from pgqrs_prometheus.queues import QueueCollector
from pgqrs_prometheus.recorder import Recorder

from pgqrs_core.plugins import Plugins

DOCS = Path(__file__).parents[2] / "docs"
PATIENCE = 60.0


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def names_in_tables(page: str, prefixes: tuple[str, ...]) -> set[str]:
    rows = re.findall(r"^\| `([\w.]+)` \|", (DOCS / page).read_text(encoding="utf-8"), re.M)
    return {name for name in rows if name.startswith(prefixes)}


def test_every_metric_and_its_labels_are_in_the_table(pgqrs_dsn: str) -> None:
    registry = prometheus_client.CollectorRegistry()
    with Client(pgqrs_dsn, plugins=Plugins.core()) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        recorder = Recorder(registry)
        registry.register(QueueCollector(client.engine))
        client.engine.plugins.register(recorder, "prometheus")
        client.producer.enqueue("jobs", 1)
        message = client.consumer.read("jobs")
        assert message is not None
        client.consumer.dequeue(message)
        families = list(registry.collect())

    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    shown: set[str] = set()
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown.add(name)
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert set(filter(None, row.split("|")[2].strip().split(", "))) == labels, row
    assert shown == names_in_tables("metrics.md", ("pgqrs_",))


def test_every_metric_and_attribute_of_opentelemetry_is_on_the_page(pgqrs_dsn: str) -> None:
    reader = InMemoryMetricReader()
    plugins = Plugins.core()
    with Client(pgqrs_dsn, plugins=plugins) as client:
        plugins.register(Metering(MeterProvider([reader]), client.engine), "otel-metrics")
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.enqueue("jobs", 1)
        message = client.consumer.read("jobs")
        assert message is not None
        client.consumer.dequeue(message)
        data = reader.get_metrics_data()

    assert data is not None
    recorded = {
        metric.name
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert recorded == names_in_tables("tracing.md", ("pgqrs.", "messaging."))
    page = (DOCS / "tracing.md").read_text(encoding="utf-8")
    for name in conventions.__all__:
        if name.isupper():
            assert f"`{getattr(conventions, name)}`" in page


def test_the_examples_of_metrics_run(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = prometheus_client.CollectorRegistry()
    started: list[int] = []
    monkeypatch.setattr(prometheus_client, "start_http_server", started.append)
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    with Client(pgqrs_dsn, plugins=Plugins.core()) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        for example in blocks("metrics.md", "python"):
            exec(example, {"client": client})
        text = prometheus_client.generate_latest(registry).decode()

    assert started == [9719]
    assert 'pgqrs_queue_messages{queue="jobs",state="ready"} 0.0' in text


def test_the_alerts_name_metrics_that_exist() -> None:
    known = names_in_tables("metrics.md", ("pgqrs_",))
    [alerts] = map(yaml.safe_load, blocks("metrics.md", "yaml"))

    for alert in alerts:
        assert set(re.findall(r"pgqrs_\w+", alert["expr"])) <= known


def test_the_commands_of_metrics_exist() -> None:
    from pgqrs_native.command.app import build

    group = build().commands["metrics"]  # type: ignore[attr-defined]

    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    for name, command in group.commands.items():
        assert f"`pgqrs metrics {name}" in page or f"\npgqrs metrics {name}" in page
        for parameter in command.params:
            # The global options are those of every command, and no argument of the function.
            if parameter.name != "help" and parameter.expose_value:
                assert parameter.opts[0] in page


TRACING = """
import json, sys, threading
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from pgqrs_native import Client, Worker

class Signal:
    def connect(self, **_):
        return lambda function: function

sys.modules.setdefault("celery", type(sys)("celery"))
signals = sys.modules["celery.signals"] = type(sys)("celery.signals")
signals.worker_process_init = Signal()
dsn, *examples = json.loads(sys.stdin.read())
with Client(dsn) as client:
    client.admin.install()
    client.admin.create_queue("emails")
    worker = Worker(client, concurrency=1)
    names = {"client": client, "worker": worker}
    for example in examples:
        exec(example, names)
    handled = threading.Thread(target=worker.run, kwargs={"signals": False})
    handled.start()
    while client.admin.queue_metrics("emails").ready + client.admin.queue_metrics("emails").in_flight:
        threading.Event().wait(0.02)
    worker.stop()
    handled.join()
names["provider"].shutdown()
"""


def test_the_examples_of_tracing_make_the_trace_that_the_page_draws(pgqrs_dsn: str) -> None:
    import json
    import os

    done = subprocess.run(
        [sys.executable, "-c", TRACING],
        input=json.dumps([pgqrs_dsn, *blocks("tracing.md", "python")]),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr

    spans = {}
    decoder, text = json.JSONDecoder(), done.stdout.strip()
    while text:
        span, end = decoder.raw_decode(text)
        spans[span["context"]["span_id"]] = span
        text = text[end:].strip()
    [span] = [one for one in spans.values() if one["name"] == "render"]
    drawn = []
    while span is not None:
        drawn.insert(0, f"`{span['name']}`")
        span = spans.get(span["parent_id"])
    assert " › ".join(drawn) in (DOCS / "tracing.md").read_text(encoding="utf-8")
