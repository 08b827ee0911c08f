"""Headers as they are stored and read, and what of a message may be shown."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from pgqrs_core.errors import DecodeError, InvalidArgument

__all__ = ["MAX_HEADER_BYTES", "decode_headers", "discreet", "encode_headers", "show_headers"]

#: The largest headers of one message, as they are stored.
MAX_HEADER_BYTES: Final = 1_048_576
#: Fields of messages that no repr shows.
_PRIVATE: Final = frozenset({"body", "headers", "raw_headers", "stored", "error"})
#: One encoder for all headers: `json.dumps` makes one at each call.
_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encode_headers(headers: dict[str, Any] | None) -> str | None:
    """Return headers as they are stored: JSON, None for none.

    Raises:
        InvalidArgument: if they hold something else than JSON values.
    """
    if not headers:
        return None
    try:
        text = _encode(headers)
    except (TypeError, ValueError, RecursionError) as error:
        # What they hold may be secret; which type was wrong is in the reason.
        raise InvalidArgument("headers", type(headers), f"a dict of JSON values ({error})") from error
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidArgument("headers", f"{len(text):,} bytes", f"at most {MAX_HEADER_BYTES:,} bytes")
    return text


def decode_headers(text: str | None) -> dict[str, Any]:
    """Return stored headers.

    Raises:
        DecodeError: whoever wrote them by other means than pgqrs wrote something else.
    """
    if not text:
        return {}
    try:
        headers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("headers", str(error)) from error
    if not isinstance(headers, dict):
        raise DecodeError("headers", "they are no JSON object")
    return headers


def show_headers(text: str | None) -> dict[str, Any]:
    """Return stored headers to be looked at: one that cannot be read must not hide the others, nor itself."""
    try:
        return decode_headers(text)
    except DecodeError as error:
        return {"unreadable": error.reason}


def discreet(message: msgspec.Struct) -> str:
    """Show a message without what it says: a repr ends up in logs and in other people's error reports."""
    shown = ", ".join(
        f"{name}={'…' if name in _PRIVATE else repr(getattr(message, name))}" for name in message.__struct_fields__
    )
    return f"{type(message).__name__}({shown})"
