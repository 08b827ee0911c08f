"""How changes of tables wait for their locks: briefly, and again.

PostgreSQL hands the locks of a table out in turn. A change that waits behind a long query therefore stops every enqueue and
claim that comes after it, for as long as that query runs. So statements with the flag ``lock_timeout`` wait for `BRIEF`
seconds. Then the transaction is rolled back, which lets the others pass, and tried again after a pause, until `GIVE_UP`
seconds have passed; the error names the session that is in the way.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute
from pgqrs_core.errors import Blocker, TableLocked, TimedOut
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.effects import Rows

__all__ = [
    "BRIEF",
    "GIVE_UP",
    "LOCKED",
    "Attempts",
    "Turns",
    "blockers_of",
    "locked_tables",
    "session_wait",
    "who_blocks",
]

_ONE_TURN: Final = frozenset({"brief", "lock_timeout"})

#: The server's code for a lock that was not to be had in time.
LOCKED: Final = "55P03"
#: Seconds for which a statement of ours waits at a stretch, on connections whose commits are relaxed (claims and renewals
#: of all queues of a process go over one) and on others. Longer than rows are ever locked by our own statements.
SESSION_RELAXED: Final = 0.25
SESSION: Final = 1.0
#: Seconds for which a change waits for a lock, and everybody else behind it.
BRIEF: Final = 0.3
#: The same where only autovacuum is in the way: it gives way after the server's ``deadlock_timeout``, 1 s by default.
BEHIND_AUTOVACUUM: Final = 1.5
#: Seconds after which a change that cannot have its locks fails.
GIVE_UP: Final = 30.0
#: Seconds before the second attempt, and at most between two; others make up meanwhile for what they waited.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0


def session_wait(*, relaxed: bool) -> str:
    """Return the ``lock_timeout`` of a session of ours."""
    return f"{round((SESSION_RELAXED if relaxed else SESSION) * 1000)}ms"


class Turns:
    """How long one statement waits for its locks: in turns, between which its connection is free for others.

    A statement with the flag ``brief`` has one turn, for whoever runs it tries again later, and leaves the queue alone
    meanwhile. Others, those that a program waits for, have as many as the query timeout allows.
    """

    def __init__(self, effect: Execute, query_timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._single = bool(effect.query.flags & _ONE_TURN)
        self._clock = clock
        self._until = clock() + query_timeout if query_timeout else None

    def after(self, error: TableLocked, target: str) -> None:
        """Return if there is to be another turn.

        Raises:
            TableLocked: there is none.
            TimedOut: there was time enough.
        """
        if self._single:
            raise error
        if self._until is not None and self._clock() >= self._until:
            raise TimedOut(f"{target}: {error}", target=target) from error


class Attempts:
    """The attempts of one transaction to get its locks.

    Attributes:
        wait: Seconds for which the next attempt waits for each lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.wait = BRIEF
        self._clock = clock
        self._until = clock() + GIVE_UP
        self._pause = _FIRST_PAUSE

    def pause_after(self, error: TableLocked) -> float:
        """Return for how many seconds to let the others pass before the next attempt.

        Raises:
            TableLocked: there was time enough.
        """
        pause = self._pause * random.uniform(0.8, 1.2)
        if self._clock() + pause >= self._until:
            raise error
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        autovacuum_only = bool(error.blockers) and all(one.is_autovacuum for one in error.blockers)
        self.wait = BEHIND_AUTOVACUUM if autovacuum_only else BRIEF
        return pause


def released(error: TableLocked) -> TableLocked:
    """Return the error without its frames: they hold the connection, which is given back before the next attempt."""
    error.__traceback__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None
    return error


def locked_tables(effect: Execute) -> tuple[str, ...]:
    """Return the tables that a statement can have waited for, by its queue or its names; none where it may be any."""
    if effect.queue is not None:
        return tuple(f"{kind}_{effect.queue.suffix}" for kind in "qav")
    return tuple(name for key, name in effect.names.items() if key == "table")


def who_blocks(schema: str, tables: Sequence[str]) -> Execute:
    """Return the statement that asks who holds locks on these tables, or on any table of the schema."""
    return Execute(queries["lock_holders"], {"schema": schema, "tables": texts(tables)})


def blockers_of(rows: Rows) -> tuple[Blocker, ...]:
    """Return what the server answered."""
    return tuple(Blocker(*row) for row in rows)
