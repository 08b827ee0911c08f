"""Headers as they are stored and read, and what of a message may be shown.

The standard library writes them: unlike msgspec it has a form for lone surrogates, which names of files hold. msgspec reads
them, as it is quick, and the standard library what msgspec refuses. What is stored is ASCII.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Final

import msgspec

from pgqrs_core.errors import DecodeError, InvalidArgument

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_HEADER_DEPTH",
    "check_headers",
    "decode_headers",
    "discreet",
    "encode_headers",
    "encode_reason",
    "show_headers",
]

#: The largest headers of one message, as they are stored.
MAX_HEADER_BYTES: Final = 1_048_576
#: How deep headers may be nested: far less than what a reader deep in a stack of calls can take.
MAX_HEADER_DEPTH: Final = 100
_TEXT: Final = frozenset({str})
_PLAIN: Final = frozenset({str, int, bool, type(None)})
#: Fields of messages that no repr shows.
_PRIVATE: Final = frozenset({"body", "headers", "raw_headers", "stored", "error"})
#: One encoder for all headers: `json.dumps` makes one at each call.
_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decode: Final = msgspec.json.Decoder().decode


def encode_headers(headers: dict[str, Any] | None) -> str | None:
    """Return headers as they are stored: JSON, None for none.

    Tuples are read as lists, keys that are no texts as such, and a surrogate pair in two halves as the character that it
    stands for; everything else is read as it was written.

    Raises:
        InvalidArgument: if they hold something else than JSON values, NaN or an infinity, keys that are equal as texts, are
            nested more than `MAX_HEADER_DEPTH` deep or larger than `MAX_HEADER_BYTES`.
    """
    if not headers:
        return None
    check_headers(headers)
    try:
        text = _encode(headers)
    except (TypeError, ValueError, RecursionError) as error:
        # What they hold may be secret; which type was wrong is in the reason.
        raise InvalidArgument("headers", type(headers), f"a dict of JSON values ({error})") from error
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidArgument("headers", f"{len(text):,} bytes", f"at most {MAX_HEADER_BYTES:,} bytes")
    return text


def check_headers(headers: dict[Any, Any]) -> bool:
    """Tell whether headers hold JSON values only, as far as their types say so.

    Raises:
        InvalidArgument: if they have keys that JSON does not have or would make equal, or are nested too deeply.
    """
    return _check(headers, MAX_HEADER_DEPTH)


def _check(value: Any, left: int) -> bool:
    if not left:
        raise InvalidArgument("headers", "deeper", f"nested at most {MAX_HEADER_DEPTH} deep")
    if isinstance(value, dict):
        # JSON writes 1 and "1" alike, and one of them would be lost.
        if not _TEXT.issuperset(map(type, value)) and len(set(map(_key, value))) < len(value):
            raise InvalidArgument("headers", type(value), "a dict whose keys differ as texts, at every depth")
        value = value.values()
    plain = True
    for inner in value:
        if type(inner) in _PLAIN:
            continue
        if isinstance(inner, (dict, list, tuple)):
            plain = _check(inner, left - 1) and plain
        else:
            plain = plain and isinstance(inner, float) and isfinite(inner)
    return plain


def _key(key: object) -> str:
    """Return a key as JSON writes it."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise InvalidArgument(
        "headers", type(key), "a dict with texts, numbers, True, False or None as keys, at every depth"
    )


def decode_headers(text: str | None) -> dict[str, Any]:
    """Return stored headers.

    Raises:
        DecodeError: whoever wrote them by other means than pgqrs wrote something else.
    """
    if not text:
        return {}
    try:
        headers = _decode(text)
    except Exception:
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


def encode_reason(error: dict[str, Any] | None) -> str | None:
    """Return why a message failed as it is stored: JSON that PostgreSQL can look into, None for nothing.

    It never fails: a reason that cannot be written must not keep a message from being settled.
    """
    if error is None:
        return None
    try:
        text = msgspec.json.encode(error).decode()
    except Exception:
        text = msgspec.json.encode({_storable(key): _storable(value) for key, value in error.items()}).decode()
    # NUL is the one character that PostgreSQL's json cannot hold once it is looked into.
    return text.replace("\\u0000", "\\ufffd")


def _storable(value: object) -> str:
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__} whose text cannot be had>"
    return text.encode("utf-8", "backslashreplace").decode()


def discreet(message: msgspec.Struct) -> str:
    """Show a message without what it says: a repr ends up in logs and in other people's error reports."""
    shown = ", ".join(
        f"{name}={'…' if name in _PRIVATE else repr(getattr(message, name))}" for name in message.__struct_fields__
    )
    return f"{type(message).__name__}({shown})"
