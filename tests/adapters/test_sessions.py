"""Settings that a role, a database, an environment or a caller's connection may have change nothing that pgqrs does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqrs_core.errors import InvalidArgument, PgqrsError, ServerError
from pgqrs_core.testing import with_database

NAME = "größe \\ ✓ 'x' \"y\""
KEY = "schlüssel ✓"
PAYLOAD = {"text": "NULL ✓ ñ \\ '", "number": 0.1 + 0.2}
HEADERS = {"ключ": "значение", "null": None}

#: Settings that are not tried, and why.
LEFT_OUT = {
    "default_transaction_read_only": "nothing can be written then, which is said: see tests/postgres/test_read_only.py",
    "transaction_read_only": "the same",
    "session_replication_role": "switches foreign keys off, for those who replicate",
    "default_table_access_method": "of tables that are made",
    "default_toast_compression": "may name what the server was not built with",
    "client_min_messages": "only says more",
    "zero_damaged_pages": "of broken disks",
    "ignore_checksum_failure": "of broken disks",
    "ignore_invalid_pages": "of broken disks",
    "wal_compression": "may name what the server was not built with",
    "debug_discard_caches": "takes minutes",
    "track_activities": "what is running is looked up there",
    "transaction_isolation": "is no setting of a session",
    "transaction_deferrable": "is no setting of a session",
    "jit_dump_bitcode": "writes files",
    "jit_profiling_support": "is no setting of a session",
    "jit_debugging_support": "is no setting of a session",
    "trace_sort": "writes to the log",
    "log_statement": "writes to the log",
    "log_parser_stats": "writes to the log",
    "log_planner_stats": "writes to the log",
    "log_executor_stats": "writes to the log",
    "log_statement_stats": "writes to the log",
}
#: Odd values of settings that are lists, or whose values nobody lists.
ODD = {
    "DateStyle": ["German, DMY", "SQL, MDY", "Postgres, DMY"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "WIN1251"],
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns"],
    "search_path": ["nowhere", ""],
    "lc_numeric": ["C"],
    "extra_float_digits": ["-15", "3"],
    "array_nulls": ["off"],
    "restrict_nonsystem_relation_kind": ["view,foreign-table"],
    "statement_timeout": ["1h"],
    "work_mem": ["64kB"],
    "from_collapse_limit": ["1"],
    "join_collapse_limit": ["1"],
    "cursor_tuple_fraction": ["0"],
    "geqo_threshold": ["2"],
    "cpu_tuple_cost": ["100"],
    "random_page_cost": ["1000"],
    "gin_pending_list_limit": ["64"],
    "temp_buffers": ["100"],
    "debug_parallel_query": ["on", "regress"],
    "force_parallel_mode": ["on", "regress"],
    "plpgsql.variable_conflict": ["use_column", "use_variable"],
    "plpgsql.extra_errors": ["all"],
}


def round_trip(client: Any, connection: Any = None, name: str = NAME) -> dict[str, Any]:
    """Do a little of everything, what takes a connection on ``connection``, and return what can be seen of it."""
    producer, consumer, admin = client.producer, client.consumer, client.admin
    at = datetime.now(timezone.utc) - timedelta(hours=1)
    seen: dict[str, Any] = {}
    queue = f"{name}{secrets.token_hex(4)}"
    admin.create_queue(queue, max_attempts=1, archive=True)
    with in_transaction(connection):
        producer.enqueue(queue, PAYLOAD, headers=HEADERS, connection=connection)
        first = producer.enqueue(queue, PAYLOAD, idempotency_key=KEY, ttl=0.75e4, connection=connection)
        seen["again"] = producer.enqueue(queue, PAYLOAD, idempotency_key=KEY, connection=connection) - first
        keys = [None, "NULL", KEY]
        seen["ids"] = [
            id_ - first
            for id_ in producer.batch_enqueue(queue, [PAYLOAD] * 3, idempotency_keys=keys, connection=connection)
        ]
        producer.enqueue(queue, PAYLOAD, at=at, connection=connection)
    messages = sorted(consumer.read_batch(queue, count=10), key=lambda message: message.id)
    now = datetime.now(timezone.utc)
    seen["messages"] = [
        (one.payload, one.headers, one.content_type, one.priority, abs((one.enqueued_at - now).total_seconds()) < 600)
        for one in messages
    ]
    seen["names"] = [one.name for one in admin.list_queues()].count(queue)
    with in_transaction(connection):
        consumer.dequeue(messages[0], connection=connection)
        consumer.archive(messages[1], connection=connection)
    consumer.nack(messages[2], error=ValueError(KEY))
    consumer.extend_lock(messages[3], 60.0)
    consumer.release(messages[3])
    seen["errors"] = [one.error for one in admin.list_dead(queue)]
    seen["archive"] = [
        (one.body, abs((one.archived_at - now).total_seconds()) < 600) for one in admin.list_archive(queue)
    ]
    metrics = admin.queue_metrics(queue)
    seen["counts"] = (metrics.ready, metrics.in_flight, metrics.dead, metrics.archived)
    admin.delete_queue(queue)
    return seen


@contextmanager
def in_transaction(connection: Any) -> Iterator[None]:
    if connection is None:
        yield
    else:
        with connection.transaction():
            yield


def odd_settings(dsn: str) -> dict[str, list[str]]:
    """Every setting that a role may have, and its values other than the default."""
    with psycopg.connect(dsn) as connection:
        known = connection.execute(
            "select name, vartype, enumvals, boot_val from pg_settings where context in ('user', 'superuser')"
        ).fetchall()
    found: dict[str, list[str]] = {}
    for name, kind, values, usual in known:
        if name in LEFT_OUT:
            continue
        if name in ODD:
            found[name] = ODD[name]
        elif kind == "bool":
            found[name] = ["off" if usual == "on" else "on"]
        elif kind == "enum":
            found[name] = [value for value in values if value != usual]
    return found


def rounds(settings: dict[str, list[str]]) -> list[dict[str, str]]:
    """Few sessions in which each value of each setting occurs."""
    longest = max(map(len, settings.values()))
    return [{name: values[n % len(values)] for name, values in settings.items()} for n in range(longest)]


def with_settings(dsn: str, settings: dict[str, str]) -> str:
    """An address whose sessions begin with these settings, as if the role had them."""
    options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())
    return make_conninfo(dsn, options=options)


@pytest.fixture
def dsn(pgqrs_dsn: str) -> str:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
    return pgqrs_dsn


@pytest.fixture
def expected(dsn: str) -> dict[str, Any]:
    with Client(dsn) as client:
        return round_trip(client)


@pytest.fixture(params=["session", "pooler"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether sessions are ours, or lent by a pooler for a transaction: then settings go with each of these."""
    if request.param == "pooler":
        monkeypatch.setattr("pgqrs_core.drivers.session.BACKEND", "select 0")
        monkeypatch.setattr("pgqrs_core.drivers.session._announced", ["announced"])
    return str(request.param)


def works(dsn: str, settings: dict[str, str], expected: dict[str, Any]) -> bool:
    try:
        with Client(with_settings(dsn, settings)) as client:
            return round_trip(client) == expected
    except PgqrsError:
        return False


def culprits(dsn: str, settings: dict[str, str], expected: dict[str, Any]) -> list[str]:
    return [f"{name} = {value}" for name, value in settings.items() if not works(dsn, {name: value}, expected)]


@pytest.mark.usefixtures("mode")
def test_no_setting_of_a_role_changes_what_is_stored_and_read(dsn: str, expected: dict[str, Any]) -> None:
    for settings in rounds(odd_settings(dsn)):
        if not works(dsn, settings, expected):
            guilty = culprits(dsn, settings, expected)
            assert not guilty
            with Client(with_settings(dsn, settings)) as client:
                assert round_trip(client) == expected


def test_a_setting_of_a_role_is_what_options_stand_for(dsn: str, expected: dict[str, Any]) -> None:
    settings = {"datestyle": "German", "client_encoding": "latin1", "array_nulls": "off"}
    database = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(f'alter database "{database}" set {name} = {value}'.encode())

    with Client(dsn) as client:
        assert round_trip(client) == expected


@pytest.mark.usefixtures("mode")
def test_the_encoding_in_the_environment_is_not_ours(
    dsn: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")

    with Client(dsn) as client:
        assert round_trip(client) == expected


def test_no_setting_of_a_callers_connection_changes_it_either(dsn: str, expected: dict[str, Any]) -> None:
    settings = odd_settings(dsn)
    del settings["array_nulls"]
    # The next test is of those that cannot hold all characters.
    settings["client_encoding"] = ["SQL_ASCII"]
    with Client(dsn) as client:
        for one in rounds(settings):
            with psycopg.connect(with_settings(dsn, one)) as connection:
                assert round_trip(client, connection) == expected


def test_a_key_may_hold_what_the_encoding_of_a_callers_connection_cannot(dsn: str) -> None:
    with Client(dsn) as client, psycopg.connect(dsn, client_encoding="latin1") as connection:
        client.admin.create_queue("größe")
        first = client.producer.enqueue("größe", {}, headers={"✓": 1}, idempotency_key="✓", connection=connection)
        connection.commit()
        assert client.producer.enqueue("größe", {}, idempotency_key="✓") == first


def test_a_callers_connection_that_takes_nulls_for_words_is_refused_where_it_matters(dsn: str) -> None:
    with Client(dsn) as client, psycopg.connect(dsn) as connection:
        client.admin.create_queue("jobs")
        connection.execute("set array_nulls = off")

        client.producer.enqueue("jobs", {}, connection=connection)
        with pytest.raises(InvalidArgument, match="set array_nulls = on"):
            client.producer.batch_enqueue("jobs", [1, 2], idempotency_keys=[None, "a"], connection=connection)
        connection.commit()

        assert client.admin.queue_metrics("jobs").ready == 1


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
@pytest.mark.usefixtures("mode")
def test_databases_of_other_encodings(pgqrs_server: str, encoding: str) -> None:
    name = f"pgqrs_{encoding.lower()}_{secrets.token_hex(4)}"
    fits = "größe ' \\"
    with psycopg.connect(pgqrs_server, autocommit=True) as connection:
        connection.execute(f"create database {name} template template0 encoding '{encoding}' locale 'C'".encode())
    try:
        dsn = with_database(pgqrs_server, name)
        with Client(dsn) as client, psycopg.connect(dsn) as connection:
            client.admin.install()
            if encoding == "SQL_ASCII":
                assert round_trip(client) == round_trip(client, connection)
                return
            client.admin.create_queue(fits)
            client.producer.enqueue(fits, PAYLOAD, idempotency_key=fits, headers={"größe": 1})
            message = client.consumer.read(fits)
            assert message is not None
            assert (message.payload, message.headers) == (PAYLOAD, {"größe": 1})
            # What the database cannot hold is refused, and nothing else is stored in its place.
            with pytest.raises(ServerError, match="LATIN1"):
                client.admin.create_queue(NAME)
            first = client.producer.enqueue(fits, {}, idempotency_key="✓")
            assert client.producer.enqueue(fits, {}, idempotency_key="✓") == first
            assert [one.name for one in client.admin.list_queues()] == [fits]
    finally:
        with psycopg.connect(pgqrs_server, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
