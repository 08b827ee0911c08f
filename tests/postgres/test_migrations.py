"""Installing, upgrading and removing the schema: once, in order, for every queue, and nothing that is not ours."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from harness import SyncHarness, ask, until
from psycopg.conninfo import make_conninfo

from pgqrs_core.errors import SchemaError, SchemaMissing, SchemaTooNew
from pgqrs_core.operations import queues, schema, uninstall
from pgqrs_core.sql import MIGRATIONS, Migration, Query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Harness

REVIEWED = Path(__file__).parents[1] / "schema.sql"

#: What a later version might bring: something shared, a column for every queue, another for every archive.
SECOND = Migration(
    version=len(MIGRATIONS) + 1,
    name="second",
    checksum="second",
    safe=False,
    blocks={
        "shared": Query("shared", "create table {schema}.second (n int)"),
        "queue": Query("queue", "alter table {queue} add column second int"),
        "archive": Query("archive", "alter table {archive} add column second int"),
    },
)

TABLES = """
select relname, array_to_string(reloptions, ', '), relpersistence from pg_class
where relnamespace = 'pgqrs'::regnamespace and relkind = 'r' order by relname
"""
COLUMNS = """
select attname, format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid)
from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
where attrelid = ('pgqrs.' || %s)::regclass and attnum > 0 and not attisdropped order by attnum
"""
INDEXES = "select indexdef from pg_indexes where schemaname = 'pgqrs' and tablename = %s order by 1"
VIEWS = "select viewname from pg_views where schemaname = 'pgqrs' order by 1"
FUNCTIONS = """
select proname || '(' || pg_get_function_arguments(oid) || ')', pg_get_function_result(oid), prosecdef,
  array_to_string(proconfig, ', '), array_to_string(proacl, ', ') ~ '(^|, )='
from pg_proc where pronamespace = 'pgqrs'::regnamespace order by 1
"""
VIEW_COLUMNS = """
select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
from pg_attribute where attrelid = ('pgqrs.' || %s)::regclass and attnum > 0
"""


def described(dsn: str) -> str:
    """The schema as its catalogues describe it, the same on every version of the server."""
    # Some defaults are times, which a session shows in its own zone.
    dsn = make_conninfo(dsn, options="-c timezone=UTC")
    lines: list[str] = []
    for name, options, persistence in ask(dsn, TABLES):
        lines.append(f"{'unlogged ' if persistence == 'u' else ''}table {name}")
        lines += [f"  with {option}" for option in sorted(filter(None, (options or "").split(", ")))]
        for column, kind, required, identity, default in ask(dsn, COLUMNS, name):
            extras = [
                *(["not null"] if required else []),
                *([f"identity {identity}"] if identity else []),
                *([f"default {default}"] if default else []),
            ]
            lines.append("  " + " ".join([column, kind, *extras]))
        lines += [f"  {row[0]}" for row in ask(dsn, INDEXES, name)]
        lines.append("")
    for (name,) in ask(dsn, VIEWS):
        lines += [f"view {name}", f"  {ask(dsn, VIEW_COLUMNS, name)[0][0]}", ""]
    for signature, result, is_definer, settings, is_public in ask(dsn, FUNCTIONS):
        rights = "with the rights of its owner" if is_definer else "with the rights of its caller"
        lines += [
            f"function {signature}",
            f"  {result}",
            f"  {rights}, {settings}, {'public' if is_public else 'granted'}",
        ]
        lines.append("")
    return "\n".join(lines)


@pytest.fixture
def engine(pgqrs_dsn: str) -> Iterator[SyncHarness]:
    harness = SyncHarness(pgqrs_dsn)
    yield harness
    harness.close()


def install(harness: Harness, *more: Migration) -> list[str]:
    done: list[str] = harness.transact(schema.install, "pgqrs", migrations=(*MIGRATIONS, *more))
    return done


class TestInstalling:
    def test_the_result_is_the_schema_that_was_reviewed(self, engine: SyncHarness) -> None:
        """After a wanted change: look at the difference, then put the new text into tests/schema.sql."""
        install(engine)
        engine.create("jobs")

        assert described(engine.dsn) == REVIEWED.read_text()

    def test_it_says_what_it_applied(self, engine: SyncHarness) -> None:
        assert install(engine) == [f"pgqrs {step.version:04} {step.name}" for step in MIGRATIONS]

    def test_a_second_time_changes_nothing(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        before = described(engine.dsn)

        assert install(engine) == []

        assert described(engine.dsn) == before

    def test_it_leaves_messages_alone(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.send(b"kept")

        install(engine)

        assert engine.bodies() == [b"kept"]

    def test_two_schemas_do_not_know_each_other(self, engine: SyncHarness) -> None:
        other = SyncHarness(engine.dsn, schema="other")
        try:
            for harness in (engine, other):
                harness.transact(schema.install, harness.engine.schema)
                harness.create("jobs")
            engine.send()

            assert other.take() == []
        finally:
            other.close()

    def test_several_processes_at_once_apply_each_step_once(self, engine: SyncHarness) -> None:
        script = (
            "import sys; from pgqrs_core.engine import Engine; from pgqrs_core.operations import schema\n"
            "engine = Engine(sys.argv[1]); engine.connections.put(engine.connections.get(relaxed=False))\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "print(len(engine.transact(schema.install, 'pgqrs'))); engine.close()\n"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", script, engine.dsn],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(schema.__file__).parents[2],
            )
            for _ in range(4)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

        counts = [int(process.communicate(timeout=60)[0]) for process in started]

        assert sorted(counts) == [0, 0, 0, len(MIGRATIONS)]
        assert [process.returncode for process in started] == [0, 0, 0, 0]

    def test_if_a_step_fails_nothing_of_it_or_of_those_before_it_remains(self, engine: SyncHarness) -> None:
        broken = Migration(SECOND.version, "broken", "x", True, {"shared": Query("shared", "select 1/0")})

        with pytest.raises(Exception, match="division by zero"):
            install(engine, broken)

        assert engine.ask("select 1 from pg_namespace where nspname = 'pgqrs'") == []


class TestUpgrading:
    def test_a_step_reaches_the_tables_of_queues_that_exist(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.create("Odd; name")
        engine.create("bare", archive=False)

        install(engine, SECOND)

        tables = [
            row[0]
            for row in engine.ask(
                "select table_name from information_schema.columns where table_schema = 'pgqrs' "
                "and column_name = 'second' order by 1"
            )
        ]
        odd = queues.table_suffix("Odd; name")
        assert sorted(tables) == sorted(["a_jobs", "q_jobs", f"a_{odd}", f"q_{odd}", "q_bare"])

    def test_a_queue_that_is_created_later_is_like_one_that_was_upgraded(
        self, engine: SyncHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(engine)
        engine.create("early")
        install(engine, SECOND)
        monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, SECOND))
        monkeypatch.setattr(schema, "SUPPORTED", SECOND.version)
        engine.create("later")

        columns = [
            [row[:2] for row in engine.ask(COLUMNS, f"{prefix}_{name}")]
            for prefix in ("q", "a")
            for name in ("early", "later")
        ]

        assert columns[0] == columns[1]
        assert columns[2] == columns[3]

    @pytest.mark.parametrize("safe", [True, False])
    def test_an_upgrade_that_ends_the_work_of_older_code_is_logged(
        self, engine: SyncHarness, caplog: pytest.LogCaptureFixture, safe: bool
    ) -> None:
        install(engine)
        assert "older" not in caplog.text

        install(engine, Migration(SECOND.version, "second", "x", safe, SECOND.blocks))

        assert (f"step {SECOND.version} of pgqrs ends the work of older code" in caplog.text) is not safe

    def test_messages_survive_it(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.send(b"a")
        engine.bodies()
        engine.send(b"b")

        install(engine, SECOND)

        assert engine.bodies() == [b"b"]

    def test_an_edited_step_is_refused_by_name(self, engine: SyncHarness) -> None:
        install(engine, SECOND)
        edited = Migration(SECOND.version, "second", "edited", False, SECOND.blocks)

        with pytest.raises(SchemaError, match=f"migration {SECOND.version} of pgqrs was changed"):
            install(engine, edited)

    def test_old_code_does_not_install_over_a_newer_version(self, engine: SyncHarness) -> None:
        install(engine, SECOND)

        with pytest.raises(SchemaTooNew):
            install(engine)

    def test_old_code_has_nothing_to_install_over_a_newer_version_that_it_works_with(self, engine: SyncHarness) -> None:
        install(engine, Migration(SECOND.version, "second", "x", True, SECOND.blocks))

        assert install(engine) == []
        assert engine.run(schema.version, "pgqrs") == SECOND.version

    @pytest.mark.parametrize("safe", [True, False])
    def test_old_code_runs_on_a_newer_version_only_if_every_new_step_is_safe(
        self, engine: SyncHarness, safe: bool
    ) -> None:
        install(engine)
        engine.create("jobs")
        engine.engine.forget("jobs")
        install(engine, Migration(SECOND.version, "second", "x", safe, SECOND.blocks))

        if safe:
            engine.send(b"x")
            assert engine.bodies() == [b"x"]
            # One that exists may be declared again; a new one would lack what the step brought.
            engine.create("jobs")
            with pytest.raises(SchemaTooNew, match=f"version {SECOND.version}"):
                engine.create("new")
        else:
            with pytest.raises(SchemaTooNew, match=f"version {SECOND.version}"):
                engine.send()

    def test_the_installed_version_can_be_asked_for(self, engine: SyncHarness) -> None:
        assert engine.run(schema.version, "pgqrs") == 0

        install(engine, SECOND)

        assert engine.run(schema.version, "pgqrs") == SECOND.version


class TestUninstalling:
    def test_nothing_remains(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.create("Odd; name")

        assert engine.transact(uninstall.uninstall, "pgqrs") == ["Odd; name", "jobs"]

        assert engine.ask("select 1 from pg_namespace where nspname = 'pgqrs'") == []

    def test_tables_of_others_are_left_alone(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.ask("create table pgqrs.theirs (n int); insert into pgqrs.theirs values (1)")

        engine.transact(uninstall.uninstall, "pgqrs")

        assert engine.ask("select relname from pg_class where relnamespace = 'pgqrs'::regnamespace") == [("theirs",)]

    def test_what_others_built_upon_a_queue_is_not_dropped_with_it(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.ask("create view public.theirs as select message_id from pgqrs.q_jobs")

        with pytest.raises(Exception, match="other objects depend on it"):
            engine.transact(uninstall.uninstall, "pgqrs")

        assert [queue.name for queue in engine.run(queues.list_queues)] == ["jobs"]

    def test_where_nothing_is_installed_that_is_said(self, engine: SyncHarness) -> None:
        with pytest.raises(SchemaMissing):
            engine.transact(uninstall.uninstall, "pgqrs")

    def test_it_can_be_installed_again(self, engine: SyncHarness) -> None:
        install(engine)
        engine.create("jobs")
        engine.transact(uninstall.uninstall, "pgqrs")

        install(engine)
        engine.create("jobs")

        assert engine.send()


def test_a_queue_created_beside_a_migration_waits_for_it_and_never_misses_its_step(
    pgqrs_dsn: str,
) -> None:
    """Made while a migration runs, it would be missed by it, and would lack its column."""
    installed = SyncHarness(pgqrs_dsn)
    installed.transact(schema.install, "pgqrs")
    creating = SyncHarness(pgqrs_dsn)
    found: list[BaseException | None] = []

    def create() -> None:
        try:
            creating.create("late")
            found.append(None)
        except SchemaTooNew as error:
            found.append(error)

    with psycopg.connect(pgqrs_dsn) as migrating:
        installed.run_in(migrating, schema.install, "pgqrs", migrations=(*MIGRATIONS, SECOND))
        thread = threading.Thread(target=create)
        thread.start()
        until(
            lambda: installed.ask("select 1 from pg_locks where locktype = 'advisory' and not granted"),
            "the creation waits",
        )
    thread.join()
    creating.close()
    installed.close()

    # This code does not know the step, and says so instead of making a queue without it.
    assert isinstance(found[0], SchemaTooNew)
    assert ask(pgqrs_dsn, "select count(*) from pgqrs.queues") == [(0,)]


def test_a_role_that_owns_the_schema_and_nothing_else_can_install(pgqrs_dsn: str) -> None:
    role = f"pgqrs_owner_{secrets.token_hex(4)}"
    ask(pgqrs_dsn, f"create role {role}; create schema pgqrs authorization {role}")
    owner = SyncHarness(make_conninfo(pgqrs_dsn, options=f"-c role={role}"))
    try:
        owner.transact(schema.install, "pgqrs")

        owner.create("jobs")
    finally:
        owner.close()
        ask(pgqrs_dsn, f"drop owned by {role} cascade; drop role {role}")
