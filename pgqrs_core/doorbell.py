"""When to send a NOTIFY.

A NOTIFY takes a database-wide lock until its transaction is on disk, so producers send one only when a consumer
sleeps, after their own commit, and at most every few milliseconds: a woken consumer looks again by itself for a
while (see :mod:`pgqrs_core.watch`), so the messages that follow at once need no bell of their own. Nor do they need to
ask who sleeps: whoever falls asleep meanwhile looks again, too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final

from pgqrs_core.effects import Execute
from pgqrs_core.logs import get_logger
from pgqrs_core.sql import queries

__all__ = ["Doorbell", "channel_of", "channel_of_sleeper", "notification", "sleepers_for"]

#: Seconds between two notifications of one queue by one process, and between two questions who sleeps. The second look of
#: a consumer that was woken, or fell asleep, comes later than this.
QUIET: Final = 0.004

#: Processes that are woken at once, at most. Where they find more than they can take, they wake others.
MOST: Final = 4

_log = get_logger("pgqrs.wakeups")


def channel_of(schema: str) -> str:
    """Return the name of the LISTEN channel of a schema; PostgreSQL allows 63 bytes."""
    name = f"pgqrs:{schema}"
    if len(name.encode()) <= 63:
        return name
    return f"pgqrs:{hashlib.sha256(schema.encode()).hexdigest()[:32]}"


def channel_of_sleeper(consumer: int) -> str:
    """Return the name of the LISTEN channel of one process that sleeps; the statements make the same."""
    return f"pgqrs:{consumer}"


def sleepers_for(messages: int) -> int:
    """Return how many processes to wake for so many new messages. Most take several at once."""
    return min((messages + 1) // 2, MOST)


def notification(queue_id: int, count: int, *, but: int = 0) -> Execute:
    """Return what notifies ``count`` of the processes that sleep on a queue, not the one with the number ``but``."""
    params = {"queue_id": queue_id, "count": count, "consumer": but, "payload": str(queue_id)}
    return Execute(queries["notify"], params)


class Doorbell:
    """Decides whether a producer of this process notifies. Cheap, and safe to share between threads."""

    def __init__(self, schema: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.channel = channel_of(schema)
        self.clock = clock
        self._rang: dict[int, float] = {}
        self._calm: dict[int, float] = {}

    def knows(self, queue_id: int, now: float) -> bool:
        """Tell whether it needs no asking at ``now`` who sleeps: it rang just before, or nobody slept."""
        last = max(self._rang.get(queue_id, -QUIET), self._calm.get(queue_id, -QUIET))
        return now - last < QUIET

    def learn(self, queue_id: int, asked_at: float) -> None:
        """Note that nobody slept at ``asked_at``."""
        self._calm[queue_id] = asked_at

    def may_ring(self, queue_id: int) -> bool:
        """Tell whether to notify now, and remember it."""
        now = self.clock()
        if now - self._rang.get(queue_id, -QUIET) < QUIET:
            return False
        self._rang[queue_id] = now
        return True

    def failed(self) -> None:
        """Note that a notification could not be sent: the message is stored, and polling finds it."""
        _log.warning("a notification could not be sent; consumers find the message by polling", exc_info=True)
