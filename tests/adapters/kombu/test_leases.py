"""A delivery is a lease: it lasts while its consumer lives, is settled by its token, and outlives connections."""

from __future__ import annotations

import gc
import threading
from collections import deque

import psycopg
import pytest
from kombu import Producer, Queue
from pgqrs_kombu import batch

from pgqrs_core.pace import GATHER
from pgqrs_core.testing import eventually

from .kombu_support import Bench, Inbox, drain

HOLD_AND_DIE = """
import os, signal, sys
from kombu import Connection, Consumer, Queue
connection = Connection(sys.argv[1], transport_options={"lease": 1.0})
got = []
with Consumer(connection.channel(), [Queue("q")], on_message=got.append, accept=None):
    while not got:
        connection.drain_events(timeout=20)
    print("held", flush=True)
    os._exit(0)
"""

#: Ends without a word, with one message in hand and others on their way.
HOLD_AND_END = """
import sys
from kombu import Connection, Consumer, Queue
connection = Connection(sys.argv[1])
got = []
consumer = Consumer(connection.channel(), [Queue("q"), Queue("own", exclusive=True)], on_message=got.append, accept=None)
consumer.consume()
while not got:
    connection.drain_events(timeout=20)
"""


def publish(bench: Bench, *bodies: object, queue: str = "q") -> None:
    producer = Producer(bench.connect())
    for body in bodies:
        producer.publish(body, routing_key=queue, declare=[Queue(queue)])


def terminate(bench: Bench) -> int:
    """End all connections of pgqrs to this database."""
    found = bench.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        "and application_name = 'pgqrs' and pid <> pg_backend_pid()"
    )
    return len(found)


def test_a_consumer_at_a_brisk_pace_takes_together_what_comes_within_milliseconds_and_a_slow_one_waits_for_news(
    bench: Bench,
) -> None:
    publish(bench, "slow")
    connection = bench.connect()
    inbox = Inbox(connection, Queue("q"))
    inbox.wait(1)
    intake = connection.transport.intake
    assert intake.next_look is None

    with batch():
        publish(bench, *range(150))
    inbox.wait(151)

    assert 0 <= intake.next_look <= GATHER
    publish(bench, "one more")
    # What comes singly may be a chain, whose next step waits for this one.
    assert inbox.bodies(152)[-1] == "one more"
    assert intake.next_look is None
    assert inbox.nothing()
    assert intake.next_look is None


def test_acks_are_written_soon_and_only_once_each(bench: Bench) -> None:
    publish(bench, *range(50))
    inbox = Inbox(bench.connect(), Queue("q"))
    for message in inbox.wait(50):
        message.ack()
    eventually(lambda: bench.rows("q") == 0)


def test_ack_multiple_settles_all_up_to_a_tag(bench: Bench) -> None:
    publish(bench, *range(5))
    inbox = Inbox(bench.connect(), Queue("q"))
    inbox.wait(5)[3].ack(multiple=True)
    eventually(lambda: bench.rows("q") == 1)


def test_an_ack_from_another_thread_makes_room_while_this_one_waits(bench: Bench) -> None:
    publish(bench, 1, 2)
    inbox = Inbox(bench.connect(), Queue("q"), prefetch=1)
    first = inbox.wait(1)[0]
    assert inbox.nothing()
    threading.Timer(0.1, first.ack).start()
    assert inbox.bodies(2) == [1, 2]


def test_a_consumer_without_room_looks_for_nothing_and_is_asked_once_however_much_is_ready(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bench, 1, 2)
    connection = bench.connect()
    inbox = Inbox(connection, Queue("q"), prefetch=1)
    (first,) = inbox.wait(1)
    intake = connection.transport.intake
    (source,) = intake._sources
    assert not intake.is_hungry
    asked: list[int] = []
    monkeypatch.setattr(inbox.channel.qos, "can_consume", lambda: asked.append(1))
    monkeypatch.setattr(intake, "_ready", deque([(source, None, 0.0)] * 100))

    assert not intake.hand_on()

    assert len(asked) == 1
    monkeypatch.undo()
    first.ack()
    assert intake.is_hungry
    assert inbox.bodies(2) == [1, 2]


def test_prefetch_bounds_what_one_consumer_takes_from_others(bench: Bench) -> None:
    publish(bench, *range(4))
    one, two = Inbox(bench.connect(), Queue("q"), prefetch=2), Inbox(bench.connect(), Queue("q"), prefetch=2)
    assert one.bodies(2) == [0, 1]
    assert one.nothing()
    assert two.bodies(2) == [2, 3]


def test_a_message_is_not_delivered_twice_however_long_its_consumer_takes(bench: Bench) -> None:
    publish(bench, "long")
    slow, other = Inbox(bench.connect(lease=1.0), Queue("q")), Inbox(bench.connect(), Queue("q"))
    message = slow.wait(1)[0]
    until = bench.sql("select lease_until from pgqrs.q_q")[0][0]
    # Three leases go by without this connection being served, as under a task that blocks its event loop.
    eventually(lambda: bench.sql("select now() > %s + interval '2 seconds'", until) == [(True,)])
    assert other.nothing()
    message.ack()
    eventually(lambda: bench.rows("q") == 0)


def test_what_a_dead_process_held_is_delivered_again_and_marked(bench: Bench) -> None:
    publish(bench, "x")
    assert bench.python(HOLD_AND_DIE) == "held\n"
    message = Inbox(bench.connect(), Queue("q")).wait(1)[0]
    assert message.payload == "x"
    assert message.delivery_info["redelivered"] is True


def test_what_a_process_held_that_ended_without_closing_is_given_back_at_once(bench: Bench) -> None:
    publish(bench, "x", "y")

    bench.python(HOLD_AND_END)

    assert bench.sql("select count(*) from pgqrs.q_q where lease_until <= now()") == [(2,)]
    assert bench.sql("select name from pgqrs.kombu_queues where name = 'own'") == []


def test_requeueing_keeps_place_and_priority_and_ends_as_a_dead_letter(bench: Bench) -> None:
    connection = bench.connect(max_attempts=3)
    Queue("q")(connection.channel()).declare()
    producer = Producer(connection)
    producer.publish("first", routing_key="q", priority=1)
    producer.publish("urgent", routing_key="q", priority=5)
    producer.publish("second", routing_key="q", priority=1)
    inbox = Inbox(connection, Queue("q"), prefetch=1)
    inbox.wait(1)[0].ack()
    for count in (2, 3):
        inbox.wait(count)[-1].requeue()
    last = inbox.wait(4)[-1]
    assert [message.payload for message in inbox.messages] == ["urgent", "first", "first", "first"]
    assert last.delivery_info["redelivered"] is True
    last.requeue()
    assert inbox.wait(5)[-1].payload == "second"
    assert [error["type"] for error in bench.dead("q")] == ["AttemptsExhausted"]


def test_rejecting_without_requeue_is_a_dead_letter_with_its_reason(bench: Bench) -> None:
    publish(bench, "bad")
    Inbox(bench.connect(), Queue("q")).wait(1)[0].reject()
    eventually(lambda: bench.rows("q") == 0)
    assert [error["type"] for error in bench.dead("q")] == ["Rejected"]


def test_closing_a_channel_gives_everything_back_at_once_and_in_order(bench: Bench) -> None:
    publish(bench, *range(5))
    inbox = Inbox(bench.connect(), Queue("q"), prefetch=3)
    inbox.wait(3)
    inbox.channel.close()
    assert bench.sql("select count(*), max(attempt) from pgqrs.q_q where lease_until < now()") == [(5, 0)]
    assert Inbox(bench.connect(), Queue("q")).bodies(5) == [0, 1, 2, 3, 4]


def test_recover_gives_unsettled_messages_back(bench: Bench) -> None:
    publish(bench, "x")
    inbox = Inbox(bench.connect(), Queue("q"))
    inbox.wait(1)
    inbox.channel.basic_recover(requeue=True)
    assert inbox.bodies(2) == ["x", "x"]


def test_an_ack_holds_after_the_connection_that_delivered_was_lost(bench: Bench) -> None:
    publish(bench, "running", "waiting")
    connection = bench.connect(lease=1.0)
    inbox = Inbox(connection, Queue("q"), prefetch=2)
    running, waiting = inbox.wait(2)
    # As Celery does: it collects the connection, and forgets what it had not begun.
    inbox.messages.clear()
    connection.collect()
    del inbox, waiting
    again = Inbox(bench.connect(), Queue("q"))
    gc.collect()
    assert again.bodies(1) == ["waiting"]
    again.messages[0].ack()
    until = bench.sql("select max(lease_until) from pgqrs.q_q")[0][0]
    eventually(lambda: bench.sql("select max(lease_until) > %s from pgqrs.q_q", until) == [(True,)])
    running.ack()
    eventually(lambda: bench.rows("q") == 0)


def test_what_is_dropped_long_after_its_connection_was_lost_comes_again_in_a_process_that_makes_no_garbage(
    bench: Bench,
) -> None:
    """As Celery's worker drops tasks with an ETA when it has connected anew: request and timer refer to each other."""
    publish(bench, "x")
    connection = bench.connect()
    inbox = Inbox(connection, Queue("q"))
    circle: list[object] = list(inbox.wait(1))
    circle.append(circle)
    inbox.messages.clear()
    collected: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        collected.append(phase)

    gc.collect()
    gc.disable()
    gc.callbacks.append(note)
    try:
        connection.collect()
        eventually(lambda: "stop" in collected)
        del inbox, circle
        assert Inbox(bench.connect(), Queue("q")).bodies(1) == ["x"]
    finally:
        gc.callbacks.remove(note)
        gc.enable()


def test_a_stale_lease_cannot_settle(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    publish(bench, "x")
    inbox = Inbox(bench.connect(), Queue("q"))
    message = inbox.wait(1)[0]
    bench.sql("update pgqrs.q_q set lease_token = lease_token + 1")
    message.ack()
    eventually(lambda: "had passed to another consumer" in caplog.text)
    assert bench.rows("q") == 1


@pytest.mark.parametrize("ephemeral", [False, True])
def test_consuming_goes_on_after_all_connections_were_terminated(bench: Bench, ephemeral: bool) -> None:
    connection = bench.connect()
    queue = Queue("q", auto_delete=ephemeral)
    inbox = Inbox(connection, queue)
    assert inbox.nothing()
    for number in range(3):
        assert terminate(bench) > 0
        producer = Producer(bench.connect())
        producer.publish(number, routing_key="q", retry=True)
        assert inbox.wait(number + 1)[-1].payload == number


def test_a_claim_that_waits_for_a_lock_too_long_does_not_end_the_connection(bench: Bench) -> None:
    publish(bench, "x")
    connection = bench.connect(query_timeout=0.2)
    inbox = Inbox(connection, Queue("q"))
    with psycopg.connect(bench.dsn) as other:
        other.execute("lock table pgqrs.q_q in access exclusive mode")
        assert not drain(connection, 0.6)
        other.rollback()
    assert inbox.bodies(1) == ["x"]


def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(bench: Bench) -> None:
    connection = bench.connect()
    inbox = Inbox(connection, Queue("q"))
    assert inbox.nothing()
    other = bench.connect()
    other.channel().queue_delete("q")
    assert not drain(connection, 1.5)
    publish(bench, "again")
    assert inbox.bodies(1) == ["again"]
