"""What adapters keep beside the queues until it is used, such as the body of a chord, protected as messages are.

It belongs to no queue. So it is signed and encrypted wherever messages of any queue are, and what is not is refused where
messages of any queue must be. A seal binds what was kept and for which purpose: the body of one chord is not taken for that
of another one, nor for a message. A stored value says by itself what was done to it: `_MARK`, the entries of the codecs as
JSON, a NUL, and the encoded body. No serializer writes such a beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pgqrs_core.codecs import Envelope, names_in
from pgqrs_core.errors import DecodeError

if TYPE_CHECKING:
    from pgqrs_core.codecs import CodecStack

__all__ = ["open_kept", "seal_kept"]

_MARK: Final = b"\0pgqrs-sealed\0"
#: Bytes that the entries of all layers take at most.
_MOST: Final = 10_000


def seal_kept(codecs: CodecStack, body: bytes, content_type: str, purpose: str, **identity: object) -> bytes:
    """Return what is to be stored; the body itself where nothing is signed or encrypted.

    Args:
        codecs: those of the engine.
        body: what is kept.
        content_type: what it is.
        purpose: what it is kept as, for example ``chord body``.
        **identity: whose it is, JSON values: for example its group.

    Raises:
        InvalidArgument: there is no key.
        PluginError: a codec failed.
    """
    if not codecs.protecting:
        return body
    sealed, entries = codecs.protect(body, _around(purpose, content_type, identity))
    return _MARK + msgspec.json.encode(entries) + b"\0" + sealed


def open_kept(codecs: CodecStack, stored: bytes, content_type: str, purpose: str, **identity: object) -> bytes:
    """Return what was kept. Arguments as of `seal_kept`.

    Raises:
        DecodeError: it is not sealed as it must be, it was changed, or it was kept as something else.
        DecoderMissing: a codec or key is not loaded here.
        PluginError: a codec lacks its library.
    """
    if not stored.startswith(_MARK):
        _check(codecs, [], content_type, purpose)
        return stored
    text, _, body = stored[len(_MARK) :].partition(b"\0")
    try:
        entries = msgspec.json.decode(text) if len(text) <= _MOST else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        entries = None
    _check(codecs, entries, content_type, purpose)
    return codecs.undo(entries, body, _around(purpose, content_type, identity))


def _check(codecs: CodecStack, entries: object, content_type: str, purpose: str) -> None:
    there = names_in(entries)
    if missing := [name for name in codecs.strict if name not in there]:
        reason = f"it lacks what the plugins require of a kept {purpose}: {', '.join(missing)}"
        raise DecodeError(content_type, reason)


def _around(purpose: str, content_type: str, identity: dict[str, object]) -> Envelope:
    # No queue has a name with a NUL, so no message passes for something kept.
    return Envelope(f"\0{purpose}", content_type, identity)
