"""As much of a dialect for psycopg 3 as the tests need under SQLAlchemy 1.4, which brings none.

Applications on 1.4 that share transactions have one like it. `tests/conftest.py` registers it as ``postgresql+psycopg``.
"""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy.dialects.postgresql.base import PGDialect

__all__ = ["Dialect"]


class Dialect(PGDialect):  # type: ignore[misc]
    driver = "psycopg"
    default_paramstyle = "pyformat"
    supports_statement_cache = True

    @classmethod
    def dbapi(cls) -> Any:
        return psycopg

    def create_connect_args(self, url: Any) -> Any:
        return [], {**url.translate_connect_args(username="user", database="dbname"), **url.query}

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(e, psycopg.OperationalError) and connection is not None and bool(connection.closed)
