"""The demo's own tables, and every statement on them.

Nothing in the result table forbids a file to appear twice: that it does not is what the demo shows.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import psycopg
from psycopg import sql

from pgqrs_core.errors import PgqrsError
from pgqrs_native.demo.counting import FileCount
from pgqrs_native.demo.setting import APPLICATION, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DemoError",
    "Row",
    "break_connections",
    "count_handled",
    "count_workers",
    "create",
    "drop",
    "fetch_pickups",
    "fetch_rows",
    "insert_count",
    "insert_pickup",
    "insert_worker",
    "reserved",
]

#: By its comment the demo knows a schema as its own before it drops it.
_COMMENT: Final = "made by the command `pgqrs demo`, and dropped by it"

_CREATE: Final = """
create schema pgqrs_demo;
comment on schema pgqrs_demo is {};
create table pgqrs_demo.results (
  path     text    not null,  -- one row per file, if every message was handled once
  names    json    not null,  -- how often each name occurs
  error    text,              -- why counting stopped before the end of the file
  attempt  int     not null,  -- which delivery this was
  worker   int     not null   -- process id
);
create table pgqrs_demo.pickups (number int not null, started_at double precision not null);
create table pgqrs_demo.workers (worker int not null);
"""


class DemoError(PgqrsError):
    """The demo cannot run here; what it found was left alone."""


class Row(msgspec.Struct, frozen=True):
    """One row of the result table."""

    count: FileCount
    attempt: int
    worker: int


@contextmanager
def reserved(connection: psycopg.Connection) -> Iterator[None]:
    """Keep other demos out of this database, for as long as the connection lasts.

    Raises:
        DemoError: another demo is running.
    """
    found = connection.execute("select pg_try_advisory_lock(hashtextextended('pgqrs demo', 0))").fetchone()
    if found is None or not found[0]:
        raise DemoError("another `pgqrs demo` is running in this database")
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("select pg_advisory_unlock(hashtextextended('pgqrs demo', 0))")


def create(connection: psycopg.Connection) -> None:
    """Create the schema and the demo's tables."""
    with connection.transaction():
        connection.execute(sql.SQL(_CREATE).format(sql.Literal(_COMMENT)))


def drop(connection: psycopg.Connection) -> None:
    """Drop the schema with all that is in it, if there is one.

    Raises:
        DemoError: a schema of this name exists that no demo made.
    """
    found = connection.execute(
        "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = %s", [SCHEMA]
    ).fetchone()
    if found is None:
        return
    if found[0] != _COMMENT:
        raise DemoError(f"there is a schema {SCHEMA!r} that this command did not make; it was left alone")
    connection.execute("drop schema pgqrs_demo cascade")


def insert_count(connection: psycopg.Connection, count: FileCount, attempt: int, worker: int) -> None:
    """Write the result for one file."""
    # In ASCII: names may hold any letter, and not every database can store all of them.
    names = json.dumps(count.names)
    connection.execute(
        "insert into pgqrs_demo.results (path, names, error, attempt, worker) values (%s, %s, %s, %s, %s)",
        # A text in PostgreSQL cannot hold NUL, and an error may quote the file.
        [count.path, names, count.error and count.error.replace("\0", "\ufffd"), attempt, worker],
    )


def insert_pickup(connection: psycopg.Connection, number: int, started_at: float) -> None:
    """Write when the handler of a ping started."""
    connection.execute("insert into pgqrs_demo.pickups values (%s, %s)", [number, started_at])


def insert_worker(connection: psycopg.Connection, worker: int) -> None:
    """Say that a worker is about to take messages."""
    connection.execute("insert into pgqrs_demo.workers values (%s)", [worker])


def count_handled(connection: psycopg.Connection) -> int:
    """Return how many files have a result."""
    return _number(connection, "select count(distinct path) from pgqrs_demo.results")


def count_workers(connection: psycopg.Connection) -> int:
    """Return how many workers have come up so far."""
    return _number(connection, "select count(*) from pgqrs_demo.workers")


def fetch_rows(connection: psycopg.Connection) -> list[Row]:
    """Return the result table."""
    rows = connection.execute("select path, names::text, error, attempt, worker from pgqrs_demo.results")
    return [
        Row(FileCount(path, msgspec.json.decode(names, type=dict[str, int]), error), attempt, worker)
        for path, names, error, attempt, worker in rows
    ]


def fetch_pickups(connection: psycopg.Connection) -> list[tuple[int, float]]:
    """Return the number of each ping handled, and when its handler started."""
    return list(connection.execute("select number, started_at from pgqrs_demo.pickups"))


def break_connections(connection: psycopg.Connection) -> int:
    """Terminate every other connection of the demo to this database; return how many there were."""
    query = """
        select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = %s and datname = current_database() and pid <> pg_backend_pid()
    """
    return _number(connection, query, APPLICATION)


def _number(connection: psycopg.Connection, query: str, *parameters: object) -> int:
    found = connection.execute(query.encode(), parameters).fetchone()
    return int(found[0]) if found else 0
