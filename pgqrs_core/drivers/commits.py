"""What is to happen once the caller has committed, told by whatever wraps his connection.

SQLAlchemy tells of a commit just before it. So what waits for one is called once that is over for certain: when the
connection goes back to its pool, which follows the commit of a Session or the end of a block at once, or when the next
transaction begins on it. Django calls after the commit, and forgets what a savepoint took back. psycopg tells nobody.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final
from weakref import WeakSet

from pgqrs_core.logs import get_logger
from pgqrs_core.supervision import start_task

__all__ = ["Errands", "after_commit"]

_log = get_logger("pgqrs.wakeups")

#: Where a SQLAlchemy connection keeps what waits for its commit, and what has seen it and waits for its end.
_WAITING: Final = "pgqrs.waiting"
_DUE: Final = "pgqrs.due"

#: Whom we listen to. SQLAlchemy's own record goes by ``id()``, and takes a new pool for one that has just gone.
_heard: WeakSet[Any] = WeakSet()


def after_commit(owner: Any, call: Callable[[], object]) -> None:
    """Call once the transaction of ``owner`` is committed, and never if it rolls back or if nobody tells.

    Args:
        owner: a SQLAlchemy ``Connection``, a Django connection, or anything else, which tells nobody.
        call: what it raises is logged: the caller's commit stands.
    """

    def contained() -> None:
        try:
            call()
        except Exception:
            _log.warning("what was to follow a commit failed", exc_info=True)

    if hasattr(owner, "on_commit"):
        # Where the caller manages transactions by hand Django refuses to tell.
        if owner.in_atomic_block or owner.get_autocommit():
            owner.on_commit(contained)
    elif hasattr(owner, "get_transaction"):
        _listen(owner)
        owner.info.setdefault(_WAITING, []).append(contained)


class Errands:
    """Tasks that are started where nothing can be awaited, such as in the commit of a transaction."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let it run by itself."""
        task = start_task(lambda: errand, name="pgqrs-errand", restart=False)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for those that run."""
        if self._tasks:
            await asyncio.wait(self._tasks)


def _listen(connection: Any) -> None:
    # Not imported: whoever has a Connection has done so, and the core does not depend on it.
    event: Any = sys.modules["sqlalchemy.event"]
    if connection not in _heard:
        _heard.add(connection)
        event.listen(connection, "commit", _committing)
        event.listen(connection, "commit_twophase", _committing)
        event.listen(connection, "rollback", _rolled_back)
        event.listen(connection, "rollback_twophase", _rolled_back)
        event.listen(connection, "begin", _begun)
    pool = connection.engine.pool
    if pool not in _heard:
        _heard.add(pool)
        event.listen(pool, "checkin", _returned)


def _committing(connection: Any, *_: object) -> None:
    info = _info(connection)
    info.setdefault(_DUE, []).extend(info.pop(_WAITING, ()))


def _rolled_back(connection: Any, *_: object) -> None:
    # What is due was in a commit that failed: after one that succeeded another transaction had to begin.
    _forget(_info(connection))


def _begun(connection: Any) -> None:
    _call_due(_info(connection))


def _returned(raw: object, record: Any) -> None:
    if raw is not None:
        _call_due(record.info)
    # What was not committed, or was lost, and perhaps the server with it.
    _forget(record.info)


def _info(connection: Any) -> dict[str, Any]:
    """Return what is noted with a connection, and nothing of one that was lost: to ask would be to connect again."""
    return {} if connection.invalidated else connection.info


def _forget(info: dict[str, Any]) -> None:
    info.pop(_WAITING, None)
    info.pop(_DUE, None)


def _call_due(info: dict[str, Any]) -> None:
    for call in info.pop(_DUE, ()):
        call()
