"""Surrounds Celery's tasks with what plugins have for a handler.

A task may run in another process than the one that took its message, so this hangs on Celery's signals, which are sent
where the task runs. What is known of the message travels with it, see `Origin`. Without Celery nothing here is used, and
nothing of Celery is imported that is not there already.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pgqrs_core.config import Config
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.events import Handled, Handling
from pgqrs_core.interrupts import note_interrupt
from pgqrs_core.messages import Delivery, encode_headers
from pgqrs_core.plugins import Plugins, default_plugins

__all__ = ["ADAPTER", "Origin", "origin_of", "surround_tasks"]

#: What handlers that Celery runs are told to be of.
ADAPTER: Final = "celery"
#: Where in a message's delivery information its origin stands, and on a task's request what surrounds it.
KEY: Final = "pgqrs"
_SURROUNDING: Final = "pgqrs_surrounding"
#: States in which what a task returned is not an error.
_FINE: Final = frozenset(["SUCCESS", "IGNORED"])


class Origin(NamedTuple):
    """Which delivery a message is of."""

    queue: str
    message_id: int
    attempt: int


def origin_of(queue: str, delivery: Delivery) -> Origin:
    """Return what a task will need to know of its delivery."""
    return Origin(queue, delivery.id, delivery.attempt)


def surround_tasks() -> None:
    """Listen to Celery's signals, if there is Celery. May be repeated."""
    signals: Any = sys.modules.get("celery.signals")
    if signals is not None:
        limits: Any = sys.modules.get("billiard.exceptions")
        if limits is not None:
            note_interrupt(limits.SoftTimeLimitExceeded)
        # A receiver is known by its identifier, so it is connected once.
        signals.task_prerun.connect(_before, weak=False, dispatch_uid="pgqrs")
        signals.task_postrun.connect(_after_inner, weak=False, dispatch_uid="pgqrs inner")
        signals.task_postrun.connect(_after_outer, weak=False, dispatch_uid="pgqrs outer")


def _nest() -> bool:
    """Take the innermost place among all that surround tasks; tell whether this task is surrounded there already.

    Celery calls the receivers of both signals in one order. What others put around a task, such as the current span of
    OpenTelemetry's instrumentation, must be taken away in the opposite one. So we come last before a task and first after
    it; a task that began while others stood behind us, which connected after us, is left after them.
    """
    signals: Any = sys.modules["celery.signals"]
    before, after = signals.task_prerun.receivers, signals.task_postrun.receivers
    is_last = before[-1][1] is _before
    if not is_last or after[0][1] is not _after_inner or after[-1][1] is not _after_outer:
        # New lists: others may be going through these.
        ours = {_before, _after_inner, _after_outer}
        theirs = [item for item in after if item[1] not in ours]
        found = {item[1]: item for item in [*before, *after] if item[1] in ours}
        signals.task_prerun.receivers = [item for item in before if item[1] not in ours] + [found[_before]]
        signals.task_postrun.receivers = [found[_after_inner], *theirs, found[_after_outer]]
    return is_last


def _before(task: Any = None, **_: Any) -> None:
    request = task.request
    origin = _origin(request)
    if origin is None:
        return
    hooks = _plugins().hooks
    if hooks.surrounds_handler:
        is_innermost = _nest()
        handled = Handled(origin.message_id, origin.attempt, _headers(request))
        surrounding = hooks.around_handler(Handling(origin.queue, ADAPTER, [handled]))
        surrounding.__enter__()
        setattr(request, _SURROUNDING, (surrounding, is_innermost))


def _after_inner(task: Any = None, retval: Any = None, state: str | None = None, **_: Any) -> None:
    _leave(task.request, retval, state, inner=True)


def _after_outer(task: Any = None, retval: Any = None, state: str | None = None, **_: Any) -> None:
    _leave(task.request, retval, state, inner=False)


def _leave(request: Any, retval: Any, state: str | None, *, inner: bool) -> None:
    surrounding, is_innermost = vars(request).get(_SURROUNDING, (None, inner))
    if surrounding is None or is_innermost is not inner:
        return
    delattr(request, _SURROUNDING)
    error = retval if isinstance(retval, BaseException) and state not in _FINE else None
    try:
        surrounding.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
    except BaseException as raised:
        # The task's error is Celery's to deal with, which has done so.
        if raised is not error:
            raise


@lru_cache(maxsize=1)
def _plugins() -> Plugins:
    """Return those that every broker of this process uses."""
    chosen = Config.load().plugins
    return default_plugins(frozenset(chosen.blocked), chosen.settings, chosen.content_types)


def _origin(request: Any) -> Origin | None:
    """Return where a task's message came from; None if it came by another broker, or by none."""
    info = (request.properties or {}).get("delivery_info")
    found = info.get(KEY) if isinstance(info, dict) else None
    return Origin(*found) if isinstance(found, (list, tuple)) and len(found) == len(Origin._fields) else None


def _headers(request: Any) -> str | None:
    """Return the headers that are not Celery's own."""
    own = request.headers if isinstance(request.headers, dict) else {}
    try:
        return encode_headers(own)
    except InvalidArgument:
        # Kombu carries more than JSON: times, for instance.
        return encode_headers(
            {key: value for key, value in own.items() if isinstance(key, str) and isinstance(value, (str, int, bool))}
        )
