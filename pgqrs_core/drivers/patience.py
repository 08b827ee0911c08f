"""An end to the wait for a server that has stopped answering.

The server itself cancels a statement that runs for too long. One that does not answer even then – a host that froze, a
proxy that hangs, a route that is gone while the kernel still keeps the connection – would be waited for without end, and
with it a worker's loop, or the lock that its thread holds. TCP's own timeouts see only peers that acknowledge nothing.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus

from pgqrs_core.forks import begin_anew_in_children, silence
from pgqrs_core.readiness import Readiness

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["AsyncConnection", "Connection", "answers", "give_up", "hurry", "limit_of"]

#: Seconds beyond the query timeout that a server has for saying that it has cancelled a statement.
_GRACE: Final = 5.0
#: Seconds between two looks at the clock.
_INTERVAL: Final = 0.1
_SLICE: Final = 0.5

RV = TypeVar("RV")


def limit_of(query_timeout: float) -> float | None:
    """Return the seconds after which a server that says nothing is given up; None for never, when nothing is cancelled."""
    return query_timeout + _GRACE if query_timeout else None


class _Hurry:
    """Whether this process has little time left, and how much of it an answer may take."""

    seconds = 0.0
    until = 0.0


def hurry(seconds: float, *, window: float) -> None:
    """Give up answers after ``seconds``, for the next ``window`` seconds, in all threads: those awaited by now, too.

    For a program that is told to end at once, or that has found its server silent.
    """
    _Hurry.seconds, _Hurry.until = seconds, time.monotonic() + window


def _hurried(began: float, deadline: float) -> float:
    """Return until when an answer is awaited: ``deadline``, or earlier in a hurry."""
    return min(deadline, began + _Hurry.seconds) if time.monotonic() < _Hurry.until else deadline


def give_up(seconds: float) -> psycopg.Error:
    """Return the error for a server that has not answered for so long."""
    return errors.ConnectionFailure(f"no answer within {seconds:.3g} s; the server, or the way to it, hangs")


def answers(pgconn: PGconn, readiness: Readiness, limit: float | None, results: list[PGresult]) -> list[PGresult]:
    """Append all results of what was sent to ``results`` and return them, after at most ``limit`` seconds.

    Raises:
        psycopg.OperationalError: the connection broke, or the server did not answer in time.
    """
    began = time.monotonic()
    while pgconn.flush():
        _await_room(pgconn, began, limit)
    while True:
        while pgconn.is_busy():
            if readiness.within(_left(began, limit)):
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)


def _await_room(pgconn: PGconn, began: float, limit: float | None) -> None:
    """Wait until more can be sent; what the server says meanwhile must be read, or it reads no more either."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    for _, event in poll.poll(_left(began, limit) * 1000):
        if event & select.POLLIN:
            pgconn.consume_input()


def _left(began: float, limit: float | None) -> float:
    """Return for how long to wait now; not for long, since a hurry may come up."""
    now = time.monotonic()
    deadline = math.inf if limit is None else began + limit
    left = (_hurried(began, deadline) if _Hurry.until else deadline) - now
    if left <= 0:
        raise give_up(now - began)
    return left if left < _SLICE else _SLICE


def _bounded(waiting: Generator[Any, Any, RV], limit: float) -> Generator[Any, Any, RV]:
    """Wait as psycopg does, which looks up at intervals, but for at most ``limit`` seconds."""
    began = time.monotonic()
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > _hurried(began, began + limit):
                raise give_up(time.monotonic() - began)
            wanted = waiting.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


class _Owned:
    """A connection of ours. It is closed when nothing refers to it any more, whatever struck who had it."""

    pgconn: PGconn

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: let go of the parent's socket, whoever still refers to this."""
        if self.pgconn.status == ConnStatus.OK:
            silence(self.pgconn.socket)

    def __del__(self, *_: object) -> None:
        if hasattr(self, "pgconn"):
            self.pgconn.finish()


class Connection(_Owned, psycopg.Connection[Any]):
    """A psycopg connection that waits for each answer for a limited time."""

    #: Seconds; None for no limit.
    limit: float | None = None

    def wait(self, gen: Any, interval: float = _INTERVAL, **more: Any) -> Any:  # type: ignore[override]
        """Wait for an answer."""
        return super().wait(gen if self.limit is None else _bounded(gen, self.limit), interval, **more)


class AsyncConnection(_Owned, psycopg.AsyncConnection[Any]):
    """The same on an event loop."""

    #: Seconds; None for no limit.
    limit: float | None = None

    async def wait(self, gen: Any, interval: float = _INTERVAL, **more: Any) -> Any:  # type: ignore[override]
        """Wait for an answer."""
        return await super().wait(gen if self.limit is None else _bounded(gen, self.limit), interval, **more)
