"""How many bytes go to or come from the server at a time.

PostgreSQL takes less than 1 GiB in one message, and both sides hold a statement's parameters and a claim's answer in memory
several times over. So what is large is cut by bytes and not only by numbers of messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import ByteaArray
from pgqrs_core.headers import MAX_HEADER_BYTES, encode_headers

if TYPE_CHECKING:
    from pgqrs_core.events import Draft

__all__ = ["COALESCED_BYTES", "MOST_BYTES", "PART_BYTES", "in_parts", "size_of", "weight"]

#: Bytes that PostgreSQL takes in one message at most.
MOST_BYTES: Final = 2**30 - 1
#: Bytes of messages in one statement; a message that is larger has one of its own.
PART_BYTES: Final = 64 * 2**20
#: Bytes of messages of several callers in one statement: larger ones gain nothing by company, and are not to fail others.
COALESCED_BYTES: Final = 4 * 2**20


def weight(drafts: Iterable[Draft]) -> int:
    """Return the bytes of the bodies of messages."""
    return sum([len(draft.body) for draft in drafts])


def in_parts(drafts: Sequence[Draft]) -> list[list[Draft]]:
    """Cut messages into parts that one statement holds each, in their order."""
    if weight(drafts) + _weight_of_headers(drafts) <= PART_BYTES:
        return [list(drafts)]
    parts: list[list[Draft]] = []
    size = 0
    for draft in drafts:
        own = len(draft.body) + len(encode_headers(draft.headers) or "")
        if not parts or size + own > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(draft)
        size += own
    return parts


def _weight_of_headers(drafts: Sequence[Draft]) -> int:
    """Return the bytes of the headers of messages, or more where these are few: then they cannot matter."""
    if len(drafts) * MAX_HEADER_BYTES <= PART_BYTES // 2:
        return len(drafts) * MAX_HEADER_BYTES
    first = drafts[0].headers
    if all(draft.headers is first for draft in drafts):
        return len(drafts) * len(encode_headers(first) or "")
    return sum([len(encode_headers(draft.headers) or "") for draft in drafts])


def size_of(params: Mapping[str, object]) -> int:
    """Return the bytes of a statement's parameters that may be large."""
    size = 0
    for value in params.values():
        if isinstance(value, ByteaArray):
            size += len(value.data)
        elif isinstance(value, (bytes, str)):
            size += len(value)
    return size
