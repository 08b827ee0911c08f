"""Registers Dramatiq's tables and says whether Dramatiq is there. Imports nothing but the core."""

from __future__ import annotations

from functools import partial
from typing import Final

from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl
from pgqrs_core.requirements import missing

__all__ = ["ADAPTER", "COMPONENT", "pgqrs_adapters", "pgqrs_migrations"]

#: The name in metrics and hooks, and the one under which the applied scripts are recorded.
ADAPTER: Final = "dramatiq"
COMPONENT: Final = "dramatiq"


@hookimpl
def pgqrs_adapters() -> AdapterInfo:
    """Describe the adapter."""
    return AdapterInfo(
        name=ADAPTER,
        version="0.1.0",
        summary="broker, results and rate limits for Dramatiq",
        check=partial(missing, "dramatiq", "dramatiq"),
    )


@hookimpl
def pgqrs_migrations() -> MigrationSource:
    """Name the tables of results and rate limits. They are installed even where Dramatiq is not: others share them."""
    return MigrationSource(COMPONENT, "pgqrs_dramatiq.sql.migrations")
