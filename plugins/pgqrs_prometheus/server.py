"""An HTTP endpoint for Prometheus: the gauges of all queues, and what the programs of this machine have counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from pgqrs_core.engine import Engine
from pgqrs_core.errors import ConfigurationError
from pgqrs_prometheus.queues import QueueCollector

__all__ = ["DIRECTORY", "endpoint", "make_registry"]

#: The variable that names the directory in which processes share their metrics.
DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


def make_registry(engine: Engine, *, seconds: float) -> CollectorRegistry:
    """Return a registry of all queues and, if processes share their metrics, of these.

    Raises:
        ConfigurationError: the shared directory does not exist.
    """
    registry = CollectorRegistry()
    shared = os.environ.get(DIRECTORY)
    if shared:
        if not Path(shared).is_dir():
            raise ConfigurationError(
                f"{DIRECTORY} names {shared!r}, which is no directory; make it before programs start"
            )
        MultiProcessCollector(registry, shared)  # type: ignore[no-untyped-call]
    registry.register(QueueCollector(engine, seconds=seconds))
    return registry


@contextmanager
def endpoint(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serve a registry as long as the block runs; yield the port, which is a free one if 0 was asked for.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
