"""Backups: a dump in each form is restored as docs/backup.md says, and what went wrong is found and mended."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client
from psycopg.conninfo import make_conninfo

from pgqrs_core import installations
from tests.adapters.command_support import Shell
from tests.adapters.kombu.kombu_support import url_of
from tests.support.dumps import Backup, replace_database

#: A name that is not that of its table.
ODD = "Invoices of the shop"
RESTORE = ("--clean", "--if-exists", "--single-transaction", "--exit-on-error")
PSQL_RESTORE = ("--single-transaction", "-v", "ON_ERROR_STOP=1")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)
    return Shell(lambda: tuple(capsys.readouterr()))  # type: ignore[arg-type,return-value]


@pytest.fixture
def other(pgqrs_server: str, pgqrs_dsn: str) -> Iterator[str]:
    """Another, empty database."""
    from pgqrs_core.testing import with_database

    name = psycopg.conninfo.conninfo_to_dict(pgqrs_dsn)["dbname"] + "_other"
    with psycopg.connect(pgqrs_server, autocommit=True) as connection:
        connection.execute(f"create database {name} template template0".encode())
        yield with_database(pgqrs_server, name)
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def full(pgqrs_dsn: str, shell: Shell) -> str:
    """A database with messages of the native client, in an archive, too, and what Celery and Dramatiq leave."""
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        for name in ("jobs", ODD):
            client.admin.create_queue(name, archive=True)
            client.producer.enqueue(name, {"in": name}, idempotency_key="k")
            client.producer.enqueue(name, "archived")
            for message in client.consumer.read_batch(name, count=2):
                if message.payload == "archived":
                    client.consumer.archive(message)
                else:
                    client.consumer.release(message)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("create table public.orders (n int)")
    _use_celery(pgqrs_dsn)
    return pgqrs_dsn


def _use_celery(dsn: str) -> None:
    """Send a task and store a result, as a process does that has just begun."""
    celery = pytest.importorskip("celery")
    installations.forget_all()
    app = celery.Celery("app", broker=url_of(dsn), backend=url_of(dsn), set_as_current=False)
    with app.connection_for_write() as connection:
        app.send_task("task", connection=connection)
    app.backend.store_result("t", 1, "SUCCESS")
    app.close()


def content(dsn: str, name: str = "jobs") -> tuple[list[Any], list[Any]]:
    """The payloads of a queue, and of its archive."""
    with Client(dsn) as client:
        ready = [message.payload for message in client.consumer.read_batch(name, count=10)]
        return ready, [message.id for message in client.admin.list_archive(name)]


def problems(shell: Shell, *words: str) -> list[str]:
    """What the doctor finds broken."""
    found = shell("doctor", "--json", *words).document["findings"]
    return [one["summary"] for one in found if one["status"] == "fail"]


@pytest.mark.parametrize(
    ("plain", "dump", "restore"),
    [
        (False, (), RESTORE),
        (False, ("-n", "pgqrs"), RESTORE),
        (True, ("--clean", "--if-exists"), PSQL_RESTORE),
        (True, ("--clean", "--if-exists", "-n", "pgqrs"), PSQL_RESTORE),
    ],
    ids=["custom", "custom, one schema", "plain", "plain, one schema"],
)
def test_a_backup_is_restored_into_an_empty_database_and_over_tables_that_were_made_meanwhile(
    full: str, other: str, shell: Shell, tmp_path: Path, plain: bool, dump: tuple[str, ...], restore: tuple[str, ...]
) -> None:
    backup = Backup(full, tmp_path / "dump", *dump, plain=plain)
    backup.restore(other, *restore)
    assert problems(shell, "--url", other) == []
    assert content(other) == ([{"in": "jobs"}], [2])
    assert content(other, ODD) == ([{"in": ODD}], [2])
    with Client(other) as client:
        # What was stored once is not stored again, and ids go on.
        client.producer.enqueue("jobs", "again", idempotency_key="k")
        assert client.producer.enqueue("jobs", "next") > 2
        assert client.admin.queue_metrics("jobs").ready == 1

    # A program that began in between has made tables, and rows in them.
    replace_database(full)
    _use_celery(full)
    backup.restore(full, *restore)

    assert problems(shell) == []
    assert content(full) == ([{"in": "jobs"}], [2])


def test_what_a_restore_over_tables_that_were_made_meanwhile_has_left_is_found_and_mended(
    full: str, shell: Shell, tmp_path: Path
) -> None:
    backup = Backup(full, tmp_path / "dump")
    replace_database(full)
    _use_celery(full)
    with psycopg.connect(full, autocommit=True) as connection:
        # Of another make, and none of ours.
        connection.execute("create table pgqrs.q_letters (n int)")
        connection.execute("drop view pgqrs.v_celery")
        connection.execute("drop table pgqrs.q_celery")
    backup.restore(full, fails=True)

    found = problems(shell)
    assert "tables belong to no queue: q_jobs, a_jobs" in found
    assert any("q_invoices_of_the_shop_" in one for one in found)
    planned = shell("install", "--repair", "--dry-run")
    assert "would adopt q_jobs, a_jobs as queue 'jobs', with the default options" in planned.out
    assert problems(shell) == found

    mended = shell("install", "--repair", "--json")

    assert "adopt q_jobs, a_jobs as queue 'jobs', with the default options" in mended.document["done"]
    assert "q_letters is not as pgqrs makes it" in mended.err
    assert content(full) == ([{"in": "jobs"}], [2])
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute("drop table pgqrs.q_letters")
    shell("install", "--repair")
    with Client(full) as client:
        client.admin.create_queue("new")
        client.producer.enqueue("new", 1)


def test_a_worker_whose_queue_has_lost_its_row_waits_until_it_is_adopted(full: str, shell: Shell) -> None:
    pytest.importorskip("kombu")
    from kombu import Connection, Queue

    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute("delete from pgqrs.queues where name = 'celery'")
        connection.execute("delete from pgqrs.kombu_queues")
    with Connection(url_of(full)) as connection:
        with pytest.raises(connection.connection_errors, match="--repair` adopts it"):
            Queue("celery")(connection.channel()).declare()
        shell.ok("install", "--repair")
        Queue("celery")(connection.channel()).declare()

    with Client(full) as client:
        assert client.admin.queue_metrics("celery").ready == 1


def test_a_backup_of_an_older_version_takes_the_place_of_a_newer_one(full: str, shell: Shell, tmp_path: Path) -> None:
    backup = Backup(full, tmp_path / "dump", "--clean", "--if-exists", plain=True)
    with psycopg.connect(full, autocommit=True) as connection:
        # Brought by an upgrade after the backup.
        connection.execute("create view pgqrs.later as select * from pgqrs.waiters")
        connection.execute("delete from pgqrs.q_jobs")
    assert "depend on it" in backup.restore(full, *PSQL_RESTORE, fails=True)
    assert problems(shell) == []

    backup.restore(full, *PSQL_RESTORE, first="drop schema if exists pgqrs cascade")

    shell.ok("install")
    assert problems(shell) == []
    assert content(full) == ([{"in": "jobs"}], [2])


def test_a_role_that_may_read_everything_dumps_all_messages_with_row_security(
    full: str, other: str, shell: Shell, tmp_path: Path
) -> None:
    prefix = f"pgqrs_t{secrets.token_hex(4)}"
    reader = f"{prefix}_backup"
    with Client(full) as client:
        client.admin.install(roles=True, role_prefix=prefix)
        try:
            client.producer.enqueue("jobs", "in a dump")
            with psycopg.connect(full, autocommit=True) as connection:
                connection.execute(
                    f"create role {reader} login password 'r'; grant pg_read_all_data to {reader}".encode()
                )
            dsn = make_conninfo(full, user=reader, password="r")
            with pytest.raises(AssertionError, match="row-level security policy"):
                Backup(dsn, tmp_path / "refused", "--schema=pgqrs")

            Backup(dsn, tmp_path / "dump", "--enable-row-security", "--schema=pgqrs").restore(other, *RESTORE)

            assert problems(shell, "--url", other) == []
            assert content(other) == ([{"in": "jobs"}, "in a dump"], [2])
        finally:
            for database in (full, other):
                with psycopg.connect(database, autocommit=True) as connection:
                    connection.execute(b"drop schema if exists pgqrs cascade")
            with psycopg.connect(full, autocommit=True) as connection:
                connection.execute(f"drop role if exists {reader}".encode())
                for duty in ("producer", "consumer", "observer", "admin"):
                    connection.execute(f"drop owned by {prefix}_{duty}; drop role {prefix}_{duty}".encode())


@pytest.mark.parametrize("mend", ["repair", "uninstall"])
def test_a_copy_of_the_schema_without_its_data_is_no_dead_end(
    full: str, other: str, shell: Shell, tmp_path: Path, mend: str
) -> None:
    Backup(full, tmp_path / "dump", "--schema-only").restore(other)

    assert any("install --repair" in one for one in problems(shell, "--url", other))
    refused = shell.refused("--url", other, "install", code=1)
    assert "pgqrs install --repair" in refused
    if mend == "repair":
        planned = shell("--url", other, "install", "--repair", "--dry-run").out
        assert "would make the tables of pgqrs anew, which are all empty" in planned
        shell("--url", other, "install", "--repair")
        with Client(other) as client:
            assert {queue.name for queue in client.admin.list_queues()} >= {"jobs", "celery"}
            client.producer.enqueue("jobs", 1)
    else:
        shell.ok("--url", other, "uninstall", "--yes")
        with psycopg.connect(other) as connection:
            assert connection.execute("select 1 from pg_namespace where nspname = 'pgqrs'").fetchall() == []
        shell.ok("--url", other, "install")
    shell.ok("--url", other, "install")
    _use_celery(other)
    assert [one for one in problems(shell, "--url", other) if "invoices_of" not in one] == []


DAMAGES: dict[str, tuple[str, str]] = {
    "a table of the core": ("drop table pgqrs.leaders", "tables of pgqrs are missing: leaders"),
    "a table of Celery": ("drop table pgqrs.celery_groups", "tables of celery are missing: celery_groups"),
    "a table of Kombu": ("drop table pgqrs.kombu_bindings", "tables of kombu are missing: kombu_bindings"),
    "all tables of Dramatiq": (
        "drop table pgqrs.dramatiq_results, pgqrs.dramatiq_limits, pgqrs.dramatiq_waiters cascade",
        "tables of dramatiq are missing: dramatiq_results, dramatiq_limits, dramatiq_waiters",
    ),
    "views of Celery": (
        "drop view pgqrs.celery_ended_waits, pgqrs.celery_new_chords",
        "tables of celery are missing: celery_new_chords, celery_ended_waits",
    ),
    "the table of a queue": ("drop table pgqrs.q_jobs cascade", "the table of queue 'jobs' is missing"),
    "an archive": ("drop table pgqrs.a_jobs", "tables of queue 'jobs' are missing: a_jobs"),
    "a view": ("drop view pgqrs.v_jobs", "tables of queue 'jobs' are missing: v_jobs"),
    "a function": ("drop function pgqrs.e_jobs", "tables of queue 'jobs' are missing: e_jobs"),
    "the row of a queue": ("delete from pgqrs.queues where name = 'jobs'", "tables belong to no queue: q_jobs, a_jobs"),
    "all rows of queues": ("delete from pgqrs.queues where table_suffix = name", "no queue: q_celery"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_missing_is_found_and_made_again(full: str, shell: Shell, damage: str) -> None:
    statement, said = DAMAGES[damage]
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute(statement.encode())

    assert any(said in one for one in problems(shell))
    shell.ok("install", "--repair")

    assert problems(shell) == []
    assert shell.ok("install", "--repair").out == "schema 'pgqrs' is complete\n"
    with Client(full) as client:
        client.producer.enqueue("jobs", "after")
        read = {repr(message.payload): message for message in client.consumer.read_batch("jobs", count=10)}
        client.consumer.archive(read["'after'"])
        client.admin.maintain()
    _use_celery(full)


def test_names_of_queues_are_found_again_by_what_stands_on_their_tables(full: str, shell: Shell) -> None:
    with psycopg.connect(full, autocommit=True) as connection:
        (before,) = connection.execute("select queue_id from pgqrs.queues where name = %s", [ODD]).fetchone() or (0,)
        connection.execute("delete from pgqrs.queues where name = %s", [ODD])

    shell.ok("install", "--repair")

    with psycopg.connect(full) as connection:
        assert connection.execute("select queue_id from pgqrs.queues where name = %s", [ODD]).fetchone() == (before,)
    assert content(full, ODD) == ([{"in": ODD}], [2])


def test_tables_that_hold_rows_without_their_version_are_left_alone(full: str, shell: Shell) -> None:
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute("delete from pgqrs.migrations")

    result = shell("install", "--repair")

    assert result.code == 1
    assert "queues holds rows, so they are not made anew" in result.err
    with psycopg.connect(full) as connection:
        assert connection.execute("select count(*) from pgqrs.queues").fetchone() == (3,)


def test_repair_is_told_from_roles(shell: Shell) -> None:
    assert "one after the other" in shell.refused("install", "--repair", "--roles", code=2)
