"""The metrics of celery-exporter, under its names and labels, made from the same events of Celery's workers.

Dashboards and alerts for https://github.com/danihodovic/celery-exporter work with them as they are. They are kept here and
not in ``prometheus_client``'s own objects: those would be shared with other processes, and added up with theirs.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from celery.events.state import State
from celery.utils.nodenames import nodesplit
from celery.utils.time import maybe_iso8601
from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from pgqrs_core.forks import Lock

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["CeleryMetrics"]

#: Seconds without a heartbeat after which a worker counts as down, and after which nothing more is said of it.
DOWN_AFTER: Final = 300.0
FORGOTTEN_AFTER: Final = 600.0

_TASK: Final = ("name", "hostname", "queue_name")
_COUNTERS: Final = {
    "task-sent": "Sent when a task message is published.",
    "task-received": "Sent when the worker receives a task.",
    "task-started": "Sent just before the worker executes the task.",
    "task-succeeded": "Sent if the task executed successfully.",
    "task-failed": "Sent if the execution of the task failed.",
    "task-rejected": ("The task was rejected by the worker, possibly to be re-queued or moved to a dead letter queue."),
    "task-revoked": "Sent if the task has been revoked.",
    "task-retried": "Sent if the task failed, but will be retried in the future.",
}
_QUEUES: Final = {
    "queue_length": "The number of message in broker queue.",
    "active_consumer_count": "The number of active consumer in broker queue.",
    "active_worker_count": "The number of active workers in broker queue.",
    "active_process_count": "The number of active processes in broker queue.",
}
_EXCEPTION: Final = re.compile(r"(\w+)\(")
_RUNTIMES: Final = [float(bound) for bound in Histogram.DEFAULT_BUCKETS if bound != float("inf")]
_WAITS: Final = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]

_Labels = tuple[str, ...]


class _Worker:
    __slots__ = ("active", "seen_at", "up")

    def __init__(self) -> None:
        self.up = self.active = 0
        self.seen_at = 0.0


class _Seconds:
    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: list[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        reached, found = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts):
            reached += count
            found.append((bound, float(reached)))
        return found


class CeleryMetrics:
    """A collector for a registry; fed with events and with what workers answer. Thread-safe.

    Args:
        lengths: returns how many messages wait in each queue, None while that is not known.
        clock: returns seconds.
    """

    def __init__(self, lengths: Callable[[], Mapping[str, int] | None], clock: Callable[[], float] = time.monotonic):
        self._lengths = lengths
        self._clock = clock
        self._lock = Lock()
        self._state = State()
        self._counts: dict[str, dict[_Labels, int]] = {kind: defaultdict(int) for kind in _COUNTERS}
        self._runtimes: dict[_Labels, _Seconds] = defaultdict(lambda: _Seconds(_RUNTIMES))
        self._waits: dict[_Labels, _Seconds] = defaultdict(lambda: _Seconds(_WAITS))
        self._workers: dict[str, _Worker] = {}
        #: Queues that some worker has consumed from, with its workers and their processes now.
        self._queues: dict[str, tuple[int, int]] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        """Take an event, as ``Receiver`` hands it out. One that lacks what its kind must have is passed over."""
        kind = event.get("type", "")
        with self._lock:
            if kind in _COUNTERS:
                self._task(kind, dict(event))
            elif kind in ("worker-online", "worker-heartbeat", "worker-offline"):
                self._worker(kind, dict(event))

    def answers(self, queues: Mapping[str, Any] | None, stats: Mapping[str, Any] | None) -> None:
        """Take what workers answer to ``inspect().active_queues()`` and ``stats()``, by worker; None if none answers."""
        workers: dict[str, int] = defaultdict(int)
        processes: dict[str, int] = defaultdict(int)
        for worker, consumed in (queues or {}).items():
            try:
                size = len(((stats or {}).get(worker, {}).get("pool") or {}).get("processes") or ())
                names = [_text(queue["name"]) for queue in consumed]
            # Any program may answer in the name of a worker.
            except (TypeError, KeyError, AttributeError):
                continue
            for name in names:
                workers[name] += 1
                processes[name] += size
        with self._lock:
            self._queues = {name: (workers[name], processes[name]) for name in {*self._queues, *workers}}

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering it asks no database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        lengths = self._lengths()
        with self._lock:
            self._forget_workers()
            return [*self._counters(), *self._gauges(lengths)]

    def _task(self, kind: str, event: dict[str, Any]) -> None:
        if not event.get("uuid"):
            return
        self._state.event(event)
        task = self._state.tasks.get(event["uuid"])
        hostname = _host(getattr(task, "hostname", None) or event.get("hostname"))
        labels = (_text(task.name), hostname, _text(getattr(task, "queue", None) or "celery"))
        for other, counts in self._counts.items():
            of = (
                (*labels[:2], _exception(event if other == kind else {}), labels[2])
                if other == "task-failed"
                else labels
            )
            if other == kind:
                counts[of] += 1
            elif other != "task-sent":
                # Visible from the beginning.
                counts[of] += 0
        if kind == "task-succeeded" and isinstance(event.get("runtime"), (int, float)):
            self._runtimes[labels].observe(event["runtime"])
        if kind == "task-started" and task.sent is not None:
            self._waits[labels].observe(max(task.started - max(task.sent, _time_of(task.eta)), 0.0))

    def _worker(self, kind: str, event: dict[str, Any]) -> None:
        worker = self._workers.setdefault(_host(event.get("hostname")), _Worker())
        worker.seen_at = self._clock()
        worker.up = int(kind != "worker-offline")
        worker.active = int(event.get("active") or 0) if worker.up else 0

    def _forget_workers(self) -> None:
        for hostname, worker in list(self._workers.items()):
            age = self._clock() - worker.seen_at
            if age > DOWN_AFTER:
                worker.up = worker.active = 0
            if age > FORGOTTEN_AFTER:
                del self._workers[hostname]
                for counts in self._counts.values():
                    _drop(counts, hostname)
                _drop(self._runtimes, hostname)
                _drop(self._waits, hostname)

    def _counters(self) -> Iterable[Metric]:
        for kind, text in _COUNTERS.items():
            names = ("name", "hostname", "exception", "queue_name") if kind == "task-failed" else _TASK
            counter = CounterMetricFamily(f"celery_{kind.replace('-', '_')}", text, labels=names)
            for labels, count in self._counts[kind].items():
                counter.add_metric(labels, float(count))
            yield counter
        yield _histogram("celery_task_runtime", "Histogram of task runtime measurements.", self._runtimes)
        text = (
            "Histogram of the time tasks spend waiting in the queue before being executed, excluding deliberate "
            "ETA/countdown delay."
        )
        yield _histogram("celery_task_queue_wait_time", text, self._waits)

    def _gauges(self, lengths: Mapping[str, int] | None) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "celery_worker_up", "Indicates if a worker has recently sent a heartbeat.", labels=("hostname",)
        )
        active = GaugeMetricFamily(
            "celery_worker_tasks_active",
            "The number of tasks the worker is currently processing",
            labels=("hostname",),
        )
        for hostname, worker in self._workers.items():
            up.add_metric((hostname,), float(worker.up))
            active.add_metric((hostname,), float(worker.active))
        of_queues = {
            name: GaugeMetricFamily(f"celery_{name}", text, labels=("queue_name",)) for name, text in _QUEUES.items()
        }
        for queue, (workers, processes) in self._queues.items():
            if lengths is not None and queue in lengths:
                of_queues["queue_length"].add_metric((queue,), float(lengths[queue]))
            # A worker is one consumer of each of its queues.
            of_queues["active_consumer_count"].add_metric((queue,), float(workers))
            of_queues["active_worker_count"].add_metric((queue,), float(workers))
            of_queues["active_process_count"].add_metric((queue,), float(processes))
        return [up, active, *of_queues.values()]


def _histogram(name: str, text: str, series: Mapping[_Labels, _Seconds]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=_TASK)
    for labels, seconds in series.items():
        family.add_metric(labels, seconds.buckets(), seconds.total)
    return family


def _time_of(eta: object) -> float:
    """Return when a task was due, in seconds since 1970; 0 for one without a time of its own, or with none that is one."""
    try:
        return maybe_iso8601(eta).timestamp() if eta else 0.0
    except (ValueError, TypeError, AttributeError, OverflowError):
        return 0.0


def _drop(series: dict[_Labels, Any], hostname: str) -> None:
    for labels in [labels for labels in series if labels[1] == hostname]:
        del series[labels]


def _host(name: object) -> str:
    """Return the host of a worker's or a sender's name: ``host`` of ``worker@host``."""
    return _text(nodesplit(str(name or ""))[1])


def _text(value: object) -> str:
    """Return a text as a scrape can hold it: an event may hold lone surrogates, with which all metrics would be missing."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _exception(event: Mapping[str, Any]) -> str:
    """Return the class of the exception that a failure tells of; nothing for other events."""
    if not event:
        return ""
    found = _EXCEPTION.match(str(event.get("exception", "")))
    return found[1] if found else "UnknownException"
