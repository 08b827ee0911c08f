"""The doctor finds what is wrong with a server, and says so when it cannot look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgqrs_core.drivers.sync import drive
from pgqrs_core.effects import Effect, Execute
from pgqrs_core.engine import Engine
from pgqrs_core.errors import ServerError, Unavailable
from pgqrs_core.events import Draft
from pgqrs_core.marks import Marks
from pgqrs_core.messages import QueueOptions
from pgqrs_core.operations import claim, doctor_queues, doctor_server, enqueue, queues, schema, settle
from pgqrs_core.operations.doctor import Circumstances, examine
from pgqrs_core.operations.findings import Finding
from pgqrs_core.testing import throw_away_cluster

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = Circumstances("pgqrs", time.time)

#: What a sound server answers, statement by statement.
SOUND: dict[str, Sequence[tuple[Any, ...]]] = {
    "outdated_queues": [],
    "server_facts": [(180_000, "18.0 (Debian)", False, "Europe/Berlin", True, "app", "shop")],
    "server_time": [(1000.0,)],
    "server_settings": [
        ("autovacuum", "on"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("max_connections", "100"),
        ("superuser_reserved_connections", "3"),
        ("synchronous_commit", "on"),
        ("track_counts", "on"),
    ],
    "connection_counts": [(10, 2)],
    "transaction_age": [("shop", 1_000)],
    "xmin_pins": [],
    "notify_usage": [(0.0,)],
    "schema_exists": [(False,)],
    "relations": [],
}


def examined(clock: float = 1000.0, pooled: bool = False, **answers: Any) -> dict[str, list[Finding]]:
    """Examine a server that gives these answers, and return the findings by check."""

    def answer(effect: Effect) -> Any:
        assert isinstance(effect, Execute)
        reply = {**SOUND, **answers}[effect.query.name]
        if isinstance(reply, Exception):
            raise reply
        return reply

    found: dict[str, list[Finding]] = {}
    for finding in drive(examine(Circumstances("pgqrs", lambda: clock, pooled=pooled)), answer):
        found.setdefault(finding.check, []).append(finding)
    return found


def settings(**changed: str) -> list[tuple[str, str]]:
    return list({**dict(SOUND["server_settings"]), **changed}.items())


def only(found: dict[str, list[Finding]], check: str) -> Finding:
    """Return the one finding of a check."""
    (finding,) = found[check]
    return finding


def test_a_sound_server_lacks_nothing_but_the_schema() -> None:
    """And is told how to get it."""
    found = examined()
    assert {check: [one.status for one in some] for check, some in found.items()} == {
        "pooler": ["ok"],
        "clock": ["ok"],
        "server": ["ok"],
        "time_zone": ["ok"],
        "durability": ["ok"],
        "autovacuum": ["ok"],
        "connections": ["ok"],
        "transaction_ids": ["ok"],
        "old_snapshots": ["ok"],
        "notify_queue": ["ok"],
        "schema": ["fail"],
    }
    assert only(found, "schema").commands == ("pgqrs install",)


@pytest.mark.parametrize(("number", "status"), [(130_022, "fail"), (140_000, "ok"), (189_999, "ok"), (190_000, "warn")])
def test_servers_from_14_to_18_are_supported(number: int, status: str) -> None:
    """An older one is refused, a newer one is only untested."""
    found = examined(server_facts=[(number, f"{number // 10_000}.1", False, "UTC", True, "app", "shop")])
    assert only(found, "server").status == status


def test_a_standby_is_a_failure() -> None:
    """Nothing can be written there."""
    found = examined(server_facts=[(180_000, "18.0", True, "UTC", True, "app", "shop")])
    assert [one.status for one in found["server"]] == ["ok", "fail"]
    assert "target_session_attrs" in (found["server"][1].remedy or "")


def test_a_role_that_sees_little_is_told() -> None:
    """Findings are incomplete then."""
    found = examined(server_facts=[(180_000, "18.0", False, "UTC", False, "app", "shop")])
    assert only(found, "rights").status == "info"


@pytest.mark.parametrize(("ours", "said"), [(1100.0, "1 min 40 s behind"), (995.0, "5 s ahead of")])
def test_clocks_that_differ_are_told(ours: float, said: str) -> None:
    """Which way round, and by how much."""
    finding = only(examined(clock=ours), "clock")
    assert finding.status == "warn"
    assert said in finding.summary


def test_a_pooler_is_told() -> None:
    """It matters to consumers."""
    assert only(examined(pooled=True), "pooler").status == "warn"


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
def test_each_durability_setting_is_looked_at(name: str) -> None:
    """What is off is named, with what may be lost."""
    finding = only(examined(server_settings=settings(**{name: "off"})), "durability")
    assert finding.status == "warn"
    assert finding.summary.startswith(f"{name} is off: a crash")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("ghost", 1),
        ("*", 1),
        ("a, b, c", 1),
        ("2 (a, b)", 2),
        ("FIRST 2 (a, b)", 2),
        (" any 3(a, b, c)", 3),
        ('"2 (", b', 1),
    ],
)
def test_commits_that_wait_for_standbys_that_are_not_there_are_told(names: str, wanted: int) -> None:
    """They hang, and no time-out of the server's ends that."""
    waiting = settings(synchronous_standby_names=names)
    for connected, status in ((0, "warn"), (wanted - 1, "warn"), (wanted, "ok")):
        found = examined(server_settings=waiting, synchronous_standbys=[(connected,)])
        assert only(found, "synchronous_standbys").status == status


@pytest.mark.parametrize("level", ["off", "local"])
def test_commits_that_wait_for_no_standby_need_none(level: str) -> None:
    """Whatever is named."""
    found = examined(server_settings=settings(synchronous_standby_names="ghost", synchronous_commit=level))
    assert "synchronous_standbys" not in found


@pytest.mark.parametrize("name", ["autovacuum", "track_counts"])
def test_autovacuum_that_is_off_is_told(name: str) -> None:
    """It needs the counters too."""
    assert only(examined(server_settings=settings(**{name: "off"})), "autovacuum").status == "warn"


def test_too_few_free_connections_are_told() -> None:
    """Too few for one more process; reserved ones do not count."""
    finding = only(examined(connection_counts=[(85, 60)]), "connections")
    assert (finding.status, "12 free, fewer than the 16" in finding.summary) == ("warn", True)
    assert only(examined(connection_counts=[(81, 60)]), "connections").status == "ok"


@pytest.mark.parametrize(("used", "status"), [(999_999_999, "ok"), (1_000_000_000, "warn"), (1_800_000_000, "fail")])
def test_transaction_ids_that_run_out_are_told(used: int, status: str) -> None:
    """Long before the server stops."""
    assert only(examined(transaction_age=[("old", used)]), "transaction_ids").status == status


@pytest.mark.parametrize(("usage", "status"), [(0.1, "ok"), (0.3, "warn"), (0.9, "fail")])
def test_a_notification_queue_that_fills_up_is_told(usage: float, status: str) -> None:
    """When it is full every commit with a NOTIFY fails."""
    assert only(examined(notify_usage=[(usage,)]), "notify_queue").status == status


@pytest.mark.parametrize(
    ("pin", "status", "remedy"),
    [
        (("session", "bob", 7, "psql", "active", "SELECT", 30.0, 5), "ok", None),
        (("session", "bob", 7, "psql", "active", "SELECT", 90.0, 5), "info", "pg_terminate_backend(7)"),
        (("session", "bob", 7, "psql", "idle in transaction", "SELECT", 900.0, 5), "warn", "pg_terminate_backend(7)"),
        (("session", "bob", 7, "", "", None, None, 2_000_000), "warn", "pg_terminate_backend(7)"),
        (("prepared transaction", "bob", None, "gid", "prepared", None, 900.0, 5), "warn", "ROLLBACK PREPARED"),
        (("replication slot", "", None, "gone", "inactive", None, None, 5), "warn", "pg_drop_replication_slot"),
        (("replication slot", "", 9, "here", "active", None, None, 5), "ok", None),
        (("standby", "rep", 9, "walreceiver", "streaming", None, None, 2_000_000), "warn", "hot_standby_feedback"),
    ],
)
def test_what_keeps_dead_rows_is_judged_by_its_age(pin: tuple[Any, ...], status: str, remedy: str | None) -> None:
    """And comes with what to do about it."""
    finding = only(examined(xmin_pins=[pin]), "old_snapshots")
    assert finding.status == status
    assert remedy is None or remedy in " ".join(finding.commands)
    if remedy:
        assert (pin[3] or pin[1]) in finding.summary


def test_a_check_that_is_refused_stops_no_other() -> None:
    """It becomes a finding of its own."""
    found = examined(notify_usage=ServerError("permission denied", sqlstate="42501"))
    assert only(found, "notify_queue").summary == "could not be checked: permission denied"
    assert "schema" in found


def test_a_connection_that_breaks_ends_the_examination() -> None:
    """There is nobody left to ask."""
    with pytest.raises(Unavailable):
        examined(notify_usage=Unavailable("gone"))


@pytest.fixture
def engine(pgqrs_dsn: str) -> Iterator[Engine]:
    """An engine on an installed schema with one queue."""
    with Engine(pgqrs_dsn) as engine:
        engine.transact(schema.install, engine.schema)
        engine.transact(queues.create_queue, "jobs", QueueOptions())
        yield engine


def looked_at(engine: Engine) -> dict[str, list[Finding]]:
    """Examine a real database."""
    found: dict[str, list[Finding]] = {}
    for finding in engine.run(examine, GIVEN):
        found.setdefault(finding.check, []).append(finding)
    return found


def test_every_check_is_answered_by_a_real_server(engine: Engine) -> None:
    """None of them fails, and none could not be asked."""
    found = looked_at(engine)
    assert {"tables", "queues", "maintenance", "waiters"} <= found.keys()
    assert not [one for some in found.values() for one in some if one.status == "fail"]
    assert not [one for some in found.values() for one in some if "could not be checked" in one.summary]


def test_a_forgotten_transaction_is_named_without_its_values(
    engine: Engine, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pid, role, application, state and the first word of its statement."""
    monkeypatch.setattr(doctor_server, "_PIN_NOTED", 0.0)
    with psycopg.connect(pgqrs_dsn, application_name="report") as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute("  select 'top secret'")
        found = looked_at(engine)["old_snapshots"]
        (finding,) = [one for one in found if "'report'" in one.summary]

        assert f"(pid {connection.info.backend_pid})" in finding.summary
        assert "idle in transaction, in SELECT, keeps dead rows for" in finding.summary
        assert "secret" not in finding.summary


def test_a_paused_a_late_and_a_dead_queue_are_told(engine: Engine) -> None:
    """Each with what to do."""
    with psycopg.connect(engine.config.conninfo(), autocommit=True) as connection:
        connection.execute(
            "insert into pgqrs.q_jobs (lane, enqueued_at, due_at, body)"
            " values (0, now() - interval '2 hours', null, ''), (-100, now(), now(), '')"
        )
    told = [(one.status, one.summary) for one in looked_at(engine)["queues"]]
    assert told == [
        ("ok", "1 queue: 1 ready, 0 in flight"),
        ("warn", "queue 'jobs' has 1 message ready, the oldest has waited 2 h"),
        ("warn", "queue 'jobs' holds 1 dead message"),
    ]
    engine.run(queues.pause_queue, "jobs")
    assert ("info", "queue 'jobs' is paused with 1 message ready") in [
        (one.status, one.summary) for one in looked_at(engine)["queues"]
    ]


def test_of_very_many_findings_about_queues_some_are_counted_only(engine: Engine) -> None:
    """Nobody reads a thousand lines."""
    for number in range(doctor_queues._MOST + 5):
        engine.transact(queues.create_queue, f"paused{number}", QueueOptions(archive=False))
        engine.run(queues.pause_queue, f"paused{number}")
    found = looked_at(engine)["queues"]
    assert len(found) == doctor_queues._MOST + 2
    assert found[-1].summary == "5 more findings about queues are not shown"


def test_a_missing_table_is_a_failure_and_hides_nothing_else(engine: Engine) -> None:
    """Somebody dropped it by hand."""
    engine.transact(queues.create_queue, "other", QueueOptions())
    with psycopg.connect(engine.config.conninfo(), autocommit=True) as connection:
        connection.execute("drop table pgqrs.q_jobs cascade")
    found = looked_at(engine)
    assert ("fail", "the table of queue 'jobs' is missing") in [(one.status, one.summary) for one in found["tables"]]
    assert found["queues"][0].summary == "1 queue: 0 ready, 0 in flight"


def restart(engine: Engine, *statements: str) -> None:
    with psycopg.connect(engine.config.conninfo(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.parametrize("where", ["in the queue", "in its archive", "of an idempotency key"])
def test_a_sequence_behind_the_ids_that_it_gave_is_told_with_what_mends_it(engine: Engine, where: str) -> None:
    """Wherever the highest of them is left."""
    for number in range(3):
        key = "k" if where == "of an idempotency key" and number == 2 else None
        engine.on("jobs", enqueue.enqueue, [Draft("jobs", b"", "text/plain", idempotency_key=key)])
    if where != "in the queue":
        settler = settle.archive if where == "in its archive" else settle.ack
        for item in engine.on("jobs", claim.claim, Marks(), limit=3, lease=30.0):
            engine.on("jobs", settler, [item.lease])
    (before,) = looked_at(engine)["sequences"]
    assert before.status == "ok"
    restart(engine, "alter sequence pgqrs.q_jobs_message_id_seq restart")

    (finding,) = looked_at(engine)["sequences"]

    assert (finding.status, f"there is 3 {where}" in finding.summary) == ("fail", True)
    restart(engine, *finding.commands)
    assert looked_at(engine)["sequences"] == [before]


def test_a_sequence_behind_the_numbers_of_queues_is_told_and_creating_one_mends_it(engine: Engine) -> None:
    engine.transact(queues.create_queue, "second", QueueOptions())
    restart(engine, "alter sequence pgqrs.queues_queue_id_seq restart")
    (finding,) = looked_at(engine)["sequences"]
    assert (finding.status, "queue 2 exists" in finding.summary) == ("warn", True)

    made = engine.transact(queues.create_queue, "third", QueueOptions())

    assert made.id == 3
    assert [one.status for one in looked_at(engine)["sequences"]] == ["ok"]


def test_the_number_of_a_deleted_queue_is_not_given_again_while_its_keys_are_known(engine: Engine) -> None:
    gone = engine.transact(queues.create_queue, "second", QueueOptions())
    engine.on("second", enqueue.enqueue, [Draft("second", b"", "text/plain", idempotency_key="k")])
    engine.transact(queues.delete_queue, "second")
    restart(engine, "alter sequence pgqrs.queues_queue_id_seq restart")

    assert engine.transact(queues.create_queue, "third", QueueOptions()).id > gone.id


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("77, 5, null, null", "lane"),
        ("-50, 5, now(), null", "lane"),
        ("-32768, 5, now(), null", "lane"),
        ("-1, 5, 'infinity', null", "due_at"),
        ("-100, 5, '-infinity', null", "due_at"),
        ("-3, 5, '20000-01-01', null", "due_at"),
        ("0, 5, null, 'infinity'", "expires_at"),
        ("0, 5, null, '0044-03-15 BC'", "expires_at"),
    ],
)
def test_a_message_that_breaks_a_rule_is_named_with_what_removes_it(engine: Engine, row: str, rule: str) -> None:
    columns = "lane, message_id, due_at, expires_at, body"
    sound = "(-100, 7, now(), null, ''), (-1, 8, now(), now(), ''), (9, 9, null, null, '')"
    restart(engine, f"insert into pgqrs.q_jobs ({columns}) overriding system value values ({row}, ''), {sound}")

    (finding,) = looked_at(engine)["rules"]

    assert finding.status == "warn"
    assert finding.summary.startswith("message 5 of queue 'jobs' ")
    assert finding.summary.endswith(f"(rule {rule!r})")
    restart(engine, *finding.commands)
    assert [one.status for one in looked_at(engine)["rules"]] == ["ok"]
    with psycopg.connect(engine.config.conninfo()) as connection:
        assert connection.execute("select count(*) from pgqrs.q_jobs").fetchone() == (3,)


def test_a_table_without_autovacuum_is_told(engine: Engine) -> None:
    """With the statement that repairs it."""
    with psycopg.connect(engine.config.conninfo(), autocommit=True) as connection:
        connection.execute("alter table pgqrs.q_jobs set (autovacuum_enabled = false)")
    finding = only(looked_at(engine), "tables")
    assert (finding.status, "'jobs'" in finding.summary) == ("warn", True)


def test_a_bloated_table_is_told() -> None:
    """When autovacuum has not kept up."""
    row = ("q_jobs", 0, 0, 10, 100_000, None, False)
    answers: dict[str, Any] = {
        "queue_tables": [row],
        "list_queues": [(1, "jobs", "jobs", "{}", None, None)],
        "schema_exists": [(True,)],
        "applied_migrations": [(schema.SUPPORTED, "", True)],
        "metrics": [],
        "archive_metrics": [],
        "queue_numbers": [(1, 1)],
        "highest_ids": [(1, 10, 10)],
        "highest_archived": [(1, None)],
        "highest_keyed": [],
        "unsound": [],
        "leaders": [("celery", None, None, 5.0), ("housekeeper", "web-1", 4711, 12.0)],
        "sleepers": [(1, 2)],
    }
    found = examined(**answers)
    assert "100,000 dead rows beside 10 live ones, never vacuumed" in only(found, "tables").summary
    assert [one.summary for one in found["maintenance"]] == [
        "a process that did not say which has the role 'celery'; its term runs for 5 s more",
        "the process 4711 on web-1 does the maintenance; its term runs for 12 s more",
    ]
    assert "'jobs': 2" in only(found, "waiters").summary


def test_an_ordinary_role_can_run_the_doctor(engine: Engine, pgqrs_dsn: str) -> None:
    """It sees less and is told so; that it may not use the schema is a failure."""
    name = f"pgqrs_guest_{time.time_ns()}"
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute(f"create role {name} login".encode())
        connection.execute(f"grant connect on database {connection.info.dbname} to {name}".encode())
        try:
            with Engine(make_conninfo(pgqrs_dsn, options=f"-c role={name}")) as guest:
                found = looked_at(guest)
            assert only(found, "rights").status == "info"
            assert only(found, "schema").status == "fail"
            assert "permission denied" in only(found, "schema").summary
        finally:
            connection.execute(f"drop owned by {name}".encode())
            connection.execute(f"drop role {name}".encode())


def test_a_prepared_transaction_is_found(pgqrs_bindir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It survives restarts and is easily forgotten."""
    monkeypatch.setattr(doctor_server, "_PIN_NOTED", 0.0)
    with throw_away_cluster(pgqrs_bindir, options={"max_prepared_transactions": "2"}) as cluster:
        with psycopg.connect(cluster.dsn) as connection:
            connection.execute("create table t ()")
            connection.execute("prepare transaction 'forgotten'")
        with Engine(cluster.dsn) as engine:
            summaries = [one.summary for one in looked_at(engine)["old_snapshots"]]
        assert any("prepared transaction 'forgotten' of " in summary for summary in summaries)
