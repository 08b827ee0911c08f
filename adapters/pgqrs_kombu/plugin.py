"""Registers the transport with the core: an adapter, and tables of its own."""

from __future__ import annotations

from functools import partial

from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl
from pgqrs_core.requirements import missing

__all__ = ["ADAPTER", "COMPONENT", "pgqrs_adapters", "pgqrs_migrations"]

#: The name in metrics and hooks, and the one under which the applied scripts are recorded.
ADAPTER = "kombu"
COMPONENT = "kombu"


@hookimpl
def pgqrs_adapters() -> AdapterInfo:
    """Describe the transport."""
    return AdapterInfo(
        name=ADAPTER,
        version="0.1.0",
        summary="the transport pgqrs:// for Kombu and Celery",
        check=partial(missing, "kombu", "kombu"),
    )


@hookimpl
def pgqrs_migrations() -> MigrationSource:
    """Bring the tables of exchanges, bindings and ephemeral queues."""
    return MigrationSource(COMPONENT, "pgqrs_kombu.migrations")
