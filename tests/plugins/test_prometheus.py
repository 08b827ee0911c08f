"""Metrics for Prometheus: counted for every adapter, scraped over HTTP, and drawn by a dashboard that names what exists."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("prometheus_client")

import pgqrs_prometheus
from pgqrs_native import Client, Worker
from pgqrs_prometheus.instruments import BulkHistogram
from pgqrs_prometheus.recorder import Recorder
from pgqrs_prometheus.server import endpoint, make_registry
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.events import Claimed, Consumed, Enqueued, Outcome
from pgqrs_core.installing import install_command
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually

PATIENCE = 30.0
Scrape = dict[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> Scrape:
    """Return the samples of a scrape by their names."""
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def scrape(registry: CollectorRegistry) -> Scrape:
    return parsed(generate_latest(registry).decode())


def value(found: Scrape, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    return sum(number for its, number in found.get(name, []) if labels.items() <= its.items())


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def client(pgqrs_dsn: str, registry: CollectorRegistry) -> Iterator[Client]:
    plugins = Plugins.core()
    plugins.register(Recorder(registry), "prometheus")
    with Client(pgqrs_dsn, plugins=plugins) as client:
        client.admin.install()
        client.admin.create_queue("jobs", max_attempts=2, backoff_base=0.0)
        yield client


def test_every_step_of_a_message_is_counted_with_its_queue_and_adapter(
    client: Client, registry: CollectorRegistry
) -> None:
    client.producer.batch_enqueue("jobs", list(range(6)))
    acked, archived, nacked, buried, released, kept = client.consumer.read_batch("jobs", count=10)
    client.consumer.dequeue(acked)
    client.consumer.archive(archived)
    client.consumer.nack(nacked, error="no")
    client.consumer.nack(buried, error="never", bury=True)
    client.consumer.release(released)
    client.consumer.dequeue(kept)
    assert client.consumer.dequeue_batch([kept]) == [False]

    found = scrape(registry)

    mine = {"queue": "jobs", "adapter": "native"}
    assert value(found, "pgqrs_messages_enqueued_total", **mine) == 6
    assert value(found, "pgqrs_messages_claimed_total", **mine) == 6
    for outcome, count in {"acked": 2, "archived": 1, "nacked": 1, "dead": 1, "released": 1, "lost": 1}.items():
        assert value(found, "pgqrs_messages_settled_total", outcome=outcome, **mine) == count
    assert value(found, "pgqrs_claim_batch_size_sum", **mine) == 6
    assert value(found, "pgqrs_claim_batch_size_count", **mine) == 1
    assert value(found, "pgqrs_time_in_queue_seconds_count", **mine) == 6
    assert value(found, "pgqrs_pickup_latency_seconds_count", **mine) == 6
    # All but the one that was given back untried.
    assert value(found, "pgqrs_handler_seconds_count", **mine) == 6


def test_pickup_counts_neither_retries_nor_messages_that_had_to_wait(
    client: Client, registry: CollectorRegistry
) -> None:
    client.producer.enqueue("jobs", "fails once")
    client.producer.enqueue_delayed("jobs", "late", delay=0.05)
    client.producer.enqueue("jobs", "lost once")
    for _ in range(5):
        message = client.consumer.read("jobs", wait=PATIENCE, lock_time=0.1)
        assert message is not None
        if message.payload == "fails once" and message.attempt == 1:
            client.consumer.nack(message)
        elif message.payload != "lost once" or message.attempt > 1:
            client.consumer.dequeue(message)

    found = scrape(registry)

    assert value(found, "pgqrs_time_in_queue_seconds_count") == 5
    assert value(found, "pgqrs_pickup_latency_seconds_count") == 2


def test_the_time_in_a_workers_handler_is_that_of_the_handler_alone(
    client: Client, registry: CollectorRegistry
) -> None:
    worker = Worker(client, concurrency=1, housekeeping=False)
    done = threading.Event()

    took: list[float] = []

    @worker.handler("jobs", int)
    def handle(message: Any) -> None:
        # The second waits for the first, held ready by the worker.
        began = time.monotonic()
        threading.Event().wait(0.3)
        took.append(time.monotonic() - began)
        if message.payload == 1:
            done.set()

    client.producer.batch_enqueue("jobs", [0, 1])
    thread = threading.Thread(target=worker.run, kwargs={"signals": False})
    thread.start()
    assert done.wait(PATIENCE)
    worker.stop()
    thread.join(PATIENCE)

    found = scrape(registry)
    assert value(found, "pgqrs_handler_seconds_count") == 2
    # From the claim on, the second one would have taken as long as both.
    assert sum(took) * 0.9 <= value(found, "pgqrs_handler_seconds_sum") < sum(took) + took[0]


def test_many_values_at_once_are_observed_as_one_by_one(registry: CollectorRegistry) -> None:
    bounds = (0.1, 1, 10)
    one = BulkHistogram("one", "x", buckets=bounds, registry=registry)
    many = BulkHistogram("many", "x", buckets=bounds, registry=registry)
    values = [0.0, 5.0, 0.1, 1.0, 100.0, 0.10001, 1e9, 0.5]
    many.observe_all([])

    for each in values:
        one.observe(each)
    many.observe_all(list(values))

    found = scrape(registry)
    for part in ("bucket", "sum", "count"):
        assert found[f"one_{part}"] == found[f"many_{part}"]


def test_the_gauges_of_queues_are_read_once_for_many_scrapes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.admin.create_queue("other")
    client.producer.batch_enqueue("jobs", [1, 2, 3])
    client.producer.enqueue_delayed("jobs", 4, delay=600)
    client.producer.enqueue("jobs", 5, ttl=0.001)
    message = client.consumer.read("jobs")
    assert message is not None
    client.consumer.nack(message, bury=True, error="no")
    assert client.consumer.read("jobs") is not None
    statements: list[object] = []
    ask = client.engine.connections.run
    monkeypatch.setattr(
        client.engine.connections, "run", lambda effect, known: (statements.append(effect), ask(effect, known))[1]
    )
    registry = CollectorRegistry()
    pgqrs_prometheus.watch_queues(client.engine, registry=registry, seconds=60)
    assert statements == []

    for _ in range(5):
        found = scrape(registry)

    states = {state: value(found, "pgqrs_queue_messages", queue="jobs", state=state) for state in STATES}
    assert states == {"ready": 1, "delayed": 1, "in_flight": 1, "expired": 1, "dead": 1}
    assert value(found, "pgqrs_queue_messages", queue="other") == 0
    assert value(found, "pgqrs_queue_oldest_ready_seconds", queue="jobs") > 0
    assert value(found, "pgqrs_up") == 1
    # The names of the queues, and the figures of all of them.
    assert len(statements) == 2


STATES = ("ready", "delayed", "in_flight", "expired", "dead")


def test_without_the_database_a_scrape_says_so_and_does_not_fail(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with Client("host=/nowhere dbname=x", plugins=Plugins.core()) as client:
        pgqrs_prometheus.watch_queues(client.engine, registry=registry)
        found = scrape(registry)

    assert value(found, "pgqrs_up") == 0
    assert "pgqrs_queue_messages" not in found
    assert "cannot be looked at" in caplog.text


def test_a_queue_that_cannot_be_looked_at_is_down_and_the_others_are_served(
    client: Client, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.admin.create_queue("broken")
    client.producer.enqueue("jobs", 1)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("drop table pgqrs.q_broken cascade")
    registry = CollectorRegistry()
    pgqrs_prometheus.watch_queues(client.engine, registry=registry, seconds=0)

    for _ in range(2):
        found = scrape(registry)

    assert value(found, "pgqrs_up") == 1
    assert {labels["queue"]: number for labels, number in found["pgqrs_queue_up"]} == {"jobs": 1, "broken": 0}
    assert {labels["queue"] for labels, _ in found["pgqrs_queue_messages"]} == {"jobs"}
    assert value(found, "pgqrs_queue_messages", queue="jobs", state="ready") == 1
    assert caplog.text.count("queue 'broken' cannot be measured, the others are") == 1


def test_connections_and_wake_ups_are_those_of_all_engines(client: Client, registry: CollectorRegistry) -> None:
    reader = threading.Thread(target=client.consumer.read, args=("jobs",), kwargs={"wait": PATIENCE})
    reader.start()
    eventually(lambda: value(scrape(registry), "pgqrs_wakeup_watched_queues") == 1)
    eventually(lambda: value(scrape(registry), "pgqrs_wakeup_probes_total") > 0)
    client.producer.enqueue("jobs", 1)
    reader.join(PATIENCE)

    found = scrape(registry)

    assert value(found, "pgqrs_pool_connections") >= 1
    assert value(found, "pgqrs_pool_connections_limit") >= value(found, "pgqrs_pool_connections")
    assert value(found, "pgqrs_wakeup_listening") >= 1
    before = value(found, "pgqrs_wakeup_probes_total")
    assert value(scrape(registry), "pgqrs_wakeup_probes_total") - before < 5


# Kombu and Celery


def test_messages_of_kombu_are_counted_too(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kombu = pytest.importorskip("kombu")
    from tests.adapters.kombu.kombu_support import Bench, Inbox

    registry, plugins = CollectorRegistry(), Plugins.core()
    for source in ("pgqrs_kombu.plugin",):
        plugins.register(__import__(source, fromlist=["plugin"]), "kombu")
    plugins.register(Recorder(registry), "prometheus")
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)
    bench = Bench(pgqrs_dsn)
    try:
        connection = bench.connect()
        queue = kombu.Queue("mail")
        inbox = Inbox(connection, queue)
        producer = kombu.Producer(connection.channel())
        for number in range(3):
            producer.publish({"n": number}, routing_key="mail")
        first, second, third = inbox.wait(3)
        first.ack()
        second.ack()
        third.reject()
        eventually(lambda: value(scrape(registry), "pgqrs_messages_settled_total") == 3)
    finally:
        bench.close()

    found, mine = scrape(registry), {"queue": "mail", "adapter": "kombu"}
    assert value(found, "pgqrs_messages_enqueued_total", **mine) == 3
    assert value(found, "pgqrs_messages_claimed_total", **mine) == 3
    assert value(found, "pgqrs_messages_settled_total", outcome="acked", **mine) == 2
    assert value(found, "pgqrs_messages_settled_total", outcome="dead", **mine) == 1
    assert value(found, "pgqrs_handler_seconds_count", **mine) == 3


def test_plugins_of_kombu_and_of_celerys_tasks_are_configured_like_all(
    pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kombu = pytest.importorskip("kombu")
    from pgqrs_kombu import tasks

    from tests.adapters.kombu.kombu_support import url_of

    monkeypatch.setenv("PGQRS_PLUGINS_BLOCKED", "prometheus")
    tasks._plugins.cache_clear()
    with kombu.Connection(url_of(pgqrs_dsn)) as connection:
        for plugins in (connection.transport.broker.engine.plugins, tasks._plugins()):
            assert "prometheus" in {one.name for one in plugins.blocked}
            assert "prometheus" not in {one.name for one in plugins.loaded}
    tasks._plugins.cache_clear()


# The endpoint


COMMAND = "from pgqrs_native.command import main; main()"
PRODUCER = """
import sys
from pgqrs_native import Client
with Client(sys.argv[1]) as client:
    client.producer.batch_enqueue("jobs", [1, 2, 3])
    for message in client.consumer.read_batch("jobs", count=int(sys.argv[2])):
        client.consumer.dequeue(message)
"""


@pytest.fixture
def served(pgqrs_dsn: str, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of `pgqrs metrics serve` with a shared directory, and the environment of those who share it."""
    with Client(pgqrs_dsn, plugins=Plugins.core()) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
    shared = tmp_path / "metrics"
    shared.mkdir()
    environment = {
        **{key: text for key, text in os.environ.items() if not key.startswith("PGQRS_")},
        "DATABASE_URL": pgqrs_dsn,
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pgqrs_native.command import main; main()",
            *["metrics", "serve", "--port", "0", "--interval", "0"],
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/metrics)\n", line)
            if found is None:
                process.terminate()
                pytest.fail(f"{line!r} {process.communicate()}")
            yield found.group(1), environment
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


def fetch(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return parsed(answer.read().decode())


def test_what_several_processes_counted_is_added_up_and_served(served: tuple[str, dict[str, str]]) -> None:
    url, environment = served
    for take in ("3", "2"):
        subprocess.run(
            [sys.executable, "-c", PRODUCER, environment["DATABASE_URL"], take],
            env=environment,
            check=True,
            timeout=PATIENCE,
        )

    found = fetch(url)

    assert value(found, "pgqrs_messages_enqueued_total", queue="jobs", adapter="native") == 6
    assert value(found, "pgqrs_messages_settled_total", queue="jobs", outcome="acked") == 5
    assert value(found, "pgqrs_time_in_queue_seconds_count", queue="jobs") == 5
    assert value(found, "pgqrs_queue_messages", queue="jobs", state="ready") == 1


def test_every_query_of_the_dashboard_names_metrics_and_labels_of_a_real_scrape(
    served: tuple[str, dict[str, str]],
) -> None:
    url, environment = served
    subprocess.run([sys.executable, "-c", PRODUCER, environment["DATABASE_URL"], "3"], env=environment, check=True)
    found = fetch(url)
    queries = dashboard_queries()

    assert len(queries) > 15
    used: set[str] = set()
    for query in queries:
        assert query.count("(") == query.count(")"), query
        names = re.findall(r"\bpgqrs_\w+", query)
        assert names, query
        for name in names:
            assert name in found, f"no sample is called {name}: {query}"
            used.add(re.sub(r"_(bucket|sum|count|total)$", "", name))
            known = set(found[name][0][0])
            selected = re.findall(rf"{name}\{{([^}}]*)\}}", query)
            matched = re.findall(r"(\w+)\s*[=!]~?", ",".join(selected))
            grouped = [one.strip() for group in re.findall(r"by \(([^)]*)\)", query) for one in group.split(",")]
            missing = set(matched + grouped) - known
            assert not missing, f"{name} has no labels {missing}: {query}"
    served_names = {
        re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in found if name.startswith("pgqrs_")
    }
    assert served_names == used, "a metric that no panel shows, or a panel without one"


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, those of its variables included."""
    page = json.loads(files("pgqrs_prometheus").joinpath("dashboard.json").read_text())
    asked = [target["expr"] for panel in page["panels"] for target in panel["targets"]]
    variables = [one["definition"] for one in page["templating"]["list"] if one["type"] == "query"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable).groups()  # type: ignore[union-attr]
        asked.append(f"max by ({label}) ({metric})")
    return asked


def test_the_dashboard_is_printed_as_it_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    from pgqrs_native.command.app import run

    assert run(["metrics", "dashboard"]) == 0
    assert json.loads(capsys.readouterr().out)["uid"] == "pgqrs"


def test_a_port_that_is_taken_and_a_directory_that_is_missing_are_said_plainly(
    client: Client, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        endpoint(registry, "127.0.0.1", 0) as port,
        pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"),
        endpoint(registry, "127.0.0.1", port),
    ):
        raise AssertionError
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/no/such/place")
    with pytest.raises(ConfigurationError, match="no/such/place"):
        make_registry(client.engine, seconds=1)


# The installed plugin


FIRST = """
import sys, threading
sys.setswitchinterval(1e-6)
from prometheus_client import REGISTRY
from pgqrs_core.events import Enqueued
from pgqrs_core.plugins import Plugins
hooks = Plugins.load().hooks
gate = threading.Barrier(8)

def count():
    gate.wait()
    hooks.after_enqueue(Enqueued("jobs", "native", [1], 1, 1, 0.0))

threads = [threading.Thread(target=count) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(REGISTRY.get_sample_value("pgqrs_messages_enqueued_total", {"queue": "jobs", "adapter": "native"}))
"""


def test_threads_that_send_first_messages_at_once_are_all_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    assert done.stdout == "8.0\n", done.stderr
    assert done.stderr == ""


# Without the library


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
sys.modules["opentelemetry"] = None
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *more: None if name == "prometheus_client" else find(name, *more)
from pgqrs_core.plugins import Plugins
plugins = Plugins.load()
hooks = plugins.hooks
print(plugins.broken, hooks.observes_enqueue, hooks.observes_claim, hooks.observes_consume, hooks.surrounds_handler)
from pgqrs_native.command.app import run
sys.exit(run(["metrics", "serve"]))
"""


def test_without_the_libraries_nothing_is_counted_and_the_command_names_the_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DATABASE_URL": "postgresql:///x"},
    )

    assert done.stdout == "() False False False False\n", done.stderr
    assert done.returncode == 2
    assert install_command("prometheus") in done.stderr


def test_events_without_messages_or_handlers_are_no_trouble(registry: CollectorRegistry) -> None:
    recorder = Recorder(registry)

    recorder.pgqrs_after_enqueue(Enqueued("q", "x", [], 0, 0, 0.0))
    recorder.pgqrs_after_claim(Claimed("q", "x", [], 0.0, 0.0, managed=False))
    recorder.pgqrs_after_consume(Consumed.of("q", "x", [Outcome(1, "released", 1, 0.0)]))

    assert value(scrape(registry), "pgqrs_messages_settled_total", outcome="released") == 1
    assert value(scrape(registry), "pgqrs_handler_seconds_count") == 0
