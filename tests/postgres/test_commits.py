"""Who sleeps hears of what was enqueued in the caller's own transaction, once that is committed."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import Borrowed, Harness, ask, borrow, draft

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op
from pgqrs_core.operations import enqueue
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a listener hears of when everything before it has been told.
END = "end"

both_wrappers = pytest.mark.parametrize("make", ["SQLAlchemy Connection", "SQLAlchemy Session"])


class Ear:
    """Listens to what producers tell a consumer that sleeps: the one with the number 1."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._connection = psycopg.connect(harness.dsn, autocommit=True)
        self._connection.execute('listen "pgqrs:1"')
        self._connection.execute("select pg_advisory_lock(1)")

    def heard(self) -> list[str]:
        """Return what was told up to now, of an engine that is at rest, and close it."""
        self._harness.do(self._harness.engine.close)
        self._harness.ask("select pg_notify('pgqrs:1', %s)", END)
        found = []
        for notice in self._connection.notifies(timeout=20):
            if notice.payload == END:
                return found
            found.append(notice.payload)
        raise AssertionError("nothing can be heard")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def ear(harness: Harness) -> Iterator[Ear]:
    ear = Ear(harness)
    yield ear
    ear.close()


def fall_asleep(harness: Harness) -> str:
    """Leave the mark of a consumer that sleeps on the queue, and return what it is to be told."""

    def mark(number: int) -> Op[None]:
        params = {"queue_ids": numbers([number]), "consumer": 1, "seconds": 120.0, "fresh": True}
        yield Execute(queries["watch"], params)

    harness.run(mark, harness.queue().id)
    return str(harness.queue().id)


def put(harness: Harness, connection: object, **fields: Any) -> None:
    harness.run_in(connection, enqueue.enqueue, harness.queue(), [draft(**fields)])


@contextmanager
def borrowed(harness: Harness, make: str) -> Iterator[Borrowed]:
    caller = borrow(harness, make)
    try:
        yield caller
    finally:
        caller.close()


@both_wrappers
class TestSqlalchemy:
    def test_a_waiting_consumer_is_told_after_the_commit(self, harness: Harness, make: str, ear: Ear) -> None:
        number = fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.commit()

        assert ear.heard() == [number]

    def test_the_message_is_there_when_the_bell_rings(
        self, harness: Harness, make: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fall_asleep(harness)
        seen: list[int] = []

        def may_ring(_: int) -> bool:
            seen.append(ask(harness.dsn, "select count(*) from pgqrs.q_jobs")[0][0])
            return True

        monkeypatch.setattr(harness.engine.doorbell, "may_ring", may_ring)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.commit()
        harness.do(harness.engine.close)

        assert seen == [1]

    def test_a_new_pool_is_listened_to_whatever_became_of_the_one_whose_place_in_memory_it_has(
        self, harness: Harness, make: str, ear: Ear, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLAlchemy, asked whether a listener is known, goes by the place."""
        monkeypatch.setattr("sqlalchemy.event.contains", lambda *_: True)
        number = fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.commit()
        harness.do(harness.engine.close)

        assert ear.heard() == [number]

    def test_a_rollback_tells_nobody(self, harness: Harness, make: str, ear: Ear) -> None:
        fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.rollback()
            caller.execute("select 1")
            caller.commit()

        assert ear.heard() == []

    def test_nobody_is_told_when_nobody_sleeps_or_the_message_is_for_later(
        self, harness: Harness, make: str, ear: Ear
    ) -> None:
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.commit()
        fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw, delay=60.0)
            caller.commit()

        assert ear.heard() == []

    def test_a_connection_that_was_lost_tells_nobody_and_is_usable_again(
        self, harness: Harness, make: str, ear: Ear
    ) -> None:
        from sqlalchemy.exc import OperationalError

        number = fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            harness.ask(
                "select pg_terminate_backend(pid, 20000) from pg_stat_activity "
                "where datname = current_database() and state = 'idle in transaction'"
            )
            with pytest.raises(OperationalError):
                caller.execute("select 1")
            caller.rollback()
            put(harness, caller.raw)
            caller.commit()

        assert ear.heard() == [number]

    def test_a_transaction_that_is_dropped_tells_nobody(self, harness: Harness, make: str, ear: Ear) -> None:
        fall_asleep(harness)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)

        assert ear.heard() == []

    def test_a_commit_survives_a_bell_that_cannot_ring(
        self, harness: Harness, make: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fall_asleep(harness)

        def broken(_: int) -> bool:
            raise RuntimeError("the bell is broken")

        monkeypatch.setattr(harness.engine.doorbell, "may_ring", broken)
        with borrowed(harness, make) as caller:
            put(harness, caller.raw)
            caller.commit()

        assert len(harness.bodies()) == 1


def test_a_connection_that_is_kept_tells_when_its_next_transaction_begins(harness: Harness, ear: Ear) -> None:
    number = fall_asleep(harness)
    with borrowed(harness, "SQLAlchemy Connection") as caller:
        put(harness, caller.raw)
        caller.commit()
        caller.execute("select 1")
        assert ear.heard() == [number]


@pytest.mark.parametrize("open_harness", ["sync"], indirect=True)
class TestDjango:
    @pytest.fixture
    def connection(self, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """The connection of one alias, which `atomic` finds."""
        with borrowed(harness, "Django") as caller:
            caller.raw.set_autocommit(True)
            monkeypatch.setattr("django.db.transaction.connections", {"default": caller.raw})
            yield caller.raw

    def test_consumers_are_told_after_the_commit(self, harness: Harness, connection: Any, ear: Ear) -> None:
        from django.db.transaction import atomic

        number = fall_asleep(harness)
        with atomic("default"):
            put(harness, connection)

        assert ear.heard() == [number]

    def test_a_rollback_tells_nobody_even_one_of_a_savepoint(self, harness: Harness, connection: Any, ear: Ear) -> None:
        from django.db.transaction import atomic

        fall_asleep(harness)
        with suppress(ZeroDivisionError), atomic("default"):
            put(harness, connection)
            raise ZeroDivisionError
        with atomic("default"), suppress(ZeroDivisionError), atomic("default"):
            put(harness, connection)
            raise ZeroDivisionError

        assert ear.heard() == []

    def test_in_autocommit_consumers_are_told_at_once(self, harness: Harness, connection: Any, ear: Ear) -> None:
        number = fall_asleep(harness)
        put(harness, connection)

        assert ear.heard() == [number]

    def test_where_transactions_are_managed_by_hand_consumers_poll(
        self, harness: Harness, connection: Any, ear: Ear
    ) -> None:
        fall_asleep(harness)
        connection.set_autocommit(False)
        put(harness, connection)
        connection.commit()

        assert ear.heard() == []


def test_on_a_plain_connection_consumers_poll(harness: Harness, ear: Ear) -> None:
    fall_asleep(harness)
    with borrowed(harness, "psycopg") as caller:
        put(harness, caller.raw)
        caller.commit()

    assert ear.heard() == []
