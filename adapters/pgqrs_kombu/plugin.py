"""Registers the transport with the core: an adapter, and tables of its own."""

from __future__ import annotations

from importlib.util import find_spec

from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl

__all__ = ["ADAPTER", "COMPONENT", "pgqrs_adapters", "pgqrs_migrations"]

#: The name in metrics and hooks, and the one under which the applied scripts are recorded.
ADAPTER = "kombu"
COMPONENT = "kombu"


def _check() -> str | None:
    return None if find_spec("kombu") else "kombu is not installed: pip install 'pgqrs-py[kombu]'"


@hookimpl
def pgqrs_adapters() -> AdapterInfo:
    """Describe the transport."""
    return AdapterInfo(
        name=ADAPTER, version="0.1.0", summary="the transport pgqrs:// for Kombu and Celery", check=_check
    )


@hookimpl
def pgqrs_migrations() -> MigrationSource:
    """Bring the tables of exchanges, bindings and ephemeral queues."""
    return MigrationSource(COMPONENT, "pgqrs_kombu.migrations")
