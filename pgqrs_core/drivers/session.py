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
from pgqrs_core.logs import get_logger
from pgqrs_core.readiness import Readiness

if TYPE_CHECKING:
    from pgqrs_core.drivers.acting import Acting
    from pgqrs_core.drivers.prepared import Prepared
    from pgqrs_core.drivers.shelf import Slot

__all__ = ["BACKEND", "Link", "local_settings", "session_settings", "timeouts"]

#: A pooler answers with another process than the one it announced when connecting.
BACKEND: Final = "select pg_catalog.pg_backend_pid()"

_PINNED: Final = {
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_nestloop": "on",
    "enable_tidscan": "on",
    # Plans with a switched-off step look expensive, and would be compiled.
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

#: What texts, numbers and arrays mean on their way there and back, whatever the role, the database and the environment say.
_FORMATS: Final = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "restrict_nonsystem_relation_kind": "",
}

#: Settings that not every version of PostgreSQL has.
_LATER: Final = frozenset({"restrict_nonsystem_relation_kind"})

#: Nothing that anybody put into another schema may be taken for what we mean, whatever the role's own path says.
_PATH: Final = {"search_path": "pg_catalog, pg_temp"}

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
        **_FORMATS,
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "statement_timeout": f"{round(query_timeout * 1000)}ms",
        "lock_timeout": session_wait(relaxed=relaxed),
        "idle_in_transaction_session_timeout": "60s",
    }
    return _assign(settings, local=False).decode()


def local_settings(
    query_timeout: float,
    *,
    relaxed: bool = False,
    flags: frozenset[str] = frozenset(),
    lock_wait: float = BRIEF,
    role: str | None = None,
) -> bytes:
    """Return one statement that sets the same for the transaction it stands in, and the role to act as, if there is one."""
    settings = {**_PATH, **_PINNED, **_FORMATS, "statement_timeout": f"{round(query_timeout * 1000)}ms"}
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
    if role is not None:
        settings["role"] = "none" if "login" in flags else role
    return _assign(settings, local=True)


def timeouts(statement: float, lock: str) -> bytes:
    """Return one statement that sets for the session how long a statement may take, in seconds, and wait for a lock."""
    return _assign({"statement_timeout": f"{round(statement * 1000)}ms", "lock_timeout": lock}, local=False)


def _assign(settings: dict[str, str], *, local: bool) -> bytes:
    # Not SET: it takes a list, which the path is, as so many words and not as one text.
    call = sql.SQL("pg_catalog.set_config({0}, {1}, {2})")
    known = "case when pg_catalog.current_setting({0}, true) is not null then"
    if_known = sql.SQL(known + " pg_catalog.set_config({0}, {1}, {2}) end")
    calls = sql.SQL(", ").join(
        (if_known if name in _LATER else call).format(sql.Literal(name), sql.Literal(value), sql.Literal(local))
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

    __slots__ = (
        "__weakref__",
        "_poll",
        "acting",
        "connection",
        "cursor",
        "doubt",
        "fresh",
        "idle_since",
        "opened_in",
        "pooled",
        "prepared",
        "relaxed",
        "slot",
    )

    #: The place in a pool that it holds; none where somebody keeps it for good.
    slot: Slot

    def __init__(
        self,
        connection: C,
        cursor: K,
        *,
        pooled: bool,
        relaxed: bool,
        acting: Acting,
        prepared: Prepared | None = None,
    ) -> None:
        self.connection = connection
        #: As which role its session acts.
        self.acting = acting
        #: The short way for statements of the catalogue, where there is one.
        self.prepared = prepared
        #: One cursor for all statements; making one costs as much as binding its parameters.
        self.cursor = cursor
        #: Whether a transaction pooler stands between us and the server.
        self.pooled = pooled
        #: Whether commits of this session need not wait for the disk.
        self.relaxed = relaxed
        #: Whether it was opened for its present user, and nobody had it before.
        self.fresh = True
        #: When it was last given back to its pool, on the monotonic clock.
        self.idle_since = 0.0
        #: How many seconds it took to open it.
        self.opened_in = 0.0
        #: Whether its last commit waited in vain for a standby.
        self.doubt = Doubt()
        connection.add_notice_handler(self.doubt)
        self._poll = Readiness(connection.pgconn.socket)

    def is_alive(self) -> bool:
        """Tell whether an idle connection is still usable, without a round trip.

        An idle server says nothing; if its socket is readable, it has said goodbye. A session is not usable either that may
        act as the wrong role by now.
        """
        return self.is_idle() and not self._poll.within(0) and self.acting.holds()

    def is_idle(self) -> bool:
        """Tell whether the connection is open and between transactions."""
        pgconn = self.connection.pgconn
        return bool(pgconn.status == _OK and pgconn.transaction_status == _IDLE)
