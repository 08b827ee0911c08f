"""The metrics: names, labels, buckets. ``dashboard.json`` and ``docs/metrics.md`` use these names."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase

__all__ = ["BulkHistogram", "Instruments", "LateCounter"]

#: Seconds, from a pickup by notification to a backlog of a day.
_WAITS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LABELS: Final = ("queue", "adapter")
_Metric = TypeVar("_Metric", bound="Late")


def _nothing() -> None:
    """Nothing is waiting to be counted."""


class Late(MetricWrapperBase):
    """A metric that is brought up to date before it is read."""

    refresh: Callable[[], None] = staticmethod(_nothing)

    def collect(self) -> Iterable[Metric]:
        """Return the samples."""
        self.refresh()
        return super().collect()


class LateCounter(Late, Counter):
    """A counter of that kind."""


class BulkHistogram(Late, Histogram):
    """A histogram that takes many values at once, at a fraction of the cost of one call for each."""

    def observe_all(self, values: list[int] | list[float]) -> None:
        """Observe every value, none of them negative; the list is sorted by that."""
        if not values:
            return
        values.sort()
        self._sum.inc(sum(values))
        place = 0
        for bucket, bound in zip(self._buckets, self._upper_bounds):
            upto = bisect_right(values, bound, place)
            if upto > place:
                bucket.inc(upto - place)
                place = upto
            if place == len(values):
                break


class Instruments:
    """The metrics of messages, in one registry; ``refresh`` brings them up to date."""

    def __init__(self, registry: CollectorRegistry = REGISTRY, refresh: Callable[[], None] = _nothing) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = _LABELS) -> LateCounter:
            return late(LateCounter(name, text, labels, registry=registry))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> BulkHistogram:
            return late(BulkHistogram(name, text, _LABELS, buckets=buckets, registry=registry))

        def late(made: _Metric) -> _Metric:
            made.refresh = refresh
            return made

        self.enqueued = counter("pgqrs_messages_enqueued_total", "Messages written and committed.")
        self.claimed = counter("pgqrs_messages_claimed_total", "Messages claimed; a retry is claimed again.")
        self.settled = counter(
            "pgqrs_messages_settled_total",
            "What became of claimed messages: acked, archived, nacked, dead, released, lost (the lease).",
            (*_LABELS, "outcome"),
        )
        self.batch = histogram("pgqrs_claim_batch_size", "Messages per claim that found something.", _SIZES)
        self.waited = histogram(
            "pgqrs_time_in_queue_seconds", "From enqueue to claim; delays and earlier attempts included.", _WAITS
        )
        self.pickup = histogram(
            "pgqrs_pickup_latency_seconds",
            "From enqueue to the first claim, of messages that were due at once.",
            _WAITS,
        )
        self.handled = histogram("pgqrs_handler_seconds", "Time in the handler.", _SECONDS)
