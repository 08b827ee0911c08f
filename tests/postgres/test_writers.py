"""Who writes to a queue, as the locks tell: low-water marks wait for those, and for nobody else who is in a transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from harness import Harness, SyncHarness, draft

from pgqrs_core import marks as module
from pgqrs_core.effects import Execute
from pgqrs_core.marks import HELD, Marks
from pgqrs_core.operations import claim, enqueue, schema
from pgqrs_core.sql import queries
from pgqrs_core.testing import throw_away_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgqrs_core.effects import Op
    from pgqrs_core.messages import Queue


def asking(queue: Queue) -> Op[int]:
    ((number,),) = yield Execute(queries["oldest_writer"], queue=queue)
    return int(number)


def number_of(connection: psycopg.Connection) -> int:
    """Return the number of the connection's transaction, giving it one."""
    (number,) = connection.execute("select pg_current_xact_id()::text").fetchone() or ("",)
    return int(number)


class TestTheAnswer:
    @pytest.fixture
    def other(self, engine: SyncHarness) -> Iterator[psycopg.Connection]:
        with psycopg.connect(engine.dsn) as connection:
            yield connection
            connection.rollback()

    def answer(self, engine: SyncHarness) -> int:
        # A number is the next one until a later transaction has ended.
        engine.ask("select pg_current_xact_id()")
        return int(engine.run(asking, engine.queue()))

    def store(self, engine: SyncHarness, connection: psycopg.Connection, queue: str = "jobs") -> None:
        engine.run_in(connection, enqueue.enqueue, engine.queue(queue), [draft(queue=queue)])

    def test_where_nobody_writes_it_is_the_next_number(self, engine: SyncHarness, other: psycopg.Connection) -> None:
        before = number_of(other)
        other.commit()

        assert before < self.answer(engine) <= number_of(other)

    def test_somebody_who_writes_elsewhere_is_not_meant(self, engine: SyncHarness, other: psycopg.Connection) -> None:
        other.execute("create table elsewhere (n int)")
        other.execute("insert into elsewhere values (1)")

        assert self.answer(engine) > number_of(other)

    def test_somebody_who_writes_to_another_queue_is_not_meant(
        self, engine: SyncHarness, other: psycopg.Connection
    ) -> None:
        engine.create("others")
        self.store(engine, other, "others")

        assert self.answer(engine) > number_of(other)

    def test_somebody_who_has_stored_a_message_is_meant_until_his_transaction_ends(
        self, engine: SyncHarness, other: psycopg.Connection
    ) -> None:
        number = number_of(other)
        self.store(engine, other)

        assert self.answer(engine) == number
        other.commit()
        assert self.answer(engine) > number

    def test_what_is_stored_after_a_savepoint_counts_for_the_whole_transaction(
        self, engine: SyncHarness, other: psycopg.Connection
    ) -> None:
        number = number_of(other)
        with other.transaction():
            self.store(engine, other)
            assert self.answer(engine) == number

        assert self.answer(engine) == number


def test_a_prepared_transaction_counts(pgqrs_bindir: Path) -> None:
    with throw_away_cluster(pgqrs_bindir, options={"max_prepared_transactions": "2"}) as cluster:
        engine = SyncHarness(cluster.dsn)
        engine.transact(schema.install, engine.engine.schema)
        engine.create("jobs")
        with psycopg.connect(cluster.dsn) as connection:
            number = number_of(connection)
            connection.execute("insert into pgqrs.q_jobs (lane, body) values (0, 'late')")
            connection.execute("prepare transaction 'forgotten'")
        engine.ask("select pg_current_xact_id()")

        assert engine.run(asking, engine.queue()) == number
        engine.close()


class TestMarks:
    """Of an engine that claims message by message, a little more than `HELD` apart."""

    @pytest.fixture(autouse=True)
    def short_queues_are_worth_a_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WORTH", 1)

    @contextmanager
    def beside(self, harness: Harness, *, writes: bool) -> Iterator[Marks]:
        """Claim ten messages beside an older transaction; yield the marks that have followed."""
        now = [0.0]
        marks = Marks(lambda: now[0])
        with psycopg.connect(harness.dsn) as other:
            number_of(other)
            if writes:
                other.execute("insert into pgqrs.q_jobs (lane, body) values (0, 'late')")
            harness.send(*(b"%d" % number for number in range(10)))
            for number in range(10):
                now[0] += 1.1 * HELD
                (found,) = harness.on("jobs", claim.claim, marks, limit=1, lease=30.0)
                assert found.body == b"%d" % number
            yield marks
            other.commit()

    def test_they_pass_a_transaction_that_writes_elsewhere(self, harness: Harness) -> None:
        with self.beside(harness, writes=False) as marks:
            ids = [number for (number,) in harness.ask("select message_id from pgqrs.q_jobs order by 1")]
            assert marks.mark(0) >= ids[5]

    def test_they_wait_for_one_that_has_stored_a_message(self, harness: Harness) -> None:
        with self.beside(harness, writes=True) as marks:
            assert marks.mark(0) == 0

        assert harness.bodies() == [b"late"]
