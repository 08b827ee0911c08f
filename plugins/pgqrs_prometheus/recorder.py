"""From events to metrics: a few additions per batch, whatever its size."""

from __future__ import annotations

from collections import Counter as Counts
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from pgqrs_core.hookspecs import hookimpl
from pgqrs_prometheus.engines import EngineGauges
from pgqrs_prometheus.instruments import BulkHistogram, Instruments

if TYPE_CHECKING:
    from pgqrs_core.events import Claimed, Consumed, Enqueued

__all__ = ["Recorder"]


class _Line:
    """The metrics of one queue by one adapter, their labels looked up once."""

    __slots__ = ("batch", "claimed", "enqueued", "handled", "pickup", "settled", "waited")

    def __init__(self, of: Instruments, queue: str, adapter: str) -> None:
        self.enqueued: Counter = of.enqueued.labels(queue, adapter)
        self.claimed: Counter = of.claimed.labels(queue, adapter)
        self.batch: BulkHistogram = of.batch.labels(queue, adapter)
        self.waited: BulkHistogram = of.waited.labels(queue, adapter)
        self.pickup: BulkHistogram = of.pickup.labels(queue, adapter)
        self.handled: BulkHistogram = of.handled.labels(queue, adapter)
        self.settled: dict[str, Counter] = {}


class Recorder:
    """Keeps the metrics of this process. A plugin: thread-safe, and it survives a fork."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._of = Instruments(registry)
        self._lines: dict[tuple[str, str], _Line] = {}
        self._engines = EngineGauges(registry)

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        """Count what was enqueued."""
        self._line(event).enqueued.inc(event.count)

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        """Count what was claimed, and how long it had waited."""
        line = self._line(event)
        now, deliveries = event.claimed_at, event.deliveries
        waits = [now - delivery.enqueued_at.timestamp() for delivery in deliveries]
        fresh = [wait for wait, one in zip(waits, deliveries) if one.attempt == 1 and one.lane >= 0]
        line.claimed.inc(len(waits))
        line.batch.observe(len(waits))
        line.waited.observe_all(waits)
        line.pickup.observe_all(fresh)
        self._engines.refresh_if_due()

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        """Count what became of messages, and how long their handlers took."""
        line = self._line(event)
        outcomes = event.outcomes
        kinds = Counts(one.kind for one in outcomes)
        seconds = [one.seconds_in_handler for one in outcomes if one.seconds_in_handler is not None]
        for kind, count in kinds.items():
            counter = line.settled.get(kind)
            if counter is None:
                counter = line.settled[kind] = self._of.settled.labels(event.queue, event.adapter, kind)
            counter.inc(count)
        line.handled.observe_all(seconds)

    def _line(self, event: Enqueued | Claimed | Consumed) -> _Line:
        key = event.queue, event.adapter
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self._of, *key)
        return line
