"""Beside a message on its last attempt, which may be what killed the workers before, a process claims nothing."""

from __future__ import annotations

import pytest
from pgqrs_dramatiq import PgqrsBroker

from tests.adapters.dramatiq.dramatiq_support import Station, send, take


@pytest.fixture
def broker(station: Station) -> PgqrsBroker:
    """One broker, whose queue holds a message that two workers have died of."""
    broker = station.broker(max_attempts=3)
    send(broker, 0)
    station.sql("update pgqrs.q_default set attempt = 2")
    return broker


@pytest.mark.parametrize("queue", ["default", "other"])
def test_nothing_is_claimed_while_it_is_handled(station: Station, broker: PgqrsBroker, queue: str) -> None:
    broker.declare_queue(queue)
    first = broker.consume("default", prefetch=8, timeout=300)
    poison = take(first)
    send(broker, 1, 2, 3, queue=queue)
    second = first if queue == "default" else broker.consume(queue, prefetch=8, timeout=300)

    assert next(second) is None

    assert station.sql(f"select distinct attempt, lease_token from pgqrs.q_{queue} where attempt < 3") == [(0, 0)]
    first.ack(poison)
    assert [take(second).args[0] for _ in range(3)] == [1, 2, 3]
