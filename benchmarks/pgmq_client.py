"""PGMQ's own Python client, on the SQL-only objects that it carries: no extension is needed."""

from __future__ import annotations

import warnings
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

__all__ = ["install_pgmq", "open_pgmq", "pgmq_version"]


def pgmq_version() -> str:
    """Return the versions of the client and of its SQL objects.

    Raises:
        SystemExit: the client is not installed.
    """
    try:
        import pgmq
        from pgmq.install import get_embedded_sql_version
    except ImportError:
        raise SystemExit("this scenario compares with PGMQ's client: pip install pgmq==1.1.4") from None
    del pgmq
    from importlib.metadata import version

    return f"client {version('pgmq')}, SQL {get_embedded_sql_version()}"


def install_pgmq(dsn: str) -> None:
    """Create the schema ``pgmq`` and its functions."""
    from pgmq.install import install_pgmq_from_sql

    with psycopg.connect(dsn) as connection:
        install_pgmq_from_sql(conn=connection)


def open_pgmq(dsn: str) -> Any:
    """Return a client with the settings it has by default."""
    from pgmq import PGMQueue

    parts = conninfo_to_dict(dsn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PGMQueue(
            conn_string="",
            host=str(parts.get("host", "localhost")),
            port=str(parts.get("port", "5432")),
            database=str(parts.get("dbname", "postgres")),
            username=str(parts.get("user", "postgres")),
            password=str(parts.get("password", "")),
            init_extension=False,
        )
