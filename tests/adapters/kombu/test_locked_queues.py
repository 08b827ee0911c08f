"""A lock on the table of one queue is no trouble for the others of a consumer, nor for its own acks and leases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from kombu import Producer, Queue

from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox, drain


@contextmanager
def locked(bench: Bench, table: str) -> Iterator[None]:
    with psycopg.connect(bench.dsn) as connection:
        connection.execute(f"lock table {table} in access exclusive mode")
        yield
        connection.rollback()


def publish(bench: Bench, queue: str, *bodies: object) -> None:
    producer = Producer(bench.connect())
    for body in bodies:
        producer.publish(body, routing_key=queue, declare=[Queue(queue)])


def test_one_queue_is_consumed_and_settled_while_another_is_locked_and_then_that_one(bench: Bench) -> None:
    publish(bench, "a", "a1")
    publish(bench, "b", "b1")
    inbox = Inbox(bench.connect(lease=2.0), Queue("a"), Queue("b"))
    first, second = inbox.wait(2)
    with locked(bench, "pgqrs.q_a"):
        for message in (first, second):
            message.ack()
        for number in range(5):
            publish(bench, "b", f"more{number}")
            inbox.wait(3 + number, patience=6)
            inbox.messages[-1].ack()
        # Beyond the lease of the first, whose ack is refused for so long.
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            drain(inbox.connection, 0.2)
        eventually(lambda: bench.sql("select count(*) from pgqrs.q_b") == [(0,)])
    eventually(lambda: bench.sql("select count(*) from pgqrs.q_a") == [(0,)])
    publish(bench, "a", "a2")
    assert inbox.wait(8)[-1].payload == "a2"
    assert [message.payload for message in inbox.messages].count("a1") == 1


def test_acks_that_are_refused_for_a_while_are_kept_and_their_leases_renewed(bench: Bench) -> None:
    publish(bench, "a", "once")
    inbox = Inbox(bench.connect(lease=1.0), Queue("a"))
    (message,) = inbox.wait(1)
    bench.sql(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not now' using errcode = '53200'; end $$"
    )
    bench.sql("create trigger refuse before delete on pgqrs.q_a execute function refuse()")
    message.ack()
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        drain(inbox.connection, 0.2)
    assert len(inbox.messages) == 1
    bench.sql("drop trigger refuse on pgqrs.q_a")
    eventually(lambda: bench.sql("select count(*) from pgqrs.q_a") == [(0,)])


def test_a_rejected_message_dies_with_a_line_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    publish(bench, "a", "bad")
    inbox = Inbox(bench.connect(), Queue("a"))
    (message,) = inbox.wait(1)
    message.reject()
    eventually(lambda: bench.sql("select count(*) from pgqrs.q_a where lane = -100") == [(1,)])
    (line,) = [one for one in caplog.messages if "is dead" in one]
    assert line == "message 1 of queue 'a' is dead after attempt 1: Rejected: the consumer rejected it"
