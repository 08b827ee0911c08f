"""A lock on the table of one queue is no trouble for the others of a worker, nor for its own acks and leases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq
import psycopg
import pytest
from dramatiq.results import Results

from pgqrs_core.testing import PATIENCE, eventually

from .dramatiq_support import Station, quiet


@contextmanager
def locked(station: Station, table: str) -> Iterator[None]:
    with psycopg.connect(station.dsn) as connection:
        connection.execute(f"lock table {table} in access exclusive mode")
        yield
        connection.rollback()


def test_one_queue_is_worked_on_and_leases_are_renewed_while_another_is_locked(station: Station) -> None:
    broker = station.broker(lease=2.0)
    handled: list[str] = []
    began, go = threading.Semaphore(0), threading.Event()

    @dramatiq.actor(broker=broker, queue_name="a")
    def first(name: str) -> None:
        handled.append(name)
        began.release()
        go.wait(PATIENCE)

    @dramatiq.actor(broker=broker, queue_name="b")
    def second(name: str) -> None:
        handled.append(name)

    with station.worker(broker):
        first.send("a1")
        second.send("b0")
        assert began.acquire(timeout=PATIENCE)
        with locked(station, "pgqrs.q_a"):
            go.set()
            # Longer than a lease.
            until = station.sql("select now() + interval '3 s'")[0][0]
            for number in range(1, 6):
                second.send(f"b{number}")
                eventually(lambda number=number: f"b{number}" in handled, patience=6)
            eventually(lambda: station.sql("select now() > %s", until) == [(True,)])
            eventually(lambda: station.rows("b") == 0)
        eventually(lambda: station.rows("a") == 0)
        first.send("a2")
        eventually(lambda: "a2" in handled)
    assert handled.count("a1") == 1


def test_acks_that_are_refused_for_a_while_are_kept(station: Station) -> None:
    broker = station.broker(lease=1.0)
    handled: list[int] = []

    @dramatiq.actor(broker=broker)
    def act(number: int) -> None:
        handled.append(number)

    act.send(0)
    station.sql(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not now' using errcode = '53100'; end $$"
    )
    station.sql("create trigger refuse before delete on pgqrs.q_default execute function refuse()")
    with station.worker(broker):
        until = station.sql("select now() + interval '2.5 s'")[0][0]
        eventually(lambda: station.sql("select now() > %s", until) == [(True,)])
        assert handled == [0]
        station.sql("drop trigger refuse on pgqrs.q_default")
        eventually(lambda: station.rows() == 0)
    assert handled == [0]


def test_a_result_that_is_refused_for_a_while_is_stored_afterwards(station: Station) -> None:
    broker = station.broker()
    results = station.results()
    broker.add_middleware(Results(backend=results))

    @dramatiq.actor(broker=broker, store_results=True)
    def act() -> int:
        return 7

    results.store_result(act.message(), 1, 1000)
    station.sql(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not now' using errcode = '53100'; end $$"
    )
    station.sql("create trigger refuse before insert on pgqrs.dramatiq_results execute function refuse()")
    threading.Timer(1.5, station.sql, ["drop trigger refuse on pgqrs.dramatiq_results"]).start()
    with station.worker(broker):
        assert act.send().get_result(backend=results, block=True, timeout=20_000) == 7


def test_a_message_that_dies_has_one_line_in_the_log(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    broker = station.broker()

    @dramatiq.actor(broker=broker, max_retries=0)
    def act() -> None:
        raise ValueError("too bad")

    act.send()
    with quiet(), station.worker(broker):
        eventually(station.dead)
    eventually(lambda: [one for one in caplog.messages if "is dead" in one])
    (line,) = [one for one in caplog.messages if "is dead" in one]
    assert line == "message 1 of queue 'default' is dead after attempt 1: ValueError: too bad"


def test_one_locked_row_keeps_no_other_message_of_its_queue_from_renewal_and_ack(station: Station) -> None:
    broker = station.broker(lease=2.0)
    handled: list[int] = []
    began, go = threading.Semaphore(0), threading.Event()

    @dramatiq.actor(broker=broker)
    def act(number: int) -> None:
        handled.append(number)
        began.release()
        if number < 2:
            go.wait(PATIENCE)

    for number in range(8):
        act.send(number)
    with station.worker(broker):
        assert all(began.acquire(timeout=PATIENCE) for _ in range(8))
        with psycopg.connect(station.dsn) as other:
            other.execute("select from pgqrs.q_default order by message_id limit 1 for update")
            until = station.sql("select now() + interval '3 s'")[0][0]
            eventually(lambda: station.sql("select now() > %s", until) == [(True,)])
            go.set()
            eventually(lambda: station.rows() == 1)
        eventually(lambda: station.rows() == 0)

    assert sorted(handled) == list(range(8))
