"""The transport's own statements, read once."""

from __future__ import annotations

from typing import Final

from pgqrs_core.sql import read_queries

__all__ = ["queries"]

queries: Final = read_queries(__name__)
