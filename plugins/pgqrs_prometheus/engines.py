"""Connections and wake-ups of this process, as gauges.

Read at each scrape. Where `pgqrs metrics serve` is scraped instead of this process, nobody asks it: so they are read
whenever there is traffic, too, at most once a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from pgqrs_core.figures import EngineFigures, process_figures
from pgqrs_core.forks import Lock

__all__ = ["EngineGauges"]

#: Seconds between two looks while there is traffic.
_LOOK: Final = 1.0


class EngineGauges:
    """What all engines of this process do, added up. A collector that has no metrics, and brings others up to date."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # First, so that a scrape comes here before it reads the gauges.
        registry.register(self)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            # Those of several processes are added up as long as they live.
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")

        connections = gauge("pgqrs_pool_connections", "Connections open.", ("state",))
        self._idle, self._busy = connections.labels("idle"), connections.labels("busy")
        self._limit = gauge("pgqrs_pool_connections_limit", "Connections allowed.")
        self._listening = gauge("pgqrs_wakeup_listening", "Engines that are woken by notifications.")
        self._watched = gauge("pgqrs_wakeup_watched_queues", "Queues that somebody waits for.")
        self._counters = {
            "notifications": Counter(
                "pgqrs_wakeup_notifications_total", "Notifications of watched queues.", registry=registry
            ),
            "probes": Counter("pgqrs_wakeup_probes_total", "Looks by the wake-up connection.", registry=registry),
            "losses": Counter("pgqrs_wakeup_losses_total", "Times that connection broke.", registry=registry),
        }
        self._lock = Lock()
        self._seen: dict[int, EngineFigures] = {}
        self._due = 0.0

    def describe(self) -> Iterable[Any]:
        """Nothing."""
        return ()

    def collect(self) -> Iterable[Any]:
        """Bring the gauges up to date."""
        self.refresh()
        return ()

    def refresh_if_due(self) -> None:
        """Bring the gauges up to date unless that was done within a second. Costs next to nothing."""
        if time.monotonic() >= self._due:
            self.refresh()

    def refresh(self) -> None:
        """Bring the gauges up to date."""
        with self._lock:
            self._due = time.monotonic() + _LOOK
            figures = process_figures()
            self._idle.set(sum(one.pool.idle for one in figures))
            self._busy.set(sum(one.pool.open - one.pool.idle for one in figures))
            self._limit.set(sum(one.pool.limit for one in figures))
            self._listening.set(sum(bool(one.listening) for one in figures))
            self._watched.set(sum(one.watched for one in figures))
            for name, counter in self._counters.items():
                counter.inc(sum(self._news(one, name) for one in figures))
            self._seen = {one.number: one for one in figures}

    def _news(self, figures: EngineFigures, name: str) -> int:
        """Return by how many a count of one engine has grown; in a forked child it begins anew."""
        now: int = getattr(figures, name)
        before = self._seen.get(figures.number)
        past: int = getattr(before, name) if before is not None else 0
        return now - past if now >= past else now
