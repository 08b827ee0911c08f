"""Reading what people type: durations, dates, headers, JSON. What is wrong is an `InvalidArgument`: exit code 2."""

import json
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from pgqrs_core.errors import InvalidArgument, PgqrsError

__all__ = ["InvalidInput", "date", "duration", "headers", "json_payload", "number_or_never", "raw_input"]

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|min|[smhdw])\s*")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
#: Strings are passed over; what Python reads as a number outside of them is no JSON.
_NO_JSON: Final = re.compile(r'"(?:\\.|[^"\\])*"|(-?\b(?:NaN|Infinity)\b)', re.DOTALL)


class InvalidInput(PgqrsError):
    """Something given to the command cannot be read. Exit code 2."""


def duration(option: str, text: str) -> float:
    """Read ``90``, ``1.5s``, ``5m``, ``2h``, ``7d``, ``1h30m``; a bare number is seconds."""
    stripped = text.strip().lower()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    parts = list(_PART.finditer(stripped))
    if not parts or "".join(part[0] for part in parts) != stripped:
        raise InvalidArgument(option, text, "a time such as 30s, 5m, 2h or 7d")
    return sum(float(part[1]) * _UNITS[part[2]] for part in parts)


def number_or_never(option: str, text: str) -> float | None:
    """Read a duration, or ``never``."""
    return None if text.strip().lower() == "never" else duration(option, text)


def date(option: str, text: str) -> datetime:
    """Read a date and time in ISO 8601; without a zone it is this machine's local time."""
    try:
        # Python 3.10 does not know "Z".
        when = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return when.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise InvalidArgument(option, text, "a date such as 2026-08-01T12:30:00+02:00") from None


def headers(pairs: list[str]) -> dict[str, str] | None:
    """Read ``key=value`` pairs."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InvalidArgument("--header", pair, "written as key=value")
        if key in found:
            raise InvalidArgument("--header", pair, f"given once for {key!r}")
        found[_unicode(key, "--header")] = _unicode(value, "--header")
    return found or None


def json_payload(raw: bytes, source: str) -> object:
    """Read JSON, strictly.

    Raises:
        InvalidInput: with the position of the first mistake.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 text: byte {error.start + 1}; use --raw to send bytes") from None
    try:
        payload: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{source} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise InvalidInput(f"{source} is not valid JSON: {reason}") from None
    for match in _NO_JSON.finditer(text):
        if match[1]:
            line = text.count("\n", 0, match.start()) + 1
            column = match.start() - text.rfind("\n", 0, match.start())
            raise InvalidInput(
                f"{source} is not valid JSON: {match[1]} is no JSON value at line {line}, column {column}"
            )
    return payload


def raw_input(argument: str | None, file: Path | None) -> tuple[bytes, str]:
    """Return the bytes of a message and what to call their source: the argument, standard input or a file.

    Raises:
        InvalidInput: none or two are given, or it cannot be read.
    """
    if (argument is None) == (file is None):
        what = "no message: give it as JSON, '-' for standard input, or --file" if file is None else "two messages"
        raise InvalidInput(f"{what}" if file is None else f"{what}: an argument and --file; give one")
    if file is not None:
        try:
            return file.read_bytes(), str(file)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    assert argument is not None
    if argument == "-":
        return sys.stdin.buffer.read(), "standard input"
    # Arguments that are not text in this locale come with surrogates that stand for their bytes.
    return argument.encode("utf-8", "surrogateescape"), "the message"


def _unicode(text: str, option: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(option, text, "UTF-8 text") from None
    return text
