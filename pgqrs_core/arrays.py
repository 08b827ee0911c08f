"""PostgreSQL arrays as parameters, built whole.

A driver's own list adaptation looks at every element; at a thousand bodies a batch that cost 7 µs a message,
more than the server needs to store it. Numbers and texts go as array literals, bodies in the binary format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

__all__ = ["ByteaArray", "WithNulls", "numbers", "places", "texts"]

_LENGTH = struct.Struct("!i").pack
# dimensions, whether there are nulls, the oid of bytea, the length, the lower bound
_HEADER = struct.Struct("!iiIii").pack
_BYTEA_OID = 17


class WithNulls(str):
    """An array literal that holds NULL, which is a NULL only where ``array_nulls`` is on."""

    __slots__ = ()


def numbers(values: Iterable[object]) -> str:
    """Return an array literal of numbers, or of other values whose text needs no quotes."""
    return "{" + ",".join(map(str, values)) + "}"


def places(values: Sequence[str | None]) -> str:
    """Return an array literal of rows' places as PostgreSQL writes them, ``(0,1)``; None is NULL."""
    return texts(values) if None in values else '{"' + '","'.join(values) + '"}'  # type: ignore[arg-type]


def texts(values: Iterable[object]) -> str:
    """Return an array literal of any values' texts, quoted; None is NULL."""
    parts = [_quoted(value) for value in values]
    literal = "{" + ",".join(parts) + "}"
    # A text in quotes is never equal to the word.
    return WithNulls(literal) if "NULL" in parts else literal


def _quoted(value: object) -> str:
    if value is None:
        return "NULL"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


class ByteaArray:
    """A ``bytea[]`` parameter in PostgreSQL's binary format."""

    __slots__ = ("data",)

    #: The oid of ``bytea[]``.
    oid = 1001

    def __init__(self, bodies: Sequence[bytes]) -> None:
        parts = [_HEADER(1 if bodies else 0, 0, _BYTEA_OID, len(bodies), 1) if bodies else _HEADER(0, 0, 17, 0, 0)[:12]]
        append = parts.append
        for body in bodies:
            append(_LENGTH(len(body)))
            append(body)
        self.data = b"".join(parts)
