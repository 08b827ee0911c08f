"""Showing message bodies. They are read as text or not at all: nothing here unpickles, and no serializer is asked."""

import base64
import codecs
import json
from typing import Any

from pgqrs_native.command.output import safe

__all__ = ["describe", "preview", "readable", "size"]

#: Characters of a body that a table shows.
_PREVIEW = 160


def describe(content_type: str, body: bytes) -> dict[str, Any]:
    """Return how a document shows a body.

    ``encoding`` says what ``body`` is: ``json``, the value itself; ``text``; or ``base64``.
    """
    shown: dict[str, Any] = {"content_type": content_type, "size_bytes": len(body)}
    text = _text(body)
    if text is None:
        return {**shown, "encoding": "base64", "body": base64.b64encode(body).decode()}
    if _is_json(content_type):
        try:
            return {**shown, "encoding": "json", "body": json.loads(text, parse_constant=_refuse)}
        except (ValueError, RecursionError):
            # NaN and the infinities are no JSON for whoever reads the document.
            pass
    return {**shown, "encoding": "text", "body": text}


def preview(body: bytes, limit: int = _PREVIEW) -> str:
    """Show the beginning of a body in one line."""
    text = _text(body[: limit * 4], whole=len(body) <= limit * 4)
    line = repr(body[:limit])[2:-1] if text is None else safe(" ".join(text.split()))
    if text is not None and len(line) <= limit and len(body) <= limit * 4:
        return line
    return f"{line[:limit]}{'…' * (len(line) > limit or len(body) > limit)} ({size(len(body))})"


def readable(content_type: str, body: bytes) -> str:
    """Show a whole body: JSON over several lines, other text as it is, bytes escaped."""
    text = _text(body)
    if text is None:
        return repr(body)[2:-1]
    if _is_json(content_type):
        try:
            return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return text


def size(number: int) -> str:
    """Show a size: ``190 B``, ``1.2 KiB``, ``3.4 MiB``."""
    if number < 1024:
        return f"{number} B"
    value = float(number)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:,.1f}".removesuffix(".0") + f" {unit}"


def _text(body: bytes, *, whole: bool = True) -> str | None:
    """Return a body, or the beginning of one, as text, unless it looks like something else."""
    try:
        # The beginning may end in the middle of a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(body, whole)
    except UnicodeDecodeError:
        return None
    # Binary data without a byte above 127 is valid UTF-8 too; NUL tells most of it from text.
    return None if "\0" in text else text


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _refuse(name: str) -> object:
    raise ValueError(name)
