"""What the adapter asks of the database, as operations: which statements, in which order. See `pgqrs_core.effects`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.errors import NotPermitted
from pgqrs_core.messages import Queue
from pgqrs_core.sql import Query
from pgqrs_dramatiq.sql import queries

__all__ = [
    "Counts",
    "Outstanding",
    "add_limit",
    "await_keys",
    "await_no_more",
    "change_limit",
    "change_limit_of_sum",
    "count",
    "flush",
    "outstanding",
    "prune",
    "publish_event",
    "read_keys",
    "store_result",
]

_PAGE: Final = 1_000
#: What a group's callbacks are counted under, and how many messages they may wait for: as the view of new barriers has it.
_RANDOM: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_PARTIES: Final = 1_000_000_000
#: Bounds of what has none: the values are bigint, and sums stay within.
_FAR: Final = 2**62


class Counts(NamedTuple):
    """The messages of a queue by state."""

    ready: int
    delayed: int
    in_flight: int
    dead: int


class Outstanding(NamedTuple):
    """Whether anything is left to do, at what time that was so, and why a message died since, if one did."""

    any: bool
    at: datetime
    death: dict[str, Any] | None


def count(queue: Queue) -> Op[Counts]:
    """Count the messages of a queue, exactly and at one moment."""
    rows = yield Execute(queries["counts"], {}, queue)
    return Counts(*rows[0])


def outstanding(queue: Queue, since: datetime | None) -> Op[Outstanding]:
    """Tell whether a queue holds anything but dead letters, and whether one died since."""
    rows = yield Execute(queries["outstanding"], {"since": since}, queue)
    left, at, death = rows[0]
    return Outstanding(left, at, msgspec.json.decode(death) if death is not None else None)


def flush(queue: Queue) -> Op[int]:
    """Remove all messages, whatever their state; return how many."""
    return len((yield Execute(queries["flush"], {}, queue)))


def store_result(key: str, result: bytes, ttl: float, channel: str) -> Op[None]:
    """Store a result for ``ttl`` seconds, and wake those who wait for it."""
    yield Execute(queries["store_result"], {"key": key, "result": result, "ttl": ttl, "channel": channel})


def await_keys(keys: Collection[str], listener: int, seconds: float, read: Query) -> Op[Rows]:
    """Ask to be notified of ``keys`` as ``listener``, then return those that are there already."""
    params = {"keys": texts(keys), "listener": listener, "seconds": seconds}
    yield Execute(queries["await"], params)
    return (yield from read_keys(keys, read))


def read_keys(keys: Collection[str], read: Query) -> Op[Rows]:
    """Return the rows that are there for some keys."""
    rows: Rows = yield Execute(read, {"keys": texts(keys)})
    return rows


def await_no_more(keys: Collection[str], listener: int) -> Op[None]:
    """Take back what `await_keys` asked for."""
    yield Execute(queries["await_no_more"], {"keys": texts(keys), "listener": listener})


def add_limit(key: str, value: int, ttl: float) -> Op[bool]:
    """Set a counter unless it is there; tell whether it was set.

    A producer may set that of a group's callbacks, which has a random name, and no other.
    """
    params = {"key": key, "value": value, "ttl": ttl}
    if _RANDOM.fullmatch(key) and 1 <= value <= _MOST_PARTIES:
        if (yield Execute(queries["add_barrier"], params)):
            return True
        try:
            # It is there; if it has expired it counts as absent.
            return bool((yield Execute(queries["add_limit"], params)))
        except NotPermitted:
            return False
    return bool((yield Execute(queries["add_limit"], params)))


def change_limit(key: str, amount: int, ttl: float, *, minimum: int = -_FAR, maximum: int = _FAR) -> Op[bool]:
    """Add to a counter if it stays within the bounds; tell whether it does."""
    params = {"key": key, "amount": amount, "ttl": ttl, "minimum": minimum, "maximum": maximum}
    return bool((yield Execute(queries["change_limit"], params)))


def change_limit_of_sum(
    key: str, keys: Callable[[], Sequence[str]], amount: int, maximum: int, ttl: float, schema: str
) -> Op[bool]:
    """Add to a counter unless it, or the sum of ``keys()``, would exceed ``maximum``. Run it in one transaction.

    ``keys`` is called while the lock is held: a sliding window may have moved on meanwhile.
    """
    bases = sorted({_base(one) for one in (key, *keys())})
    yield Execute(queries["lock_limits"], {"schema": schema, "bases": texts(bases)})
    params = {"key": key, "keys": texts(keys()), "amount": amount, "maximum": maximum, "ttl": ttl}
    return bool((yield Execute(queries["change_limit_of_sum"], params)))


def publish_event(key: str, ttl: float, channel: str) -> Op[None]:
    """Let an event have happened for ``ttl`` seconds, and wake those who wait for it."""
    yield Execute(queries["publish_event"], {"key": key, "ttl": ttl, "channel": channel})


def prune() -> Op[int]:
    """Remove what has expired, in small steps; return how many results and counters that were."""
    removed = 0
    for name in ("prune_waiters", "prune_results", "prune_limits"):
        while True:
            rows = yield Execute(queries[name], {"limit": _PAGE})
            removed += len(rows) if name != "prune_waiters" else 0
            if len(rows) < _PAGE:
                break
    return removed


def _base(key: str) -> str:
    """Return what the counters of one sliding window have in common: Dramatiq names them ``key@second``."""
    return key.rpartition("@")[0] or key
