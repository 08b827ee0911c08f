"""Objects of others: traps in the search path, and installations side by side in one database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from kombu import Connection
from pgqrs_native import Client
from psycopg import sql

import pgqrs_core.sql
from pgqrs_core.config import Config
from pgqrs_core.errors import NotPermitted, QueueNotFound
from pgqrs_core.plugins import default_plugins
from pgqrs_core.sql import read_migrations, read_queries

from .estate import Estate
from .test_adapter_roles import app_at, received, url_of

#: Operators of PostgreSQL's that a statement of ours might pick by the types of its operands.
OPERATORS = ("=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "/", "~", "||")
TYPES = ("int2", "int4", "int8", "float8", "text", "timestamptz", "interval", "xid8", "json")


def functions_used() -> set[str]:
    """Every name that stands before a parenthesis in our statements."""
    texts = [query.text for query in pgqrs_core.sql.queries.values()]
    for package in ("pgqrs_kombu.sql", "pgqrs_celery.sql"):
        texts += [query.text for query in read_queries(package).values()]
    for package in (
        "pgqrs_core.sql.migrations",
        *(source.package for source in default_plugins(frozenset()).migrations),
    ):
        texts += [block.text for step in read_migrations(package) for block in step.blocks.values()]
    return set(re.findall(r"\b([a-z_]+[a-z0-9_]*)\s*\(", "\n".join(texts))) | {"set_config", "pg_backend_pid"}


def set_traps(dsn: str) -> int:
    """Put a twin of all that we call into ``public``, and let ``public`` be searched first; return how many there are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "create function public.trap() returns void language plpgsql as $$ begin raise 'trapped'; end $$"
        )
        found = connection.execute(
            "select proname, pg_get_function_identity_arguments(oid), pg_get_function_result(oid) from pg_proc "
            "where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and proname = any(%s) "
            "and not proretset and pg_get_function_arguments(oid) !~ '(VARIADIC|OUT|internal|cstring|any|\")'"
            "and pg_get_function_result(oid) !~ '(internal|cstring|any|trigger|\")'",
            [sorted(functions_used())],
        ).fetchall()
        for name, arguments, result in found:
            connection.execute(
                sql.SQL(
                    f"create function public.{{}}({arguments}) returns {result} language plpgsql as $$ "
                    "begin raise 'trapped'; end $$"
                ).format(sql.Identifier(name))
            )
        # What PostgreSQL has for other types only: an exact match elsewhere would win over it.
        connection.execute(
            "create function public.hashtext(name) returns int language plpgsql as $$ begin raise 'trapped'; end $$"
        )
        for number, (left, right) in enumerate((left, right) for left in TYPES for right in TYPES):
            connection.execute(
                f"create function public.trap_{number}({left}, {right}) returns bool language plpgsql "
                "as $$ begin raise 'trapped'; end $$".encode()
            )
            for operator in OPERATORS:
                connection.execute(
                    f"create operator public.{operator} (function = public.trap_{number}, leftarg = {left}, "
                    f"rightarg = {right})".encode()
                )
        for kind in ("text", "json", "bytea", "timestamptz", "float8"):
            connection.execute(f"create domain public.{kind} as pg_catalog.{kind} check (false)".encode())
        for table in ("queues", "migrations", "q_jobs", "a_jobs", "waiters", "leaders", "pg_class", "pg_namespace"):
            connection.execute(f"create table public.{table} (trapped int)".encode())
        database = connection.execute("select current_database()").fetchone()[0]  # type: ignore[index]
        connection.execute(
            sql.SQL("alter database {} set search_path = public, pg_catalog").format(sql.Identifier(database))
        )
        return len(found)


def use_everything(client: Client) -> None:
    """Call what there is, once."""
    admin, consumer, producer = client.admin, client.consumer, client.producer
    admin.install()
    admin.create_queue("jobs", archive_retention_seconds=1.0, dead_retention_seconds=1.0)
    producer.enqueue("jobs", {"a": 1}, headers={"h": 1})
    producer.batch_enqueue("jobs", range(8), priority=3, ttl=60)
    producer.batch_enqueue("jobs", [1], delay=0.01)
    messages = consumer.read_batch("jobs", count=8, wait=1)
    assert len(messages) == 8
    consumer.extend_lock(messages[0], 60)
    consumer.dequeue(messages[0])
    consumer.archive(messages[1])
    consumer.nack(messages[2])
    consumer.nack(messages[3], bury=True, error="bad")
    consumer.release(messages[4])
    admin.peek("jobs")
    admin.list_dead("jobs")
    admin.replay_dead("jobs")
    admin.list_archive("jobs")
    admin.replay_archive("jobs", [messages[1].id])
    admin.all_queues_metrics()
    admin.alter_queue("jobs", max_attempts=9)
    admin.pause_queue("jobs")
    admin.resume_queue("jobs")
    assert consumer.read("jobs", wait=0.1) is not None
    admin.purge_queue("jobs")
    admin.maintain()
    with pytest.raises(QueueNotFound):
        client.producer.enqueue("jbos", 1)


def test_nothing_that_others_put_into_the_path_is_called(pgqrs_dsn: str) -> None:
    assert set_traps(pgqrs_dsn) > 20
    with psycopg.connect(pgqrs_dsn) as connection, pytest.raises(psycopg.errors.RaiseException, match="trapped"):
        connection.execute("select statement_timestamp()")

    with Client(Config.load(url=pgqrs_dsn, env={})) as client:
        use_everything(client)
        client.admin.uninstall()


def test_the_adapters_are_not_trapped_either(pgqrs_dsn: str) -> None:
    set_traps(pgqrs_dsn)

    with Connection(url_of(pgqrs_dsn), transport_options={"create_schema": True}) as connection:
        connection.SimpleQueue("tasks").put({"a": 1})
        assert received(connection, connection.SimpleQueue("tasks").queue) == {"a": 1}
    app = app_at(pgqrs_dsn)
    app.backend.store_result("one", 42, "SUCCESS")
    assert app.AsyncResult("one").get(timeout=10) == 42


@pytest.fixture
def neighbours(pgqrs_dsn: str) -> Iterator[tuple[Estate, Client]]:
    """Two installations in one database: programs of the first, and the owner of the second."""
    first = Estate(pgqrs_dsn)
    other = first.client(pgqrs_dsn, schema="other")
    other.admin.install(roles=True, role_prefix=f"{first.prefix}_o")
    other.admin.create_queue("jobs")
    yield first, other
    other.admin.uninstall(roles=True)
    first.close()


def test_installations_side_by_side_share_nothing(neighbours: tuple[Estate, Client]) -> None:
    first, other = neighbours
    first.owner.producer.enqueue("jobs", "of the first")

    assert other.consumer.read("jobs") is None
    assert other.admin.queue_metrics("jobs").ready == 0
    assert first.owner.engine.doorbell.channel != other.engine.doorbell.channel


@pytest.mark.parametrize("duty", ["producer", "consumer", "observer", "admin"])
def test_a_role_of_one_installation_is_nobody_in_the_other(duty: str, neighbours: tuple[Estate, Client]) -> None:
    first, _ = neighbours
    intruder: Any = first.client(first.url(duty), schema="other")

    for attempt in (
        lambda: intruder.admin.list_queues(),
        lambda: intruder.producer.enqueue("jobs", 1),
        lambda: intruder.consumer.read("jobs"),
        lambda: intruder.admin.create_queue("more"),
    ):
        with pytest.raises(NotPermitted, match="permission denied for schema other"):
            attempt()


def test_a_queue_is_never_found_in_another_schema(neighbours: tuple[Estate, Client]) -> None:
    first, other = neighbours
    first.owner.admin.create_queue("only here")

    with pytest.raises(QueueNotFound):
        other.producer.enqueue("only here", 1)
