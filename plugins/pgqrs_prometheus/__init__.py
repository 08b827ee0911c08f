"""Prometheus metrics of queues, messages, connections and wake-ups. Needs the extra ``prometheus``.

Installed, it counts whatever the programs of this machine do with pgqrs, into ``prometheus_client``'s own registry. How to
have it scraped: ``docs/metrics.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from pgqrs_core.engine import Engine
    from pgqrs_prometheus.queues import QueueCollector

__all__ = ["watch_queues"]


def watch_queues(engine: Engine, *, registry: CollectorRegistry | None = None, seconds: float = 5.0) -> QueueCollector:
    """Add the gauges of all queues to a registry; one process of a system is enough.

    Args:
        engine: where the queues are, for instance ``client.engine``; it stays the caller's to close.
        registry: where to add them; the default one if None.
        seconds: for how many seconds one look at the database is used, however often it is scraped.

    Returns:
        What was added, for ``registry.unregister``.
    """
    # Whoever imports the package need not have the library.
    from prometheus_client import REGISTRY

    from pgqrs_prometheus.queues import QueueCollector

    collector = QueueCollector(engine, seconds=seconds)
    (registry or REGISTRY).register(collector)
    return collector
