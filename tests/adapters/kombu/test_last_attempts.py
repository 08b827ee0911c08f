"""Beside a message on its last attempt, which may be what killed the consumers before, a connection claims no task."""

from __future__ import annotations

import pytest
from kombu import Producer, Queue

from tests.adapters.kombu.kombu_support import Bench, Inbox

INNOCENT = ["one", "two", "three"]


@pytest.fixture(params=["q", "other"], ids=["same queue", "another queue"])
def inbox(request: pytest.FixtureRequest, bench: Bench) -> Inbox:
    """A consumer of two queues with room for eight, and one message that two consumers have died of."""
    connection = bench.connect(max_attempts=3)
    producer = Producer(connection)
    producer.publish("poison", routing_key="q", declare=[Queue("q")])
    bench.sql("update pgqrs.q_q set attempt = 2")
    queues = [Queue("q"), Queue("other")]
    # The one queue is asked first, and full; the other is asked after it.
    inbox = Inbox(connection, *queues, prefetch=8)
    inbox.wait(1)
    for body in INNOCENT:
        producer.publish(body, routing_key=request.param, declare=queues)
    return inbox


def untouched(bench: Bench) -> int:
    """How many messages no consumer holds, and none has been charged for."""
    return sum(
        bench.sql(f"select count(*) from pgqrs.{table} where lease_token = 0 and attempt = 0")[0][0]
        for table in ("q_q", "q_other")
    )


def test_nothing_is_claimed_while_it_is_handled(bench: Bench, inbox: Inbox) -> None:
    assert inbox.nothing()

    assert inbox.bodies(1) == ["poison"]
    assert untouched(bench) == len(INNOCENT)


@pytest.mark.parametrize("settle", ["ack", "reject"])
def test_once_it_is_settled_the_others_come(inbox: Inbox, settle: str) -> None:
    getattr(inbox.messages[0], settle)()

    assert inbox.bodies(4) == ["poison", *INNOCENT]


def test_once_it_went_back_claiming_goes_on(inbox: Inbox) -> None:
    inbox.channel.basic_recover(requeue=True)

    inbox.wait(2)


def test_what_was_claimed_with_it_is_given_back_uncharged(bench: Bench) -> None:
    connection = bench.connect(max_attempts=3)
    producer = Producer(connection)
    for body in ["poison", *INNOCENT]:
        producer.publish(body, routing_key="q", declare=[Queue("q")])
    bench.sql("update pgqrs.q_q set attempt = 2 where message_id = (select min(message_id) from pgqrs.q_q)")
    inbox = Inbox(connection, Queue("q"), Queue("other"), prefetch=8)

    assert inbox.bodies(1) == ["poison"]
    assert inbox.nothing()
    assert untouched(bench) == len(INNOCENT)
    inbox.messages[0].ack()
    assert inbox.bodies(4) == ["poison", *INNOCENT]
