"""Pickup latency: how long an idle worker takes to start on a single message."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

import msgspec

from pgqrs_native.demo import tables
from pgqrs_native.demo.setting import QUEUE, Ping

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from pgqrs_native import Client

__all__ = ["Pickups", "measure"]

#: Seconds between two messages: long enough for the worker to be done with the first and asleep again.
_APART: Final = 0.025
#: How long the last ones may take.
_PATIENCE: Final = 10.0


class Pickups(msgspec.Struct, frozen=True):
    """The latencies seen, in seconds, and what was wrong with them."""

    latencies: list[float]
    problems: list[str]


def measure(client: Client, connection: psycopg.Connection, count: int, tick: Callable[[int], None]) -> Pickups:
    """Send ``count`` single messages to idle workers.

    The time runs from the call of ``enqueue``, so that it includes the commit, to the first line of the
    handler in another process of this machine; both read the same clock.
    """
    draw = random.Random(0)
    sent_at: list[float] = []
    for number in range(count):
        sent_at.append(time.time())
        client.producer.enqueue(QUEUE, Ping(number))
        tick(number + 1)
        # Not in step with anything that happens at regular intervals.
        time.sleep(_APART * draw.uniform(0.8, 1.2))
    deadline = time.monotonic() + _PATIENCE
    while True:
        started = tables.fetch_pickups(connection)
        if len({number for number, _ in started}) >= count or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return evaluate(sent_at, started)


def evaluate(sent_at: list[float], started: list[tuple[int, float]]) -> Pickups:
    """Subtract, and see that each was handled once."""
    first = dict(sorted(started, reverse=True))
    problems = []
    if lost := len(sent_at) - len(first):
        problems.append(f"lost: {lost} of {len(sent_at)} single messages")
    if doubled := len(started) - len(first):
        problems.append(f"doubled: {doubled} of {len(sent_at)} single messages")
    return Pickups([at - sent_at[number] for number, at in sorted(first.items())], problems)
