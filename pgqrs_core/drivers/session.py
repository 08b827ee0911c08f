"""How a connection of ours is set up, and what a connection remembers.

Left alone, the planner ruins the claim: after statistics that saw an empty table it sorts the whole backlog; and it plans
the statement anew at each call, which costs twice what running it does. So plans are pinned and generic, once per
connection. Behind a transaction pooler a session is not ours to change: there the same settings go with each statement.
See docs/adr/0003-pinned-generic-plans.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import ConnStatus, TransactionStatus

from pgqrs_core.drivers.locks import BRIEF, session_wait
from pgqrs_core.drivers.replication import Doubt
from pgqrs_core.figures import PoolUsage
from pgqrs_core.logs import get_logger
from pgqrs_core.readiness import Readiness

if TYPE_CHECKING:
    from pgqrs_core.drivers.prepared import Prepared

__all__ = ["BACKEND", "GRACE", "Link", "Shelf", "local_settings", "session_settings", "timeouts"]

#: A pooler answers with another process than the one it announced when connecting.
BACKEND: Final = "select pg_catalog.pg_backend_pid()"

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

#: Nothing that anybody put into another schema may be taken for what we mean, whatever the role's own path says.
_PATH: Final = {"search_path": "pg_catalog, pg_temp"}

#: Seconds after which a glance opens a connection although others are open. More than opening one takes on a busy machine.
GRACE: Final = 0.25

#: Prepared statements kept per connection: a few for each of many queues.
PREPARED_MAX: Final = 400

# As plain numbers, which are compared at once.
_OK: Final = int(ConnStatus.OK)
_IDLE: Final = int(TransactionStatus.IDLE)

_log = get_logger("pgqrs.connections")

C = TypeVar("C", bound="psycopg.BaseConnection[Any]")
K = TypeVar("K")


def session_settings(query_timeout: float, *, relaxed: bool = False) -> str:
    """Return the script that sets up a session that is ours alone; ``query_timeout`` in seconds, 0 for none."""
    settings = {
        **_PATH,
        **_PINNED,
        "default_transaction_isolation": "read committed",
        "timezone": "UTC",
        "statement_timeout": f"{round(query_timeout * 1000)}ms",
        "lock_timeout": session_wait(relaxed=relaxed),
        "idle_in_transaction_session_timeout": "60s",
    }
    return _assign(settings, local=False).decode()


def local_settings(
    query_timeout: float, *, relaxed: bool = False, flags: frozenset[str] = frozenset(), lock_wait: float = BRIEF
) -> bytes:
    """Return one statement that sets the same for the transaction it stands in."""
    settings = {**_PATH, **_PINNED, "timezone": "UTC", "statement_timeout": f"{round(query_timeout * 1000)}ms"}
    if "patient" in flags:
        settings["statement_timeout"] = "0"
    if "bitmap" in flags:
        settings["enable_bitmapscan"] = "on"
    if "brief" in flags:
        settings["lock_timeout"] = session_wait(relaxed=relaxed)
    if "lock_timeout" in flags:
        settings["lock_timeout"] = f"{round(lock_wait * 1000)}ms"
    if relaxed:
        settings["synchronous_commit"] = "off"
    return _assign(settings, local=True)


def timeouts(statement: float, lock: str) -> bytes:
    """Return one statement that sets for the session how long a statement may take, in seconds, and wait for a lock."""
    return _assign({"statement_timeout": f"{round(statement * 1000)}ms", "lock_timeout": lock}, local=False)


def _assign(settings: dict[str, str], *, local: bool) -> bytes:
    # Not SET: it takes a list, which the path is, as so many words and not as one text.
    calls = sql.SQL(", ").join(
        sql.SQL("pg_catalog.set_config({}, {}, {})").format(sql.Literal(name), sql.Literal(value), sql.Literal(local))
        for name, value in settings.items()
    )
    return sql.SQL("select {}").format(calls).as_bytes(None)


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


class Link(Generic[C, K]):
    """One connection of a pool, and what is known of its session."""

    __slots__ = ("_poll", "connection", "cursor", "doubt", "pooled", "prepared", "relaxed")

    def __init__(
        self, connection: C, cursor: K, *, pooled: bool, relaxed: bool, prepared: Prepared | None = None
    ) -> None:
        self.connection = connection
        #: The short way for statements of the catalogue, where there is one.
        self.prepared = prepared
        #: One cursor for all statements; making one costs as much as binding its parameters.
        self.cursor = cursor
        #: Whether a transaction pooler stands between us and the server.
        self.pooled = pooled
        #: Whether commits of this session need not wait for the disk.
        self.relaxed = relaxed
        #: Whether its last commit waited in vain for a standby.
        self.doubt = Doubt()
        connection.add_notice_handler(self.doubt)
        self._poll = Readiness(connection.pgconn.socket)

    def is_alive(self) -> bool:
        """Tell whether an idle connection is still usable, without a round trip.

        An idle server says nothing; if its socket is readable, it has said goodbye.
        """
        return self.is_idle() and not self._poll.within(0)

    def is_idle(self) -> bool:
        """Tell whether the connection is open and between transactions."""
        pgconn = self.connection.pgconn
        return bool(pgconn.status == _OK and pgconn.transaction_status == _IDLE)


class Shelf(Generic[C, K]):
    """The bookkeeping of a pool: which connections are idle and how many there are. Blocks nowhere, locks nothing.

    Connections keep to one kind of commit, so that claims (relaxed) and enqueues (durable) do not switch a setting back
    and forth. What to do when all of the wanted kind are busy depends on what a statement waits for:

    ==========  ===============================  ==============================================================
    wanted      statements                       when none is idle
    ==========  ===============================  ==============================================================
    relaxed     claim, extend, watch             wait: they are short, wait for no disk, and few fat claimers
                                                 are quicker than many lean ones
    durable     enqueue, ack, transactions       open one more up to the limit: each waits for the disk, and
                                                 PostgreSQL writes the commits of several at one go
    either      a glance at queues and schema    wait up to `GRACE` seconds, then as durable: so ten threads
                                                 that begin together do not open ten connections for it
    ==========  ===============================  ==============================================================
    """

    def __init__(self, *, limit: int, keep: int) -> None:
        self._limit = limit
        self._keep = keep
        self._idle: list[Link[C, K]] = []
        self._open = {True: 0, False: 0}

    @property
    def total(self) -> int:
        """How many connections are open."""
        return self._open[True] + self._open[False]

    @property
    def usage(self) -> PoolUsage:
        """How many are open, how many of them idle, and how many there may be."""
        return PoolUsage(self.total, len(self._idle), self._limit)

    def take(self, *, relaxed: bool | None) -> Link[C, K] | None:
        """Return an idle connection of this kind, the most recently used first; None: open one, or wait."""
        for place in range(len(self._idle) - 1, -1, -1):
            if relaxed is None or self._idle[place].relaxed == relaxed:
                return self._idle.pop(place)
        return None

    def may_open(self, *, relaxed: bool | None, waited: float) -> bool:
        """Tell whether one more of this kind is allowed, ``waited`` seconds after none was idle.

        There is always room for one of each kind. Whoever takes either opens a durable one.
        """
        if relaxed is None:
            return self.total == 0 or (waited >= GRACE and self.total < self._limit)
        return self._open[relaxed] == 0 or (not relaxed and self.total < self._limit)

    def turn(self, *, relaxed: bool | None, waited: float, patience: float) -> float:
        """Return for how many seconds to wait now, ``patience`` being the longest wait altogether."""
        longest = min(GRACE, patience) if relaxed is None and waited < GRACE else patience
        return max(longest - waited, 0.0)

    def opened(self, *, relaxed: bool) -> Link[C, K] | None:
        """Count a connection that is being opened; return an idle one that is to be closed for it, if there is one.

        The first relaxed one is opened even where durable ones have used the limit up. It takes the place of one of
        them: at once if one is idle, else as soon as one is.
        """
        self._open[relaxed] += 1
        if self._is_beyond:
            for place, link in enumerate(self._idle):
                if not link.relaxed:
                    self.closed(relaxed=False)
                    return self._idle.pop(place)
        return None

    @property
    def _is_beyond(self) -> bool:
        """Whether there is one more than the limit, and more than one of each kind."""
        return self._open[False] > 1 and self.total > self._limit

    def closed(self, *, relaxed: bool) -> None:
        """Count a connection that was closed, or could not be opened."""
        self._open[relaxed] -= 1

    def give(self, link: Link[C, K]) -> bool:
        """Keep an idle connection; False when there are enough, and it should be closed."""
        if not link.relaxed and (len(self._idle) >= self._keep or self._is_beyond):
            return False
        # Whoever was interrupted while he waited for a standby does not hear of it; the next one must not either.
        link.doubt.arisen = False
        self._idle.append(link)
        return True

    def spare(self, keep: int) -> list[Link[C, K]]:
        """Forget idle durable connections beyond ``keep``, the longest idle first, and return them."""
        idle = [link for link in self._idle if not link.relaxed]
        spare = idle[: max(len(idle) - keep, 0)]
        for link in spare:
            self._idle.remove(link)
            self.closed(relaxed=False)
        return spare

    def empty(self) -> list[Link[C, K]]:
        """Forget all idle connections and return them."""
        idle, self._idle = self._idle, []
        for link in idle:
            self.closed(relaxed=link.relaxed)
        return idle
