"""What Celery's worker does with a task that it stops running: its message is delivered again, and never acked.

A broker of AMQP refuses every ack of a lost connection, and Celery relies on that: it terminates a task, and whatever it
says of the message afterwards comes to nothing. Here an ack outlives its connection, for the sake of tasks that go on
running. So Celery's request is asked, at the moment at which it gives a task up, see `Channel.give_up`.

========================  =============================================================================================
a task was terminated     because the connection was lost (``worker_cancel_long_running_tasks_on_connection_loss``), or by
                          a cold shutdown: its message is delivered again, also if its announcement failed
its end is not recorded   it failed, lost its process or exceeded its time limit, and the result backend could not be
                          reached: Celery acks first and records then, so the ack waits until that has happened
========================  =============================================================================================
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from pgqrs_core.logs import error_text, get_logger

__all__ = ["follow_requests"]

_log = get_logger("pgqrs.kombu")

#: What is loaded in a worker, and in no other process.
_WORKER: Final = "celery.worker.consumer.consumer"


def follow_requests() -> None:
    """Follow the requests of Celery's worker. Without effect in other processes, and when repeated."""
    if _WORKER not in sys.modules:
        return
    request = importlib.import_module("celery.worker.request").Request
    for name, wrap in (
        ("_announce_cancelled", _cancelling),
        ("on_failure", _recording),
        ("on_timeout", _recording),
    ):
        original = getattr(request, name, None)
        if original is not None and not hasattr(original, "__wrapped__"):
            setattr(request, name, wrap(original))


def _cancelling(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def announce_cancelled(self: Any, *args: Any, **options: Any) -> None:
        give_up = _give_up_of(self)
        if give_up is None:
            original(self, *args, **options)
            return
        give_up(self.message.delivery_tag)
        try:
            original(self, *args, **options)
        except Exception as error:
            # The results are kept where the connection was lost to, perhaps. The task runs again, and will store one.
            _log.warning("task %s was cancelled, which could not be announced: %s", self.humaninfo(), error)
        # Or the end of its process would be taken for a revocation, and be stored as the task's result.
        self._already_cancelled = True

    return announce_cancelled


def _recording(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def record(self: Any, *args: Any, **options: Any) -> Any:
        if _give_up_of(self) is None:
            return original(self, *args, **options)
        with _settled_afterwards(self):
            return original(self, *args, **options)

    return record


@contextmanager
def _settled_afterwards(request: Any) -> Iterator[None]:
    """Hold back what a request says of its message; drop it if a connection is lost meanwhile, and deliver it again."""
    held: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    ack, reject = request._on_ack, request._on_reject
    request._on_ack = lambda *args: held.append((ack, args))
    request._on_reject = lambda *args: held.append((reject, args))
    lost = False
    problem: Exception | None = None
    try:
        yield
    except request.connection_errors as error:
        lost = True
        _log.warning("the end of task %s could not be recorded, so it runs again: %s", request.humaninfo(), error)
        raise
    except Exception as error:
        # Celery's code stumbled over what the message says, and would leave it unsettled for good.
        problem = error
        raise
    finally:
        request._on_ack, request._on_reject = ack, reject
        if lost:
            request.message.channel.give_up(request.message.delivery_tag)
        elif problem is not None and not held and not request.acknowledged:
            reason = {"type": type(problem).__name__, "message": error_text(problem)}
            request.message.channel.refuse(request.message.delivery_tag, reason)
        else:
            for settle, args in held:
                settle(*args)


def _give_up_of(request: Any) -> Callable[[int], None] | None:
    """Return how a message is given up; None if it came by another broker."""
    give_up: Callable[[int], None] | None = getattr(request.message.channel, "give_up", None)
    return give_up
