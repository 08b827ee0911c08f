"""Prometheus metrics of queues, messages, connections and wake-ups. Needs the extra ``prometheus``.

Installed, it counts whatever the programs of this machine do with pgqrs, into ``prometheus_client``'s own registry. How to
have it scraped: ``docs/metrics.md``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from pgqrs_core.engine import Engine
    from pgqrs_prometheus.celery_events import CeleryListener
    from pgqrs_prometheus.queues import QueueCollector

__all__ = ["watch_celery", "watch_queues"]


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


def watch_celery(engine: Engine, *, registry: CollectorRegistry | None = None, seconds: float = 5.0) -> CeleryListener:
    """Add the metrics of celery-exporter to a registry, under its names; one process of a system is enough.

    It listens to the events of Celery's workers, which send them if they are started with ``-E``, and asks them once in
    ``seconds`` which queues they consume from.

    Args:
        engine: where the tables of the broker ``pgqrs://`` are; it stays the caller's to close.
        registry: where to add them; the default one if None.
        seconds: the time between two inspections, 1 at the least, and for how long lengths of queues are used again.

    Returns:
        What listens, to be closed. Its ``metrics`` are what was added, for ``registry.unregister``.

    Raises:
        ConfigurationError: Celery is not installed.
    """
    if find_spec("celery") is None:
        raise ConfigurationError(f"metrics of Celery need it: {install_command('celery')}")
    from prometheus_client import REGISTRY

    from pgqrs_prometheus.celery_events import CeleryListener

    listener = CeleryListener(engine, seconds=seconds)
    (registry or REGISTRY).register(listener.metrics)
    return listener
