"""The metrics of celery-exporter, made by `pgqrs metrics serve --celery`."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("celery")
pytest.importorskip("prometheus_client")

from pgqrs_kombu.event_guard import is_event
from pgqrs_prometheus.celery_events import broker_url
from pgqrs_prometheus.celery_metrics import DOWN_AFTER, FORGOTTEN_AFTER, CeleryMetrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgqrs_core.config import Config
from pgqrs_core.testing import PATIENCE, eventually
from tests.adapters.celery.celery_support import Workers

#: What src/exporter.py of danihodovic/celery-exporter registers: name, type, labels.
TASK = ("hostname", "name", "queue_name")
THEIRS = {
    "celery_task_sent": ("counter", TASK),
    "celery_task_received": ("counter", TASK),
    "celery_task_started": ("counter", TASK),
    "celery_task_succeeded": ("counter", TASK),
    "celery_task_failed": ("counter", ("exception", *TASK)),
    "celery_task_rejected": ("counter", TASK),
    "celery_task_revoked": ("counter", TASK),
    "celery_task_retried": ("counter", TASK),
    "celery_worker_up": ("gauge", ("hostname",)),
    "celery_worker_tasks_active": ("gauge", ("hostname",)),
    "celery_task_runtime": ("histogram", TASK),
    "celery_task_queue_wait_time": ("histogram", TASK),
    "celery_queue_length": ("gauge", ("queue_name",)),
    "celery_active_consumer_count": ("gauge", ("queue_name",)),
    "celery_active_worker_count": ("gauge", ("queue_name",)),
    "celery_active_process_count": ("gauge", ("queue_name",)),
}


class Exporter:
    """The metrics in a registry of their own, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lengths: dict[str, int] | None = {"celery": 7, "other": 1}
        self.metrics = CeleryMetrics(lambda: self.lengths, lambda: self.now)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)

    def task(self, kind: str, uuid: str = "1", **fields: Any) -> None:
        self.metrics.event(
            {"type": f"task-{kind}", "uuid": uuid, "hostname": "w1@box", "timestamp": 1.0, "local_received": 1.0}
            | {"clock": 1, **fields}
        )

    def worker(self, kind: str, **fields: Any) -> None:
        self.metrics.event({"type": f"worker-{kind}", "hostname": "w1@box", "timestamp": 1.0, **fields})

    def value(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"celery_{metric}", labels)


@pytest.fixture
def exporter() -> Exporter:
    made = Exporter()
    made.worker("heartbeat", active=3)
    made.metrics.answers({"w1@box": [{"name": "celery"}]}, {"w1@box": {"pool": {"processes": [11, 12]}}})
    made.task("sent", name="add", queue="celery", hostname="gen1@web")
    made.task("received", name="add")
    made.task("started")
    made.task("succeeded", runtime=0.3, result="3")
    return made


OF = {"name": "add", "hostname": "box", "queue_name": "celery"}


def test_names_types_and_labels_are_those_of_celery_exporter(exporter: Exporter) -> None:
    found = {
        family.name: (family.type, tuple(sorted({*family.samples[0].labels} - {"le"})))
        for family in text_string_to_metric_families(generate_latest(exporter.registry).decode())
    }

    assert found == {name: (kind, tuple(sorted(labels))) for name, (kind, labels) in THEIRS.items()}


def test_a_tasks_way_is_counted_and_its_time_observed(exporter: Exporter) -> None:
    for kind in ("received", "started", "succeeded"):
        assert exporter.value(f"task_{kind}_total", **OF) == 1
    assert exporter.value("task_sent_total", **OF | {"hostname": "web"}) == 1
    assert exporter.value("task_runtime_count", **OF) == 1
    assert exporter.value("task_runtime_sum", **OF) == 0.3
    assert exporter.value("task_runtime_bucket", **OF, le="0.25") == 0
    assert exporter.value("task_runtime_bucket", **OF, le="0.5") == 1
    assert exporter.value("task_runtime_bucket", **OF, le="+Inf") == 1


@pytest.mark.parametrize(
    ("eta", "waited"),
    [(None, 4.0), ("1970-01-01T00:00:13+00:00", 1.0), ("1970-01-01T01:00:00+00:00", 0.0), ("odd", 4.0)],
)
def test_the_time_in_the_queue_is_without_a_delay_that_was_asked_for(
    exporter: Exporter, eta: str | None, waited: float
) -> None:
    exporter.task("sent", "2", name="late", queue="celery", timestamp=10.0)
    exporter.task("received", "2", name="late", timestamp=13.5, eta=eta)
    exporter.task("started", "2", timestamp=14.0)

    assert exporter.value("task_queue_wait_time_sum", **OF | {"name": "late"}) == waited
    assert exporter.value("task_queue_wait_time_count", **OF | {"name": "late"}) == 1


def test_what_has_not_happened_yet_is_zero_and_not_missing(exporter: Exporter) -> None:
    assert exporter.value("task_retried_total", **OF) == 0
    assert exporter.value("task_failed_total", **OF, exception="") == 0


@pytest.mark.parametrize(
    ("text", "name"), [("ValueError('no')", "ValueError"), ("", "UnknownException"), ("<odd>", "UnknownException")]
)
def test_a_failure_has_the_class_of_its_exception(exporter: Exporter, text: str, name: str) -> None:
    exporter.task("failed", exception=text, traceback="…")

    assert exporter.value("task_failed_total", **OF, exception=name) == 1


@pytest.mark.parametrize("kind", ["rejected", "revoked", "retried"])
def test_other_ends_are_counted(exporter: Exporter, kind: str) -> None:
    exporter.task(kind)

    assert exporter.value(f"task_{kind}_total", **OF) == 1


def test_workers_are_up_until_they_say_otherwise(exporter: Exporter) -> None:
    assert exporter.value("worker_up", hostname="box") == 1
    assert exporter.value("worker_tasks_active", hostname="box") == 3

    exporter.worker("offline")

    assert exporter.value("worker_up", hostname="box") == 0
    assert exporter.value("worker_tasks_active", hostname="box") == 0


def test_a_silent_worker_is_down_after_a_while_and_then_forgotten(exporter: Exporter) -> None:
    exporter.now += DOWN_AFTER + 1
    assert exporter.value("worker_up", hostname="box") == 0
    assert exporter.value("task_succeeded_total", **OF) == 1

    exporter.now += FORGOTTEN_AFTER - DOWN_AFTER
    assert exporter.value("worker_up", hostname="box") is None
    assert exporter.value("task_succeeded_total", **OF) is None


def test_queues_are_those_that_workers_consume_from_and_stay_when_none_is_left(exporter: Exporter) -> None:
    assert exporter.value("queue_length", queue_name="celery") == 7
    assert exporter.value("queue_length", queue_name="other") is None
    assert exporter.value("active_worker_count", queue_name="celery") == 1
    assert exporter.value("active_consumer_count", queue_name="celery") == 1
    assert exporter.value("active_process_count", queue_name="celery") == 2

    exporter.metrics.answers(None, None)

    assert exporter.value("active_worker_count", queue_name="celery") == 0
    assert exporter.value("queue_length", queue_name="celery") == 7


def test_without_the_database_lengths_are_missing_and_not_zero(exporter: Exporter) -> None:
    exporter.lengths = None

    assert exporter.value("queue_length", queue_name="celery") is None
    assert exporter.value("worker_up", hostname="box") == 1


@pytest.mark.parametrize("event", [{}, {"type": "task-sent"}, {"type": "worker-heartbeat"}, {"type": "odd"}])
def test_an_event_that_lacks_what_it_needs_harms_nothing(exporter: Exporter, event: dict[str, Any]) -> None:
    exporter.metrics.event(event)

    assert exporter.value("task_succeeded_total", **OF) == 1


def test_an_event_keeps_no_metric_from_being_scraped(exporter: Exporter) -> None:
    exporter.worker("heartbeat", hostname="w@\ud800")
    exporter.task("sent", uuid="2", name="\ud800", queue="\ud800", hostname="w@\ud800")

    assert b'celery_task_sent_total{hostname="\\\\ud800"' in generate_latest(exporter.registry)


@pytest.mark.parametrize("queues", [1, "x", [1], [{}], [{"name": "\ud800"}]])
def test_an_answer_that_is_none_keeps_no_other_from_being_told(exporter: Exporter, queues: Any) -> None:
    exporter.metrics.answers({"forged": queues, "w1@box": [{"name": "celery"}]}, {"forged": {"pool": 7}})
    exporter.metrics.answers({"forged": queues, "w1@box": [{"name": "celery"}]}, {"forged": [], "w1@box": {}})

    assert exporter.value("active_worker_count", queue_name="celery") == 1
    assert generate_latest(exporter.registry)


def test_an_address_becomes_a_brokers_with_all_that_it_says() -> None:
    config = Config.load(url="postgresql://ada:p%40ss@db:5433/shop?sslmode=require")

    url = broker_url(config)

    assert url.startswith("pgqrs:///shop?")
    for part in ("host=db", "port=5433", "user=ada", "password=p%40ss", "sslmode=require"):
        assert part in url


@pytest.fixture
def crew(pgqrs_dsn: str, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(pgqrs_dsn, tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def serving(crew: Workers, *options: str, **environment: str) -> Iterator[Callable[..., bool]]:
    """Run the endpoint; give a function that tells whether all these samples are there."""
    with subprocess.Popen(
        [
            *[sys.executable, "-c", "from pgqrs_native.command import main; main()"],
            *["metrics", "serve", "--port", "0", "--interval", "1", *options],
        ],
        env={**crew.environment, "DATABASE_URL": crew.dsn, **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"serving (http\S+)\n", process.stdout.readline())
            assert found is not None
            address = found[1]

            def has(*samples: str) -> bool:
                page = urllib.request.urlopen(address, timeout=PATIENCE).read().decode()
                return all(sample in page for sample in samples)

            yield has
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("how", ["option", "setting"])
def test_a_real_worker_is_told_of_at_the_endpoint(crew: Workers, how: str) -> None:
    crew.start("prefork", "-c", "2", "-E", conf={"task_send_sent_event": True})
    options = ["--celery"] if how == "option" else []
    environment = {"PGQRS_PLUGINS_PROMETHEUS_CELERY": "true"} if how == "setting" else {}
    with serving(crew, *options, **environment) as has:
        eventually(lambda: has('celery_worker_up{hostname="test"} 1.0'))
        for number in range(3):
            crew.tasks.say.delay(number)
        of = 'hostname="test",name="celery_app.say",queue_name="celery"'
        eventually(
            lambda: has(
                f"celery_task_received_total{{{of}}} 3.0",
                f"celery_task_succeeded_total{{{of}}} 3.0",
                f"celery_task_runtime_count{{{of}}} 3.0",
                'celery_active_worker_count{queue_name="celery"} 1.0',
                'celery_active_process_count{queue_name="celery"} 2.0',
                'celery_queue_length{queue_name="celery"} 0.0',
                "pgqrs_up 1.0",
            )
        )


@pytest.mark.parametrize(
    "change",
    [
        *({"hostname": value} for value in (None, 1, [], "w@\ud800")),
        *({"uuid": value} for value in (None, "", [], {}, "\ud800", 1.5)),
        *(
            {name: value}
            for name in ("timestamp", "clock")
            for value in (None, True, "1", [], 1e308, 10**400, math.nan)
        ),
        {"type": None},
        {"name": {}},
        {"runtime": "x"},
    ],
)
def test_what_celery_cannot_count_is_no_event(change: dict[str, Any]) -> None:
    sound = {"type": "task-succeeded", "hostname": "w@h\xf6st", "uuid": "1", "name": None, "timestamp": 1.0, "clock": 1}
    assert is_event({**sound, "runtime": 0.5, "active": None, "pid": 1})

    assert not is_event({**sound, **change})


def test_what_is_no_event_keeps_no_metric_from_being_told(crew: Workers) -> None:
    crew.start("solo", "-E")
    values: list[Any] = [None, True, -1, 10**400, 1e308, "", "x", "\ud800", [], {}, [1, {}]]
    sound = {"hostname": "w@h", "timestamp": 1.0, "clock": 5, "utcoffset": 0, "uuid": "u", "name": "n", "queue": "q"}
    sound |= {"active": 1, "root_id": "r", "parent_id": "p", "eta": None, "runtime": 1.0}
    hostile = [
        json.dumps({**sound, "type": kind, field: value}).encode()
        for kind in ("task-received", "task-started", "task-succeeded", "worker-heartbeat")
        for field in (*sound, "type")
        for value in values
    ]
    hostile += [b"1", b"null", b"[1,{}]", b"{}", b"", b"{", b"\xff", b"[" * 50_000]
    with serving(crew, "--celery") as has:
        eventually(lambda: has('celery_worker_up{hostname="test"} 1.0'))
        for body in hostile:
            crew.sql(
                "insert into pgqrs.kombu_mail (queue_id, content_type, headers, body) "
                "select queue_id, 'application/json', '{}', %s from pgqrs.kombu_queues where name like 'celeryev.%%'",
                body,
            )
        for number in range(3):
            crew.tasks.say.delay(number)

        of = 'hostname="test",name="celery_app.say",queue_name="celery"'
        eventually(lambda: has(f"celery_task_succeeded_total{{{of}}} 3.0", "pgqrs_up 1.0"))
        assert crew.sql("select count(*) from pgqrs.kombu_queues where name like 'celeryev.%%'") == [(1,)]


def test_the_page_names_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

    for name, (kind, _) in THEIRS.items():
        assert f"`{name}{'_total' if kind == 'counter' else ''}`" in page
