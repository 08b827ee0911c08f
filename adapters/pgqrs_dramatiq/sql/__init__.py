"""The adapter's own statements and the scripts of its tables, read once."""

from __future__ import annotations

from typing import Final

from pgqrs_core.sql import read_migrations, read_queries

__all__ = ["MIGRATIONS", "queries"]

queries: Final = read_queries(__name__)
MIGRATIONS: Final = tuple(read_migrations(f"{__name__}.migrations"))
