"""The gauges of all queues, read from the database when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from pgqrs_core.depths import Depths
from pgqrs_core.messages import Metrics

if TYPE_CHECKING:
    from prometheus_client import Metric

    from pgqrs_core.engine import Engine

__all__ = ["QueueCollector"]


class QueueCollector:
    """Looks at all queues at most once in ``seconds``, however often and by whom it is scraped."""

    def __init__(self, engine: Engine, *, seconds: float = 5.0) -> None:
        self._depths = Depths(engine, seconds=seconds)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering it asks no database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges; without the database only that it is away."""
        found = self._depths.look()
        up = GaugeMetricFamily("pgqrs_up", "Whether the queues could be looked at.")
        up.add_metric((), float(found is not None))
        return [up, *_families(found or ())]


def _families(found: Sequence[Metrics]) -> Iterable[Metric]:
    messages = GaugeMetricFamily(
        "pgqrs_queue_messages", "Messages now; above 10,000 an estimate.", labels=("queue", "state")
    )
    oldest = GaugeMetricFamily(
        "pgqrs_queue_oldest_ready_seconds", "Age of the oldest message that could be claimed.", labels=("queue",)
    )
    paused = GaugeMetricFamily("pgqrs_queue_paused", "Whether the queue gives no messages.", labels=("queue",))
    up = GaugeMetricFamily("pgqrs_queue_up", "Whether the queue could be looked at.", labels=("queue",))
    for one in found:
        up.add_metric((one.queue,), float(one.error is None))
        if one.error is not None:
            continue
        for state in ("ready", "delayed", "in_flight", "expired", "dead"):
            messages.add_metric((one.queue, state), getattr(one, state))
        oldest.add_metric((one.queue,), one.oldest_ready_seconds or 0.0)
        paused.add_metric((one.queue,), float(one.paused))
    return up, messages, oldest, paused
