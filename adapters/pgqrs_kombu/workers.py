"""Where workers of the supported versions of Celery, from 5.4 on, differ: what later versions mended is mended here.

=================================  ====================================================================================
Consumer.on_close, before 5.7      keeps the tasks that had not begun when the connection is lost: their messages would
                                   be held on, and not delivered again
AsynPool.flush, before 5.6.3       forgets all tasks when the connection is lost, those that run included: they would be
                                   done and never acked, and their leases renewed as long as the worker lives
Request.cancel, before 5.7         fails in pools that cannot cancel, which ends the worker over a lost connection with
                                   ``worker_cancel_long_running_tasks_on_connection_loss``
EventDispatcher.flush, before 5.7  drops events that other threads send while it publishes: Flower misses tasks of the pool
                                   ``threads``
=================================  ====================================================================================
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, Final

from pgqrs_core.logs import get_logger

__all__ = ["mend_workers"]

_log = get_logger("pgqrs.kombu")

_MENDED_FLUSH: Final = (5, 6, 3)
_MENDED: Final = (5, 7)


def mend_workers() -> None:
    """Mend what is loaded of Celery's worker. Without effect in other processes, and when repeated."""
    version = getattr(sys.modules.get("celery"), "VERSION", None)
    if version is None:
        return
    if version < _MENDED_FLUSH:
        _wrap("celery.concurrency.asynpool", "AsynPool", "flush", _keeping_accepted)
    if version < _MENDED:
        _wrap("celery.worker.consumer.consumer", "Consumer", "on_close", _dropping_reserved)
        _wrap("celery.worker.request", "Request", "cancel", _cancelling_if_possible)
        _wrap("celery.events.dispatcher", "EventDispatcher", "flush", _keeping_late_events)


def _wrap(module: str, kind: str, name: str, wrap: Any) -> None:
    owner = getattr(sys.modules.get(module), kind, None)
    original = getattr(owner, name, None)
    if original is not None and not hasattr(original, "__wrapped__"):
        setattr(owner, name, wrap(original))


def _dropping_reserved(original: Any) -> Any:
    @wraps(original)
    def on_close(self: Any) -> None:
        state: Any = sys.modules["celery.worker.state"]
        for request in tuple(state.reserved_requests):
            if request not in state.active_requests:
                state.requests.pop(request.id, None)
        original(self)

    return on_close


def _keeping_accepted(original: Any) -> Any:
    @wraps(original)
    def flush(self: Any) -> None:
        accepted = {number: job for number, job in self._cache.items() if job._accepted}
        original(self)
        for number, job in accepted.items():
            if not job.ready():
                self._cache.setdefault(number, job)

    return flush


def _cancelling_if_possible(original: Any) -> Any:
    @wraps(original)
    def cancel(self: Any, *args: Any, **options: Any) -> None:
        try:
            original(self, *args, **options)
        except NotImplementedError:
            # Before anything was done to it.
            _log.warning("task %s goes on: this pool cannot cancel tasks", self.humaninfo())

    return cancel


def _keeping_late_events(original: Any) -> Any:
    @wraps(original)
    def flush(self: Any, errors: bool = True, groups: bool = True) -> None:
        original(self, errors=errors, groups=False)
        if not groups:
            return
        with self.mutex:
            for group, events in list(self._group_buffer.items()):
                published = list(events)
                if published:
                    self._publish(published, self.producer, f"{group}.multi")
                    del events[: len(published)]

    return flush
