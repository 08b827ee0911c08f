"""The statements of the result backend, and the scripts of its tables."""

from __future__ import annotations

from typing import Final

from pgqrs_core.sql import read_migrations, read_queries

__all__ = ["COMPONENT", "MIGRATIONS", "MIGRATIONS_PACKAGE", "queries"]

#: Under this name the applied scripts are recorded.
COMPONENT: Final = "celery"
MIGRATIONS_PACKAGE: Final = f"{__name__}.migrations"

queries: Final = read_queries(__name__)
MIGRATIONS: Final = tuple(read_migrations(MIGRATIONS_PACKAGE))
