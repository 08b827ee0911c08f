"""What plugins that watch every message cost: none, Prometheus, OpenTelemetry; in batches and one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Final, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from pgqrs_native import Client
from pgqrs_otel.conventions import about
from pgqrs_otel.metering import Metering
from pgqrs_otel.tracing import Tracing
from pgqrs_prometheus.recorder import Recorder
from prometheus_client import CollectorRegistry

from benchmarks.answered import in_a_loop, without_plugins
from benchmarks.load import BATCH
from benchmarks.measure import interleave
from benchmarks.payloads import BYTES
from benchmarks.report import Figure, Target, at_least, at_most, compare, single
from benchmarks.server import Setting
from pgqrs_core.events import Claimed, Enqueued
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.tally import Tally

__all__ = ["run"]

_TRACED: Final = "OTel traces, SDK, no exporter"
_BARE: Final = "two bare spans of OTel's SDK"
#: What is loaded, and whether it has to meet the targets.
WATCHERS: Final[Mapping[str, bool]] = {
    "none again": False,
    "Prometheus": True,
    "OTel traces, no SDK": True,
    _TRACED: True,
    _BARE: False,
    "OTel metrics, SDK": False,
}
#: Messages after which what plugins put off is done, and counted: a little before they would do it themselves.
_PUT_OFF: Final = 300


class _Side(NamedTuple):
    """A client, and what watches it."""

    client: Client
    plugin: object | None

    def catch_up(self) -> None:
        """Do what the plugin has put off."""
        if isinstance(self.plugin, Tally):
            self.plugin.flush()


def run(setting: Setting) -> list[Figure]:
    """Compare each plugin with none, in short turns."""
    with ExitStack() as stack:
        queue = stack.enter_context(setting.queue("observers"))
        plugins = {"none": None, **{name: _plugin(name) for name in WATCHERS}}
        sides = {
            name: _Side(stack.enter_context(_client(setting.dsn, plugin)), plugin) for name, plugin in plugins.items()
        }
        found = [
            *without_plugins(setting),
            *in_a_loop(setting, {name: side.client.engine.plugins for name, side in sides.items()}),
        ]
        return [*found, *_batches(setting, sides, queue), *_singles(setting, sides, queue)]


def _plugin(name: str) -> object | None:
    """Make what is loaded, with a registry or a provider of its own."""
    makers: dict[str, Callable[[], object | None]] = {
        "none again": lambda: None,
        "Prometheus": lambda: Recorder(CollectorRegistry()),
        "OTel traces, no SDK": Tracing,
        _TRACED: lambda: Tracing(TracerProvider()),
        _BARE: _BareSpans,
        "OTel metrics, SDK": lambda: Metering(MeterProvider([InMemoryMetricReader()])),
    }
    return makers[name]()


class _BareSpans:
    """What nobody who uses the SDK for a span in and one out can go below."""

    def __init__(self) -> None:
        self._tracer = TracerProvider().get_tracer("bench")
        self._attributes = about("observers", "native", "enqueue", "send")

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        self._span("enqueue observers", SpanKind.PRODUCER)

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        self._span("receive observers", SpanKind.CLIENT)

    def _span(self, name: str, kind: SpanKind) -> None:
        span = self._tracer.start_span(name, kind=kind, attributes=self._attributes)
        trace.set_span_in_context(span)
        span.end()


@contextmanager
def _client(dsn: str, plugin: object | None = None) -> Iterator[Client]:
    plugins = Plugins.core()
    if plugin is not None:
        plugins.register(plugin, "watcher")
    with Client(dsn, plugins=plugins) as client:
        yield client


def _batches(setting: Setting, sides: Mapping[str, _Side], queue: str) -> list[Figure]:
    """``batch_enqueue``, ``read_batch`` and ``dequeue_batch`` of 100."""

    def work(client: Client) -> None:
        client.producer.batch_enqueue(queue, [BYTES] * BATCH)
        client.consumer.dequeue_batch(client.consumer.read_batch(queue, bytes, count=BATCH))

    walls, cpus = _measured(setting, sides, work, rounds=1, each=BATCH)
    rates = {name: [1 / wall for wall in found] for name, found in walls.items()}

    figures: list[Figure] = []
    for name, judged in WATCHERS.items():
        against = compare(
            f"batches of 100, {name}",
            "messages/s",
            rates[name],
            rates["none"],
            "no plugin",
            at_least(0.95) if judged else None,
        )
        figures += [against, _added(f"batches of 100, {name}", cpus[name], cpus["none"], None)]
    ours = "batches of 100, OTel traces over two bare spans"
    figures.append(compare(ours, "messages/s", rates[_TRACED], rates[_BARE], "bare spans", at_least(0.95)))
    return figures


def _singles(setting: Setting, sides: Mapping[str, _Side], queue: str) -> list[Figure]:
    """``enqueue``, ``read`` and ``dequeue`` of one."""

    def work(client: Client) -> None:
        client.producer.enqueue(queue, BYTES)
        message = client.consumer.read(queue, bytes)
        assert message is not None
        client.consumer.dequeue(message)

    _, cpus = _measured(setting, sides, work, rounds=5, each=1)
    return [
        *(
            _added(f"one at a time, {name}", cpus[name], cpus["none"], at_most(15) if judged else None)
            for name, judged in WATCHERS.items()
        ),
        _added("one at a time, OTel traces over two bare spans", cpus[_TRACED], cpus[_BARE], at_most(15)),
    ]


def _measured(
    setting: Setting, sides: Mapping[str, _Side], work: Callable[[Client], None], *, rounds: int, each: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds by the wall and of this process's CPU per message, for each side and repeat.

    In short turns, of which the median counts: a checkpoint or a neighbour falls into some of them only. To that comes
    what a plugin has put off, which would fall into few of the turns, and so would not be seen.
    """

    def turn(side: _Side) -> tuple[float, float]:
        return _timed(lambda: [work(side.client) for _ in range(rounds)])

    walls: dict[str, list[float]] = {name: [] for name in sides}
    cpus: dict[str, list[float]] = {name: [] for name in sides}
    turns = _PUT_OFF // (rounds * each)
    for _ in range(setting.repeats):
        setting.meter.checkpoint()
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        late: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(setting.size(300, 60) // turns):
            for name, times in interleave(turns, {name: partial(turn, side) for name, side in sides.items()}).items():
                seen[name] += times
                late[name].append(_timed(sides[name].catch_up))
        for name in sides:
            for found, place in ((walls, 0), (cpus, 1)):
                at_once = median(times[place] for times in seen[name]) / rounds / each
                found[name].append(at_once + median(times[place] for times in late[name]) / _PUT_OFF)
    return walls, cpus


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _added(name: str, cpu: list[float], without: list[float], target: Target | None) -> Figure:
    added = [(one - other) * 1e6 for one, other in zip(cpu, without)]
    return single(f"{name}: added Python CPU", "µs/message", added, target)
