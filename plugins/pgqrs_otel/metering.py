"""Metrics by OpenTelemetry, by the semantic conventions where they have a name.

Its API takes histograms' values one by one, at several microseconds each. So batches count once: the duration of an
operation, the longest wait of a claim, and each different duration of a handler. They are recorded together, when they are
collected and after every thousand messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from pgqrs_core.depths import Depths
from pgqrs_core.figures import process_figures
from pgqrs_core.tally import Sums, Tally
from pgqrs_otel.conventions import DESTINATION, OUTCOME, about

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, MeterProvider

    from pgqrs_core.engine import Engine
    from pgqrs_core.messages import Metrics

__all__ = ["Metering"]


class Metering(Tally):
    """A plugin that records metrics with one provider, the global one by default."""

    def __init__(self, provider: MeterProvider | None = None, engine: Engine | None = None) -> None:
        super().__init__()
        meter = metrics.get_meter("pgqrs", meter_provider=provider)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages enqueued.")
        self._claimed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages claimed.")
        self._settled = meter.create_counter("pgqrs.messages.settled", "{message}", "Messages settled, by outcome.")
        self._operation = meter.create_histogram("messaging.client.operation.duration", "s", "Enqueues and claims.")
        self._process = meter.create_histogram("messaging.process.duration", "s", "Time in the handler.")
        self._waited = meter.create_histogram(
            "pgqrs.claim.longest_wait", "s", "The longest time in the queue of a claim."
        )
        meter.create_observable_up_down_counter("pgqrs.connections", [self._connections], "{connection}")
        meter.create_observable_counter("pgqrs.wakeups.notifications", [_notifications], "{notification}")
        if engine is not None:
            self._depths = Depths(engine)
            meter.create_observable_gauge("pgqrs.queue.messages", [self._messages], "{message}")
            meter.create_observable_gauge("pgqrs.queue.oldest_ready", [self._oldest], "s")

    def write(self, queue: str, adapter: str, sums: Sums) -> None:
        """Record what happened."""
        if sums.enqueue_seconds:
            attributes = about(queue, adapter, "enqueue", "send")
            self._sent.add(sums.enqueued, attributes)
            _record(self._operation, sums.enqueue_seconds, attributes)
        if sums.claim_seconds:
            attributes = about(queue, adapter, "receive", "receive")
            self._claimed.add(sum(sums.claimed), attributes)
            _record(self._operation, sums.claim_seconds, attributes)
            _record(self._waited, sums.longest, attributes)
        attributes = about(queue, adapter, "process", "process")
        for kind, count in sums.settled.items():
            self._settled.add(count, {**attributes, OUTCOME: kind})
        _record(self._process, dict.fromkeys(sums.handled), attributes)

    def _connections(self, _: CallbackOptions) -> Iterable[Observation]:
        # Instruments that are asked are asked before the others are read.
        self.flush()
        figures = process_figures()
        idle, total = sum(one.pool.idle for one in figures), sum(one.pool.open for one in figures)
        return [Observation(idle, {"pgqrs.state": "idle"}), Observation(total - idle, {"pgqrs.state": "busy"})]

    def _messages(self, _: CallbackOptions) -> Iterable[Observation]:
        for one in self._readable():
            for state in ("ready", "delayed", "in_flight", "expired", "dead"):
                yield Observation(getattr(one, state), {DESTINATION: one.queue, "pgqrs.state": state})

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        for one in self._readable():
            yield Observation(one.oldest_ready_seconds or 0.0, {DESTINATION: one.queue})

    def _readable(self) -> Iterable[Metrics]:
        return [one for one in self._depths.look() or () if one.error is None]


def _record(histogram: Histogram, values: Iterable[float], attributes: dict[str, str | int]) -> None:
    for value in values:
        histogram.record(value, attributes)


def _notifications(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(sum(one.notifications for one in process_figures()))]
