"""Changes of tables beside long transactions: others are not held up, and the error says who is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from harness import meanwhile, until

from pgqrs_core.drivers import locks
from pgqrs_core.drivers.locks import BEHIND_AUTOVACUUM, BRIEF, GIVE_UP, Attempts
from pgqrs_core.effects import Execute, Transact
from pgqrs_core.errors import Blocker, QueueNotFound, TableLocked
from pgqrs_core.operations import queues
from pgqrs_core.sql import Query

if TYPE_CHECKING:
    from harness import Harness

    from pgqrs_core.effects import Op

TRIED = "select 1 from pg_locks where relation = 'pgqrs.q_jobs'::regclass and not granted"


class TestBesideAReader:
    def test_enqueues_go_on_while_a_deletion_waits(self, harness: Harness) -> None:
        harness.create("jobs")
        with psycopg.connect(harness.dsn) as reader:
            reader.execute("select count(*) from pgqrs.q_jobs where body <> 'secret'")
            with meanwhile(lambda: delete(harness)):
                until(lambda: harness.ask(TRIED), "the deletion has tried")
                with psycopg.connect(harness.dsn, autocommit=True, options="-c statement_timeout=5s") as producer:
                    for _ in range(20):
                        producer.execute("insert into pgqrs.q_jobs (lane, body) values (0, 'x')")
                reader.rollback()

        with pytest.raises(QueueNotFound):
            harness.queue()

    def test_the_error_says_who_is_in_the_way_and_what_to_do(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "GIVE_UP", 1.0)
        harness.create("jobs")
        with psycopg.connect(harness.dsn, application_name="report") as reader:
            reader.execute("select count(*) from pgqrs.q_jobs where priority < 7 and body <> 'secret'")
            with pytest.raises(TableLocked) as caught:
                harness.transact(queues.delete_queue, "jobs")
            pid = reader.info.backend_pid

        error = caught.value
        assert (error.sqlstate, error.tables[0]) == ("55P03", "q_jobs")
        assert [(one.pid, one.application, one.state) for one in error.blockers] == [
            (pid, "report", "idle in transaction")
        ]
        assert error.blockers[0].query == "select count(*) from pgqrs.q_jobs where priority < … and body <> "
        assert f"`select pg_terminate_backend({pid})`" in str(error)
        assert "secret" not in str(error)
        assert harness.queue().name == "jobs"

    def test_what_a_session_had_set_itself_stays(self, harness: Harness) -> None:
        harness.create("jobs")
        before = harness.transact(_show, "lock_timeout")
        harness.transact(queues.delete_queue, "jobs")

        shown = harness.transact(_show, "lock_timeout")

        assert shown == before == "1s"


def delete(harness: Harness) -> None:
    from harness import SyncHarness

    # Of its own: the event loop of an asynchronous one is busy with the test.
    other = SyncHarness(harness.dsn) if harness.kind == "async" else harness
    try:
        other.transact(queues.delete_queue, "jobs")
    finally:
        if other is not harness:
            other.close()


def _show(name: str) -> Op[str]:
    text: str = (yield Execute(Query("show", f"show {name}")))[0][0]
    return text


class TestTransactions:
    def test_a_part_is_one_transaction_and_answers_with_its_result(self, harness: Harness) -> None:
        def part() -> Op[int]:
            first = (yield Execute(Query("number", "select txid_current()")))[0][0]
            second = (yield Execute(Query("number", "select txid_current()")))[0][0]
            return first if first == second else 0

        def whole() -> Op[list[int]]:
            first = yield Transact(part)
            second = yield Transact(part)
            return [first, second]

        first, second = harness.run(whole)

        assert 0 < first < second

    def test_within_a_transaction_a_part_that_fails_takes_only_itself_back(self, harness: Harness) -> None:
        def broken() -> Op[None]:
            yield Execute(Query("insert", "insert into pgqrs.leaders values ('broken', 1, now())"))
            yield Execute(Query("fail", "select 1/0"))

        def whole() -> Op[None]:
            yield Execute(Query("insert", "insert into pgqrs.leaders values ('kept', 1, now())"))
            with pytest.raises(Exception, match="division by zero"):
                yield Transact(broken)

        harness.transact(whole)
        with psycopg.connect(harness.dsn) if harness.kind == "sync" else _lent(harness) as connection:
            harness.run_in(connection, _rename)
            with pytest.raises(Exception, match="division by zero"):
                harness.run_in(connection, lambda: (yield Transact(broken)))  # type: ignore[misc, func-returns-value]
            if harness.kind == "sync":
                connection.commit()
            else:
                harness.do(connection.commit)

        assert harness.ask("select role from pgqrs.leaders") == [("renamed",)]


def _rename() -> Op[None]:
    yield Execute(Query("rename", "update pgqrs.leaders set role = 'renamed'"))


class _lent:  # noqa: N801 - a context manager in two lines
    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def __enter__(self) -> psycopg.AsyncConnection:
        self.connection: psycopg.AsyncConnection = self.harness.do(psycopg.AsyncConnection.connect, self.harness.dsn)
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.harness.do(self.connection.close)


class TestAttempts:
    def test_they_end_after_a_while_with_the_last_error(self) -> None:
        now = 0.0
        attempts = Attempts(lambda: now)
        error = TableLocked("pgqrs")

        def go_on() -> None:
            nonlocal now
            while True:
                pause = attempts.pause_after(error)
                assert 0 < pause < 3
                now += pause + BRIEF

        with pytest.raises(TableLocked) as caught:
            go_on()

        assert caught.value is error
        assert GIVE_UP - 5 < now < GIVE_UP + 5

    def test_autovacuum_is_given_the_time_to_give_way(self) -> None:
        attempts = Attempts(lambda: 0.0)
        worker = Blocker(1, "?", "", "active", True, 5.0, "autovacuum: VACUUM pgqrs.q_jobs")
        person = Blocker(2, "app", "psql", "active", False, 5.0, "select")

        waits = [attempts.wait]
        for blockers in ([worker], [worker, person], []):
            attempts.pause_after(TableLocked("pgqrs", ("q_jobs",), blockers))
            waits.append(attempts.wait)

        assert waits == [BRIEF, BEHIND_AUTOVACUUM, BRIEF, BRIEF]
