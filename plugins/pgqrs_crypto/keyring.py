"""Keys by their ids: the first makes new seals, all open old ones. No key is ever shown."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

__all__ = ["Keyring"]

_BYTES: Final = 32


class Keyring:
    """Keys, parsed from ``id:base64`` each.

    Args:
        texts: the keys, the newest first; none is a keyring that opens nothing.

    Raises:
        ValueError: an entry is malformed or an id occurs twice; says which entry, by its place.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._keys: dict[str, bytes] = {}
        for place, text in enumerate(texts, 1):
            name, key = _parse(text, place)
            if name in self._keys:
                raise ValueError(f"entry {place}: the id {name!r} is given twice")
            self._keys[name] = key
        self.first = next(iter(self._keys), None)

    def __repr__(self) -> str:
        return f"<Keyring: {', '.join(self._keys) or 'empty'}>"

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a keyring is not to be pickled: its keys would be readable")

    def derive(self, name: str, purpose: bytes, salt: bytes = b"") -> bytes:
        """Return the key for one purpose (HKDF-SHA256, RFC 5869): no key serves two algorithms, nor two salts."""
        extracted = hmac.digest(salt or bytes(_BYTES), self._keys[name], hashlib.sha256)
        return hmac.digest(extracted, b"pgqrs " + purpose + b"\x01", hashlib.sha256)


def _parse(text: str, place: int) -> tuple[str, bytes]:
    name, colon, encoded = text.partition(":")
    expected = f"must be `id:key`, the key {_BYTES} bytes in base64, as `openssl rand -base64 {_BYTES}` makes them"
    if not colon or not name.strip() or len(name) > 100:
        raise ValueError(f"entry {place} {expected}")
    reason = None
    try:
        encoded = encoded.strip().replace("-", "+").replace("_", "/")
        key = base64.b64decode(encoded, validate=True)
        if base64.b64encode(key).decode() != encoded:
            # Before Python 3.11 too many equals signs are let pass.
            reason = f"entry {place} ({name!r}) {expected}"
        elif len(key) != _BYTES:
            reason = f"entry {place} ({name!r}) {expected}; it has {len(key)} bytes"
    except (binascii.Error, ValueError):
        reason = f"entry {place} ({name!r}) {expected}"
    if reason is not None:
        # Raised here, so that no chained error shows the text.
        raise ValueError(reason)
    return name.strip(), key
