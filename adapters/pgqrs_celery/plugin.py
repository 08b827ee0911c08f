"""Registers Celery's tables and says whether Celery is there. Imports nothing but the core."""

from __future__ import annotations

from functools import partial

from pgqrs_core.hookspecs import AdapterInfo, MigrationSource, hookimpl
from pgqrs_core.requirements import missing

__all__ = ["pgqrs_adapters", "pgqrs_migrations"]


@hookimpl
def pgqrs_adapters() -> AdapterInfo:
    """Describe the adapter."""
    return AdapterInfo(
        name="celery",
        version="0.1.0",
        summary="result backend pgqrs:// for Celery: results, groups and chords",
        check=partial(missing, "celery", "celery"),
    )


@hookimpl
def pgqrs_migrations() -> MigrationSource:
    """Name the tables of results, groups and chords. They are installed even where Celery is not: others share them."""
    return MigrationSource(component="celery", package="pgqrs_celery.sql.migrations")
