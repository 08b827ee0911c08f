"""From sums to metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.values import MutexValue, ValueClass

from pgqrs_core.tally import Sums, Tally
from pgqrs_prometheus.engines import EngineGauges
from pgqrs_prometheus.instruments import BulkHistogram, Instruments

__all__ = ["Recorder"]

#: Seconds after which others see what was counted, where processes share their metrics: nobody asks this one.
_WITHIN: Final = 0.1


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


class Recorder(Tally):
    """Keeps the metrics of this process. A plugin."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__(within=None if ValueClass is MutexValue else _WITHIN)
        self._of = Instruments(registry, self.flush)
        self._lines: dict[tuple[str, str], _Line] = {}
        self._engines = EngineGauges(registry)

    def write(self, queue: str, adapter: str, sums: Sums) -> None:
        """Add to the metrics."""
        line = self._lines.get((queue, adapter))
        if line is None:
            line = self._lines[queue, adapter] = _Line(self._of, queue, adapter)
        line.enqueued.inc(sums.enqueued)
        line.claimed.inc(sum(sums.claimed))
        line.batch.observe_all(sums.claimed)
        line.waited.observe_all(sums.waited)
        line.pickup.observe_all(sums.pickups)
        line.handled.observe_all(sums.handled)
        for kind, count in sums.settled.items():
            counter = line.settled.get(kind)
            if counter is None:
                counter = line.settled[kind] = self._of.settled.labels(queue, adapter, kind)
            counter.inc(count)
        self._engines.refresh_if_due()
