"""What is no event does not end a program that listens to Celery's workers, nor keep it from counting later events.

Celery's receiver of events, which Flower, ``celery events`` and exporters use, expects events that Celery wrote. Some
that it did not write end its loop; a clock or an id of another type stays in its state, and each later event fails.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from pgqrs_core.logs import get_logger

__all__ = ["guard_receivers", "is_event"]

_log = get_logger("pgqrs.kombu")

_RECEIVER: Final = "celery.events.receiver"
#: Fields by which Celery sorts events, tasks and workers. The others are for those who show them.
_TIMES: Final = ("timestamp", "clock", "utcoffset", "local_received")
_COUNTS: Final = ("active", "processed", "freq", "runtime")
_IDS: Final = ("uuid", "name", "root_id", "parent_id")
#: Beyond this a number is no count and no time, and a calculation with it fails.
_LARGEST: Final = 2**53


def guard_receivers() -> None:
    """Guard Celery's receiver of events, if it is loaded. May be repeated."""
    module: Any = sys.modules.get(_RECEIVER)
    if module is None or hasattr(module.EventReceiver._receive, "__wrapped__"):
        return
    module.EventReceiver._receive = _receiving(module.EventReceiver._receive)


def is_event(found: object) -> bool:
    """Return whether something may be an event: a mapping whose fields have the types that Celery gives them."""
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        return False
    if not _is_text(found.get("hostname", "")) or (found["type"].startswith("task-") and not found.get("uuid")):
        return False
    if not all(found.get(name) is None or isinstance(found[name], int) or _is_text(found[name]) for name in _IDS):
        return False
    if not all(_is_number(found.get(name, 0)) for name in _TIMES):
        return False
    return all(found.get(name) is None or _is_number(found[name]) for name in _COUNTS)


def _is_text(value: object) -> bool:
    """Return whether it is a text that a page can hold: one with a lone surrogate cannot be encoded."""
    return isinstance(value, str) and (value.isascii() or value.encode("utf-8", "ignore").decode() == value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return (isinstance(value, int) or math.isfinite(value)) and abs(value) < _LARGEST


def _receiving(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def _receive(self: Any, body: Any, message: Any, *args: Any, **options: Any) -> None:
        if getattr(message.channel, "refuse", None) is None:
            original(self, body, message, *args, **options)
            return
        sent = body if isinstance(body, list) else [body]
        events = [event for event in sent if is_event(event)]
        if len(events) < len(sent):
            _log.debug("%d events are ignored: they are none of Celery's", len(sent) - len(events))
        if events:
            original(self, events, message, *args, **options)

    return _receive
