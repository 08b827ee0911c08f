"""The arguments of declarations, which are whatever a client sends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import MAX_SECONDS

__all__ = ["as_json", "seconds_of"]


def as_json(arguments: Mapping[str, Any] | None) -> str | None:
    """Return the arguments of a declaration as they are stored.

    Raises:
        InvalidArgument: they hold something else than JSON values.
    """
    if not arguments:
        return None
    try:
        return msgspec.json.encode(dict(arguments)).decode()
    except Exception as error:
        raise InvalidArgument("arguments", type(arguments), f"a mapping of JSON values ({error})") from error


def seconds_of(arguments: Mapping[str, Any], key: str) -> float | None:
    """Return an argument that is a number of milliseconds, in seconds; None where it is not given.

    Raises:
        InvalidArgument: it is no number.
    """
    value = arguments.get(key)
    if value is None:
        return None
    try:
        seconds = float(value) / 1000
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidArgument(key, value, "a number of milliseconds")
    return min(max(seconds, 0.001), MAX_SECONDS)
