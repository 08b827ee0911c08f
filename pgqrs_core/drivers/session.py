"""How a connection of ours is set up, and what a connection remembers.

Left alone, the planner ruins the claim: after statistics that saw an empty table it sorts the whole backlog; and it plans
the statement anew at each call, which costs twice what running it does. So plans are pinned and generic, once per
connection. Behind a transaction pooler a session is not ours to change: there the same settings go with each statement.
See docs/adr/0003-pinned-generic-plans.md.
"""

from __future__ import annotations

import logging
import select
from typing import Final, Generic, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

__all__ = ["APPLICATION", "BACKEND", "Link", "Shelf", "is_alive", "local_settings", "session_settings"]

APPLICATION: Final = "pgqrs"

#: A pooler answers with another process than the one it announced when connecting.
BACKEND: Final = "select pg_backend_pid()"

_PINNED: Final = {
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # Plans with a switched-off step look expensive, and would be compiled.
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

#: Prepared statements kept per connection: a few for each of many queues.
PREPARED_MAX: Final = 400

_log = logging.getLogger("pgqrs.connections")

C = TypeVar("C")


def session_settings(query_timeout: float) -> str:
    """Return the script that sets up a session that is ours alone; ``query_timeout`` in seconds, 0 for none."""
    settings = {
        **_PINNED,
        "default_transaction_isolation": "read committed",
        "timezone": "UTC",
        "statement_timeout": f"{round(query_timeout * 1000)}ms",
        "idle_in_transaction_session_timeout": "60s",
    }
    return _script(settings)


def local_settings(query_timeout: float, *, relaxed: bool) -> str:
    """Return one statement that sets the same for the transaction it stands in."""
    settings = {**_PINNED, "timezone": "UTC", "statement_timeout": f"{round(query_timeout * 1000)}ms"}
    if relaxed:
        settings["synchronous_commit"] = "off"
    calls = sql.SQL(", ").join(
        sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    )
    return sql.SQL("select {}").format(calls).as_string(None)


def _script(settings: dict[str, str]) -> str:
    return "; ".join(
        sql.SQL("set {} = {}").format(sql.Identifier(name), sql.Literal(value)).as_string(None)
        for name, value in settings.items()
    )


def announce_pooler(target: str) -> None:
    """Say, once per process, that a pooler is in between and what that means."""
    if not _announced:
        _announced.append(target)
        _log.warning(
            "%s is behind a connection pooler: consumers poll instead of waiting for notifications, and statements are "
            "not prepared. Point consumers at the server itself to have both.",
            target,
        )


_announced: list[str] = []


def is_alive(connection: psycopg.Connection | psycopg.AsyncConnection) -> bool:
    """Tell whether an idle connection is still usable, without a round trip.

    An idle server says nothing; if its socket is readable, it has said goodbye.
    """
    pgconn = connection.pgconn
    if connection.closed or pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    return not poll.poll(0)


class Link(Generic[C]):
    """One connection of a pool, and what is known of its session."""

    __slots__ = ("connection", "pooled", "relaxed")

    def __init__(self, connection: C, *, pooled: bool, relaxed: bool) -> None:
        self.connection = connection
        #: Whether a transaction pooler stands between us and the server.
        self.pooled = pooled
        #: Whether commits of this session need not wait for the disk.
        self.relaxed = relaxed


L = TypeVar("L")


class Shelf(Generic[C]):
    """The bookkeeping of a pool: which connections are idle and how many there are. Blocks nowhere, locks nothing.

    Connections keep to one kind of commit where they can, so that claims (relaxed) and enqueues (durable) do not
    switch a setting back and forth.
    """

    def __init__(self, *, limit: int, keep: int) -> None:
        self._limit = limit
        self._keep = keep
        self._idle: list[Link[C]] = []
        self.total = 0

    def take(self, *, relaxed: bool) -> Link[C] | None:
        """Return an idle connection, the most recently used of its kind first; None: open one, or wait."""
        for place in range(len(self._idle) - 1, -1, -1):
            if self._idle[place].relaxed == relaxed:
                return self._idle.pop(place)
        if self._idle and self.total >= self._limit:
            return self._idle.pop()
        return None

    def may_open(self) -> bool:
        """Tell whether one more is allowed."""
        return self.total < self._limit

    def give(self, link: Link[C]) -> bool:
        """Keep an idle connection; False when there are enough, and it should be closed."""
        if len(self._idle) >= self._keep:
            return False
        self._idle.append(link)
        return True

    def empty(self) -> list[Link[C]]:
        """Forget all idle connections and return them."""
        idle, self._idle = self._idle, []
        return idle
