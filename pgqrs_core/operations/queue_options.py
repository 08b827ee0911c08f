"""The options of a queue as they are stored: JSON, which newer code, or a person, may have written.

One queue whose options cannot be used must not keep the others from being listed, measured and cleaned, and its own
messages must not wait until somebody notices. So the default holds for each option that is no good; the log says so once,
and `pgqrs doctor` each time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import QueueOptions

__all__ = ["read_options"]

_log = get_logger("pgqrs.queues")

#: Names of queues and what was stored for them, told already; forgotten when they are too many.
_told: Final[set[tuple[str, str]]] = set()
_MOST_TOLD: Final = 1_000

Unusable = tuple[tuple[str, str], ...]


def read_options(queue: str, stored: str) -> tuple[QueueOptions, Unusable]:
    """Return a queue's options, and those that cannot be used with what is wrong with each.

    Options that this version does not know are ignored: newer code may have added them.
    """
    try:
        return QueueOptions(**_known(msgspec.json.decode(stored))), ()
    except Exception:
        options, unusable = _usable(stored)
    if (queue, stored) not in _told:
        if len(_told) >= _MOST_TOLD:
            _told.clear()
        _told.add((queue, stored))
        for name, reason in unusable:
            _log.warning("option %s of queue %r cannot be used, its default holds: %s", name, queue, reason)
    return options, unusable


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key in QueueOptions.__struct_fields__}


def _usable(stored: str) -> tuple[QueueOptions, Unusable]:
    """Return what can be used, option by option."""
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError) as error:
        return QueueOptions(), (("(all)", str(error)),)
    if not isinstance(found, dict):
        return QueueOptions(), (("(all)", "they are no JSON object"),)
    chosen: dict[str, Any] = {}
    unusable: list[tuple[str, str]] = []
    for name, value in _known(found).items():
        try:
            QueueOptions(**{name: value})
        except (InvalidArgument, TypeError, ValueError, OverflowError) as error:
            unusable.append((name, str(error)))
        else:
            chosen[name] = value
    return QueueOptions(**chosen), tuple(unusable)
