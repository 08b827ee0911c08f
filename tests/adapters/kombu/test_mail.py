"""Messages of ephemeral queues beside an old snapshot, which keeps what was taken in the index."""

from __future__ import annotations

from itertools import count
from typing import Any

import psycopg
import pytest
from amqp.exceptions import PreconditionFailed
from kombu import Connection, Producer, Queue
from pgqrs_kombu import mail
from pgqrs_kombu.sql import queries
from psycopg import sql

from pgqrs_core import marks
from pgqrs_core.arrays import numbers
from pgqrs_core.drivers import session
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute
from pgqrs_core.marks import Marks

from .kombu_support import Bench, Inbox

DEAD = 50_000
REPLY = Queue("reply", auto_delete=True)


def number_of(bench: Bench) -> int:
    [(number,)] = bench.sql("select queue_id from pgqrs.kombu_queues where name = 'reply'")
    return int(number)


def pages(bench: Bench, number: int, start: int) -> int:
    """Return how many pages are touched by taking one message."""
    statement = Statements("pgqrs").render(Execute(queries["take"]))
    params = {"queue_ids": numbers([number]), "marks": numbers([start]), "limit": 100}
    with psycopg.connect(bench.dsn) as connection:
        connection.execute(session.session_settings(0).encode())
        connection.execute(b"prepare take as " + statement.positional)
        values = ", ".join(sql.Literal(params[name]).as_string(connection) for name in statement.names)
        [[[found]]] = connection.execute(f"explain (analyze, buffers, format json) execute take({values})".encode())
        connection.rollback()
    return int(found["Plan"]["Shared Hit Blocks"]) + int(found["Plan"]["Shared Read Blocks"])


@pytest.mark.parametrize("priority", [0, 5])
def test_taking_mail_costs_the_same_beside_many_that_died_under_an_old_snapshot(bench: Bench, priority: int) -> None:
    connection = bench.connect()
    REPLY(connection.default_channel).declare()
    engine, number = connection.transport.broker.engine, number_of(bench)
    # Each look at it is 5 ms later, so that a full look costs as much as it does beside what has died.
    clock = count()
    mine = Marks(clock=lambda: next(clock) * 0.005)

    def take() -> list[bytes]:
        found = engine.run(mail.receive, {number: mail.Sought("reply", mine)}, 1_000, engine.plugins)
        return [delivery.body for _, delivery in found]

    with psycopg.connect(bench.dsn) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from pgqrs.kombu_mail limit 1")
        bench.sql(
            "insert into pgqrs.kombu_mail (queue_id, priority, body) "
            f"select {number}, {priority}, repeat('x', 1000)::bytea from generate_series(1, {DEAD}) n"
        )
        taken = 0
        while found := take():
            taken += len(found)
        for body in (b"1", b"2", b"3"):
            Producer(connection).publish(body, routing_key="reply", priority=priority)
            assert take() == [body]
        Producer(connection).publish("last", routing_key="reply", priority=priority)
        start = mine.start_of(0)

        assert taken == DEAD
        assert pages(bench, number, start) < DEAD / 100
        assert pages(bench, number, 0) > DEAD / 10
        assert take() == [b"last"]


def test_mail_that_goes_back_is_found_below_what_was_taken_since(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "RESCAN", 1e6)
    monkeypatch.setattr(marks, "CHEAP", 0.0)
    monkeypatch.setattr(marks, "LAG", 0.0)
    connection: Connection = bench.connect()
    inbox = Inbox(connection, REPLY)
    for n in range(5):
        Producer(connection).publish(n, routing_key="reply")
        inbox.wait(n + 1)
    found: list[Any] = inbox.messages

    found[0].requeue()
    assert inbox.bodies(6)[5] == 0
    for n in range(3):
        Producer(connection).publish(n, routing_key="reply")
        inbox.wait(7 + n)
    found[1].requeue()
    assert inbox.bodies(10)[9] == 1


def test_what_cannot_be_stored_is_refused_as_by_durable_queues(bench: Bench) -> None:
    connection = bench.connect()
    REPLY(connection.default_channel).declare()
    with pytest.raises(PreconditionFailed, match="content_type"):
        Producer(connection).publish(b"x", routing_key="reply", content_type="a\udcff", content_encoding="binary")
