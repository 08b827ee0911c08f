"""Metrics by OpenTelemetry, by the semantic conventions where they have a name.

Its API takes histograms' values one by one, at several microseconds each. So batches count once: the duration of an
operation, the longest wait of a claim, and each different duration of a handler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from pgqrs_core.depths import Depths
from pgqrs_core.figures import process_figures
from pgqrs_core.hookspecs import hookimpl
from pgqrs_otel.conventions import DESTINATION, OUTCOME, about

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from pgqrs_core.engine import Engine
    from pgqrs_core.events import Claimed, Consumed, Enqueued

__all__ = ["Metering"]


class Metering:
    """A plugin that records metrics with one provider, the global one by default."""

    def __init__(self, provider: MeterProvider | None = None, engine: Engine | None = None) -> None:
        meter = metrics.get_meter("pgqrs", meter_provider=provider)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages enqueued.")
        self._claimed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages claimed.")
        self._settled = meter.create_counter("pgqrs.messages.settled", "{message}", "Messages settled, by outcome.")
        self._operation = meter.create_histogram("messaging.client.operation.duration", "s", "Enqueues and claims.")
        self._process = meter.create_histogram("messaging.process.duration", "s", "Time in the handler.")
        self._waited = meter.create_histogram(
            "pgqrs.claim.longest_wait", "s", "The longest time in the queue of a claim."
        )
        meter.create_observable_up_down_counter("pgqrs.connections", [_connections], "{connection}")
        meter.create_observable_counter("pgqrs.wakeups.notifications", [_notifications], "{notification}")
        if engine is not None:
            self._depths = Depths(engine)
            meter.create_observable_gauge("pgqrs.queue.messages", [self._messages], "{message}")
            meter.create_observable_gauge("pgqrs.queue.oldest_ready", [self._oldest], "s")

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        """Count what was enqueued."""
        attributes = about(event.queue, event.adapter, "enqueue", "send")
        self._sent.add(event.count, attributes)
        self._operation.record(event.seconds, attributes)

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        """Count what was claimed, and how long it had waited."""
        attributes = about(event.queue, event.adapter, "receive", "receive")
        self._claimed.add(len(event.deliveries), attributes)
        self._operation.record(event.seconds, attributes)
        oldest = min(delivery.enqueued_at for delivery in event.deliveries)
        # Two clocks are compared.
        self._waited.record(max(event.claimed_at - oldest.timestamp(), 0.0), attributes)

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        """Count what became of messages, and how long their handlers took."""
        attributes = about(event.queue, event.adapter, "process", "process")
        kinds: dict[str, int] = {}
        durations: set[float] = set()
        for outcome in event.outcomes:
            kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
            if outcome.seconds_in_handler is not None:
                durations.add(outcome.seconds_in_handler)
        for kind, count in kinds.items():
            self._settled.add(count, {**attributes, OUTCOME: kind})
        for seconds in durations:
            self._process.record(seconds, attributes)

    def _messages(self, _: CallbackOptions) -> Iterable[Observation]:
        for one in self._depths.look() or ():
            for state in ("ready", "delayed", "in_flight", "dead"):
                yield Observation(getattr(one, state), {DESTINATION: one.queue, "pgqrs.state": state})

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        for one in self._depths.look() or ():
            yield Observation(one.oldest_ready_seconds or 0.0, {DESTINATION: one.queue})


def _connections(_: CallbackOptions) -> Iterable[Observation]:
    figures = process_figures()
    idle, total = sum(one.pool.idle for one in figures), sum(one.pool.open for one in figures)
    return [Observation(idle, {"pgqrs.state": "idle"}), Observation(total - idle, {"pgqrs.state": "busy"})]


def _notifications(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(sum(one.notifications for one in process_figures()))]
