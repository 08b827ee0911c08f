"""When adapters make their tables by themselves: where the schema does not exist or is empty, said in the log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.adapters.kombu.kombu_support import url_of


def _kombu(dsn: str, **options: Any) -> None:
    from kombu import Connection

    with Connection(url_of(dsn), transport_options={"max_retries": 1, **options}) as connection:
        connection.connect()


def _celery(dsn: str, **options: Any) -> None:
    from celery import Celery

    app = Celery("shop", backend=url_of(dsn), set_as_current=False)
    app.conf.result_backend_transport_options = options
    try:
        app.backend.store_result("id", 1, "SUCCESS")
    finally:
        app.close()


def _dramatiq(dsn: str, **options: Any) -> None:
    from pgqrs_dramatiq import PgqrsBroker

    broker = PgqrsBroker(dsn, **options)
    try:
        broker.declare_queue("default")
        broker.get_queue_message_counts("default")
    finally:
        broker.close()


ADAPTERS = {"kombu": _kombu, "celery": _celery, "dramatiq": _dramatiq}
Use = Callable[..., None]


@pytest.fixture(params=list(ADAPTERS))
def use(request: pytest.FixtureRequest) -> Use:
    """Connects with an adapter for the first time."""
    pytest.importorskip(request.param)
    return ADAPTERS[request.param]


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {row[0] for row in connection.execute("select tablename from pg_tables where schemaname = 'pgqrs'")}


@pytest.mark.parametrize("exists", [False, True], ids=["no schema", "an empty schema"])
def test_tables_are_made_in_an_empty_place_with_one_line_in_the_log(
    use: Use, pgqrs_dsn: str, caplog: pytest.LogCaptureFixture, exists: bool
) -> None:
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        database = connection.info.dbname
        if exists:
            connection.execute("create schema pgqrs")
    with caplog.at_level(logging.WARNING, "pgqrs"):
        use(pgqrs_dsn)
        use(pgqrs_dsn)

    assert "queues" in tables(pgqrs_dsn)
    (line,) = [one.getMessage() for one in caplog.records if "were made" in one.getMessage()]
    assert f"schema 'pgqrs' of database {database!r}" in line
    assert "create_schema=False" in line


def test_no_table_is_made_beside_those_of_something_else(use: Use, pgqrs_dsn: str) -> None:
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("create schema pgqrs create table invoices (n int)")

    with pytest.raises(Exception, match="tables of something else") as refused:
        use(pgqrs_dsn)

    assert "pgqrs install" in str(refused.value)
    assert tables(pgqrs_dsn) == {"invoices"}


def test_no_table_is_made_where_that_is_refused(use: Use, pgqrs_dsn: str) -> None:
    with pytest.raises(Exception, match="pgqrs install"):
        use(pgqrs_dsn, create_schema=False)

    assert tables(pgqrs_dsn) == set()


def test_kombu_makes_none_beside_those_of_something_else_even_if_told_to(pgqrs_dsn: str) -> None:
    pytest.importorskip("kombu")
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("create schema pgqrs create table invoices (n int)")

    with contextlib.suppress(Exception):
        _kombu(pgqrs_dsn, create_schema=True)

    assert tables(pgqrs_dsn) == {"invoices"}
