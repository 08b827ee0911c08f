"""Many queues, and among them one that is broken: few locks at a time, and the others are served."""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import SyncHarness, ask
from psycopg.conninfo import make_conninfo

from pgqrs_core.drivers import locks, sync
from pgqrs_core.errors import QueuesFailed, SchemaError, SchemaTooOld, ServerError, TableLocked
from pgqrs_core.messages import QueueOptions
from pgqrs_core.operations import maintenance, metrics, queues, schema, uninstall
from pgqrs_core.operations.damage import components_of, find_damage, read_schema
from pgqrs_core.operations.many import TOGETHER
from pgqrs_core.plugins import default_plugins
from pgqrs_core.sql import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Harness

    from pgqrs_core.cluster import Cluster
    from pgqrs_core.effects import Execute, Op

#: Locks on relations of ours that one transaction may hold: of a server's 6,400 at its default settings.
MOST_LOCKS = 5 * TOGETHER
MANY = TOGETHER + 3

HELD = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'relation' and relation >= 16384"
KEYLESS = """
select c.relname from pg_class c where c.relnamespace = 'pgqrs'::regnamespace and c.relkind in ('r', 'p')
  and c.relreplident <> 'f' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
"""


@pytest.fixture
def old(pgqrs_dsn: str) -> Iterator[SyncHarness]:
    """A schema as it was before archives had keys."""
    harness = SyncHarness(pgqrs_dsn)
    harness.transact(schema._install_shared, "pgqrs", schema.COMPONENT, MIGRATIONS[:2], {})
    yield harness
    harness.close()


def old_queue(name: str) -> Op[None]:
    """Make a queue as it was made then."""
    from pgqrs_core.effects import Execute
    from pgqrs_core.sql import Query

    options = json.dumps({"archive": True})
    insert = f"insert into {{schema}}.queues (name, table_suffix, options) values ('{name}', '{name}', '{options}')"
    yield Execute(Query("insert", insert.replace('{"', '{{"').replace("e}'", "e}}'")))
    rows = yield Execute(schema.queries["find_queue"], {"name": name})
    for kind in ("queue", "archive"):
        yield Execute(MIGRATIONS[0].blocks[kind], {}, queues.queue_of(rows[0]))


@pytest.fixture
def most_held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most locks that a transaction of this process has held; a statement of its own counts by its queues."""
    most = [0]
    perform = sync.perform

    def counting(link: Any, statements: Any, effect: Execute, **how: Any) -> Any:
        rows = perform(link, statements, effect, **how)
        if link.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            most[0] = max(most[0], link.connection.execute(HELD).fetchone()[0])
        most[0] = max(most[0], 4 * len(effect.queues))
        return rows

    monkeypatch.setattr(sync, "perform", counting)
    return most


class TestLocks:
    def test_nothing_that_is_about_all_queues_holds_many_at_once(self, old: SyncHarness, most_held: list[int]) -> None:
        plugins = default_plugins()
        for place in range(MANY):
            old.transact(old_queue, f"queue{place:03}")

        old.run(schema.install_all, "pgqrs", plugins)
        known = old.run(queues.list_queues)
        measured = old.run(metrics.measure, known)
        cleaned = old.run(maintenance.maintain, "pgqrs")
        dropped = old.run(uninstall.uninstall, "pgqrs", plugins)

        assert len(known) == len(measured) == len(dropped) == MANY
        assert cleaned.failed == {}
        assert 0 < most_held[0] < MOST_LOCKS

    def test_waiting_for_many_queues_asks_about_fifty_at_a_time(
        self, engine: SyncHarness, most_held: list[int]
    ) -> None:
        watched = [engine.create(f"queue{place:03}") for place in range(TOGETHER + 2)]
        engine.send(queue=watched[-1].name)

        engine.engine.wakeups.wait_any(watched, 10.0)

        assert 0 < most_held[0] < MOST_LOCKS


class TestUpgrading:
    def test_small_archives_get_a_key_and_large_ones_an_identity(
        self, old: SyncHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("small", "large"):
            old.transact(old_queue, name)
        old.ask(
            "insert into pgqrs.a_large (message_id, priority, attempt, enqueued_at, body) "
            "select n, 0, 1, now(), convert_to(repeat(md5(n::text), 60), 'utf8') from generate_series(1, 12000) n"
        )
        for body in "ab":
            old.ask(
                "insert into pgqrs.a_small (message_id, priority, attempt, enqueued_at, body) "
                f"values (7, 0, 1, now(), '{body}')"
            )

        old.run(schema.install, "pgqrs")

        identities = (
            "select relname, relreplident::text from pg_class where relname like 'a\\_%' and relkind = 'r' order by 1"
        )
        assert old.ask(identities) == [("a_large", "f"), ("a_small", "d")]
        assert old.ask(KEYLESS) == []
        assert len(old.ask("select 1 from pgqrs.a_small")) == 2
        old.ask("create publication everything for all tables")
        removed = [old.on(name, lambda queue: _prune(queue)) for name in ("small", "large")]
        assert removed == [2, 12000]

        page = (Path(schema.__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
        later = re.findall(r"^```psql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0].replace("emails", "large")
        for statement in later.strip().split(";\n"):
            old.ask(statement)
        assert old.ask(identities) == [("a_large", "d"), ("a_small", "d")]
        assert old.ask(KEYLESS) == []

    def test_keys_are_hashed_and_known_and_those_that_are_over_are_gone(self, old: SyncHarness) -> None:
        old.transact(old_queue, "a")
        old.ask(
            "insert into pgqrs.idempotency_keys (queue_id, key, message_id, expires_at) "
            "values (1, 'größe', 41, now() + interval '1 hour'), (1, 'over', 42, now() - interval '1 hour')"
        )

        old.run(schema.install, "pgqrs")

        assert old.ask("select count(*) from pgqrs.idempotency_keys") == [(1,)]
        assert old.send(queue="a", idempotency_key="größe") == [41]
        assert old.send(queue="a", idempotency_key="over") != [42]
        assert old.ask("select count(*) from pgqrs.q_a") == [(1,)]

    def test_keys_that_never_end_are_gone(self, old: SyncHarness) -> None:
        old.transact(old_queue, "a")
        old.ask(
            "insert into pgqrs.idempotency_keys values (1, 'forged', 41, 'infinity'), (1, 'late', 42, '20000-01-01')"
        )

        old.run(schema.install, "pgqrs")

        assert old.ask("select count(*) from pgqrs.idempotency_keys") == [(0,)]
        assert old.send(queue="a", idempotency_key="forged") != [41]

    def test_rows_that_are_there_stay_and_are_named_and_ids_are_not_chosen_from_then_on(
        self, old: SyncHarness, caplog: pytest.LogCaptureFixture
    ) -> None:
        old.transact(old_queue, "a")
        rows = "(0, 5, null), (-100, 5, now()), (-1, 9, 'infinity'), (77, 1, null)"
        old.ask(f"insert into pgqrs.q_a (lane, message_id, due_at, body) select *, 'x'::bytea from (values {rows}) r")

        old.run(schema.install, "pgqrs")

        assert old.ask("select count(*) from pgqrs.q_a") == [(4,)]
        assert "message 9 of queue 'a' is due at a time outside the years 1970 to 9999 (rule 'due_at')" in caplog.text
        assert "message 1 of queue 'a' is in lane 77" in caplog.text
        assert 'delete from "pgqrs"."q_a" where' in caplog.text
        assert old.bodies(queue="a") == [b"x"]
        with pytest.raises(psycopg.errors.GeneratedAlways):
            old.ask("insert into pgqrs.q_a (lane, message_id, body) values (0, 77, 'x')")

    def test_upgrading_a_full_queue_reads_none_of_its_messages(self, old: SyncHarness) -> None:
        old.transact(old_queue, "a")
        old.ask("insert into pgqrs.q_a (lane, body) select 0, 'x' from generate_series(1, 20000)")
        read = (
            "select pg_stat_force_next_flush(), pg_stat_get_tuples_returned('pgqrs.q_a'::regclass), "
            "pg_relation_filenode('pgqrs.q_a')"
        )
        before = old.ask(read)[0][1:]

        old.run(schema.install, "pgqrs")

        old.close()
        assert old.ask(read)[0][1:] == before

    def test_what_was_interrupted_is_noticed_and_goes_on_where_it_ended(self, old: SyncHarness) -> None:
        for name in ("a", "b", "c"):
            old.transact(old_queue, name)
        old.ask("drop table pgqrs.a_b cascade; create view pgqrs.a_b as select 1 as message_id")

        with pytest.raises(QueuesFailed, match="'b'") as caught:
            old.run(schema.install, "pgqrs")

        assert caught.value.queues == ("b",)
        assert old.ask("select name from pgqrs.queues where schema_version < 3") == [("b",)]
        with pytest.raises(SchemaTooOld, match="queue 'b'"):
            old.run(schema.check_schema, "pgqrs")
        old.ask("drop view pgqrs.a_b")
        old.run(schema.install, "pgqrs")
        old.run(schema.check_schema, "pgqrs")

    @pytest.mark.parametrize("state", ["not upgraded", "upgraded by half"])
    def test_queues_that_are_not_upgraded_yet_are_not_taken_for_damaged(
        self, old: SyncHarness, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        monkeypatch.setattr(locks, "GIVE_UP", 0.5)
        for name in ("a", "b"):
            old.transact(old_queue, name)
        if state == "upgraded by half":
            with psycopg.connect(old.dsn) as reader:
                reader.execute("select from pgqrs.q_b")
                with pytest.raises(QueuesFailed, match="'b'"):
                    old.run(schema.install, "pgqrs")

        assert find_damage(old.run(read_schema, "pgqrs"), components_of([])) == []
        old.run(schema.install, "pgqrs")
        old.ask("drop function pgqrs.e_b")
        assert [one.tables for one in find_damage(old.run(read_schema, "pgqrs"), components_of([]))] == [("e_b",)]

    def test_beside_a_reader_it_waits_for_that_queue_only(
        self, old: SyncHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "GIVE_UP", 0.5)
        for name in ("a", "b"):
            old.transact(old_queue, name)
        with psycopg.connect(old.dsn) as reader:
            reader.execute("select from pgqrs.a_a")
            with pytest.raises(QueuesFailed, match="pg_terminate_backend"):
                old.run(schema.install, "pgqrs")

        assert old.ask("select name from pgqrs.queues where schema_version < 3") == [("a",)]


def _prune(queue: Any) -> Op[int]:
    from pgqrs_core.operations.archives import prune_archive

    return (yield from prune_archive(queue, 0))


class TestUninstalling:
    def test_what_was_interrupted_can_be_run_again(self, engine: SyncHarness) -> None:
        for name in ("a", "b"):
            engine.create(name)
        engine.ask("create view public.theirs as select message_id from pgqrs.q_a")

        with pytest.raises(QueuesFailed, match=r"'a'.*depend"):
            engine.run(uninstall.uninstall, "pgqrs")

        assert engine.ask("select name from pgqrs.queues") == [("a",)]
        engine.ask("drop view public.theirs")
        assert engine.run(uninstall.uninstall, "pgqrs") == ["a"]
        assert engine.ask("select from pg_namespace where nspname = 'pgqrs'") == []

    def test_missing_tables_are_no_obstacle(self, engine: SyncHarness) -> None:
        engine.create("a")
        engine.ask("drop table pgqrs.q_a cascade; drop table pgqrs.a_jobs")

        assert engine.run(uninstall.uninstall, "pgqrs") == ["a", "jobs"]


class TestABrokenQueue:
    @pytest.fixture
    def broken(self, harness: Harness) -> Harness:
        """Three queues; the table of the second is missing."""
        for name in ("a", "b", "c"):
            harness.create(name, dead_retention_seconds=1.0)
        harness.send(queue="c")
        harness.ask("drop table pgqrs.q_b cascade")
        return harness

    def test_the_others_are_measured_and_it_says_why_it_is_not(self, broken: Harness) -> None:
        measured = broken.run(metrics.measure, broken.run(queues.list_queues))

        errors = {one.queue: one.error for one in measured}
        assert {queue: error for queue, error in errors.items() if error is None} == {
            "a": None,
            "c": None,
            "jobs": None,
        }
        assert "q_b" in (errors["b"] or "")
        assert [one.ready for one in measured if one.queue == "c"] == [1]

    def test_by_itself_it_is_an_error(self, broken: Harness) -> None:
        with pytest.raises(ServerError, match="q_b"):
            broken.run(metrics.measure_one, broken.queue("b"))

    def test_the_others_are_cleaned_and_the_log_says_which_is_not(
        self, broken: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken.send(queue="c", ttl=0.001)

        with caplog.at_level(logging.WARNING, "pgqrs"):
            done = broken.run(maintenance.maintain, "pgqrs")

        assert done.expired == 1
        assert list(done.failed) == ["b"]
        assert "queue 'b'" in caplog.text
        assert "q_b" in caplog.text

    def test_a_locked_one_is_not_waited_for(self, broken: Harness) -> None:
        with psycopg.connect(broken.dsn) as other:
            other.execute("lock table pgqrs.q_a")

            done = broken.run(maintenance.maintain, "pgqrs")
            measured = broken.run(metrics.measure, broken.run(queues.list_queues))

        assert list(done.failed) == ["a", "b"]
        assert "could not be locked" in done.failed["a"]
        assert [one.queue for one in measured if one.error] == ["a", "b"]

    def test_it_can_be_deleted_and_made_again(self, broken: Harness) -> None:
        broken.transact(queues.delete_queue, "b")
        broken.engine.forget("b")

        broken.create("b")

        assert broken.send(queue="b")


class TestReplication:
    def test_every_table_has_a_key(self, pgqrs_dsn: str) -> None:
        harness = SyncHarness(pgqrs_dsn)
        try:
            harness.run(schema.install_all, "pgqrs", default_plugins())
            harness.create("jobs")

            assert len(harness.ask("select 1 from pg_tables where schemaname = 'pgqrs'")) > 15
            assert harness.ask(KEYLESS) == []
        finally:
            harness.close()


def test_with_a_publication_of_all_tables_everything_goes_on(pgqrs_private_cluster: Cluster) -> None:
    pgqrs_private_cluster.options["wal_level"] = "logical"
    pgqrs_private_cluster.restart()
    dsn = pgqrs_private_cluster.dsn
    harness = SyncHarness(dsn)
    try:
        harness.run(schema.install_all, "pgqrs", default_plugins())
        harness.create("jobs", dead_retention_seconds=0.001, archive_retention_seconds=0.001)
        ask(dsn, "create publication everything for all tables")
        ask(dsn, "select pg_create_logical_replication_slot('reader', 'pgoutput')")
        from pgqrs_core.operations import archives, settle

        harness.send(b"a", b"b", b"c")
        for item in harness.take():
            harness.on("jobs", settle.archive, [item.lease])
        replayed = harness.on("jobs", archives.replay_archive, [1])
        done = harness.run(maintenance.maintain, "pgqrs")

        assert replayed == 1
        assert (done.archive_pruned, done.failed) == (2, {})
        changes = ask(
            dsn,
            "select count(*) from pg_logical_slot_get_binary_changes('reader', null, null, 'proto_version', '1', "
            "'publication_names', 'everything') where get_byte(data, 0) = ascii('D')",
        )
        assert changes[0][0] >= 6
    finally:
        harness.close()


def test_a_change_of_a_locked_queue_can_be_repeated(engine: SyncHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GIVE_UP", 0.5)
    with psycopg.connect(engine.dsn) as other:
        other.execute("lock table pgqrs.q_jobs in share mode")
        with pytest.raises(TableLocked):
            engine.transact(queues.delete_queue, "jobs")

    engine.transact(queues.delete_queue, "jobs")
    engine.transact(queues.create_queue, "jobs", QueueOptions())


class TestNames:
    ENDS = (
        "",
        "_pkey",
        "_message_id_seq",
        "_lane_due_at_message_id_idx",
        "_expires_at_idx",
        "_archived_at_idx",
        "_pkey1",
    )

    @pytest.mark.parametrize("ends", [ENDS, ENDS[::-1]], ids=["the table first", "the index first"])
    def test_queues_called_as_indexes_and_sequences_are_made_and_used(
        self, engine: SyncHarness, ends: tuple[str, ...]
    ) -> None:
        for end in ends:
            engine.create(f"x{end}")

        assert [engine.bodies(queue=f"x{end}") for end in ends if engine.send(end.encode(), queue=f"x{end}")] == [
            [end.encode()] for end in ends
        ]

    def test_a_table_that_is_in_the_way_is_named_with_a_remedy(self, engine: SyncHarness) -> None:
        engine.ask("create table pgqrs.a_taken (n int)")

        with pytest.raises(SchemaError, match=r"'taken' cannot be created.*a_taken.*rename or drop"):
            engine.create("taken")

        assert engine.ask("select from pgqrs.queues where name = 'taken'") == []


class TestASmallLockTable:
    """A server whose lock table holds the locks of a few dozen queues, and another database on it that works meanwhile."""

    def test_everything_is_done_for_more_queues_than_it_has_room_for(self, pgqrs_private_cluster: Cluster) -> None:
        pgqrs_private_cluster.options.update(
            {"max_locks_per_transaction": "10", "max_connections": "20", "autovacuum": "off"}
        )
        pgqrs_private_cluster.restart()
        dsn = pgqrs_private_cluster.dsn
        ask(dsn, "create database other template template0")
        stop, errors = threading.Event(), list[Exception]()

        def work_beside() -> None:
            with psycopg.connect(make_conninfo(dsn, dbname="other"), autocommit=True) as connection:
                while not stop.is_set():
                    try:
                        with connection.transaction(force_rollback=True):
                            for number in range(10):
                                connection.execute(f"create table t{number} (n int primary key)".encode())
                    except psycopg.Error as error:
                        errors.append(error)

        beside = threading.Thread(target=work_beside)
        harness = SyncHarness(dsn)
        names = [f"many_{number}" for number in range(70)]
        plugins = default_plugins()
        try:
            harness.run(schema.install_all, "pgqrs", plugins)
            for name in names:
                harness.create(name, archive=True)
            beside.start()

            harness.run(schema.install_all, "pgqrs", plugins, roles=True, role_prefix="small")
            listed = harness.run(queues.list_queues)
            assert [one.error for one in harness.run(metrics.measure, listed) if one.error] == []
            assert harness.run(maintenance.maintain, "pgqrs").failed == {}
            assert harness.run(schema.install_all, "pgqrs", plugins, roles=True) == []
            assert sorted(harness.run(uninstall.uninstall, "pgqrs", plugins, roles=True)) == sorted(names)
        finally:
            stop.set()
            if beside.is_alive():
                beside.join()
            harness.close()

        assert errors == []
