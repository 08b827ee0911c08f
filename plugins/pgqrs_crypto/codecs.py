"""Encryption by AES-256-GCM and signatures by HMAC-SHA256.

An encrypted body is a salt of 16 bytes, a nonce of 12, and the ciphertext with its tag. The salt makes a key of its own
for each process and each million of messages: random nonces under one key are safe for some four thousand millions only.
A signed body is a tag of 32 bytes and the body itself.

Both bind the queue, the content type and all headers, with the key's id and the entries of inner codecs among them: a
body that is moved to another message or queue does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.codecs import Encoded, Envelope, Stage
from pgqrs_core.errors import DecodeError, DecoderMissing, InvalidArgument
from pgqrs_crypto.keyring import Keyring

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["EncryptionCodec", "SignatureCodec"]

_SALT: Final = 16
_NONCE: Final = 12
_TAG: Final = 16
#: After how many messages a process takes a new salt.
_MESSAGES_PER_SALT: Final = 1_000_000


class _Sealing:
    """What both have in common: which queues, and which key."""

    name: str

    def __init__(
        self, keyring: Keyring, queues: Callable[[str], bool] | None = None, *, required: bool = False
    ) -> None:
        self.active = queues is not None
        self._keyring = keyring
        self._queues = queues or (lambda queue: False)
        self._required = required
        #: Whether what adapters keep beside the queues must be sealed, too.
        self.strict = required and self.active

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._keyring!r}>"

    def wants(self, queue: str, size: int) -> bool:
        """Return whether it is one of the queues."""
        return self._queues(queue)

    def required(self, queue: str) -> bool:
        """Return whether it is one of the queues, and others than sealed messages are refused there."""
        return self._required and self._queues(queue)

    def _first_key(self) -> str:
        if self._keyring.first is None:
            raise InvalidArgument(
                "header pgqrs_codecs", self.name, "a codec that has a key; none is in plugins.crypto.keys"
            )
        return self._keyring.first

    def _known_key(self, facts: dict[str, Any], around: Envelope) -> str:
        key = facts.get("key")
        if not isinstance(key, str):
            raise DecodeError(around.content_type, f"{self.name}: its key {key!r:.80} is not the id of one")
        if key not in self._keyring:
            raise DecoderMissing(around.content_type, f"{self.name}: its key {key!r:.80} is not in plugins.crypto.keys")
        return key

    def _bound(self, key: str, around: Envelope) -> bytes:
        return b"%s\0%s\0%s" % (self.name.encode(), key.encode(), around.canonical())


class EncryptionCodec(_Sealing):
    """AES-256-GCM.

    Args:
        keyring: the first key encrypts.
        queues: whether messages of a queue are encrypted where their producer did not choose; None for none.
        required: whether other messages are refused in these queues.
    """

    name = "aes-256-gcm"
    stage: Stage = "encrypt"

    def __init__(
        self, keyring: Keyring, queues: Callable[[str], bool] | None = None, *, required: bool = False
    ) -> None:
        super().__init__(keyring, queues, required=required)
        # To set a key up takes as long as to encrypt a kilobyte with it.
        self._cipher = lru_cache(maxsize=1024)(self._new_cipher)
        self._salt = b""
        self._left = 0

    def encode(self, body: bytes, around: Envelope) -> Encoded:
        """Return the encrypted body and the id of its key.

        Raises:
            InvalidArgument: There is no key.
        """
        key, salt, nonce = self._first_key(), self._fresh_salt(), os.urandom(_NONCE)
        sealed = self._cipher(key, salt).encrypt(nonce, body, self._bound(key, around))
        return salt + nonce + sealed, {"key": key}

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> bytes:
        """Return the body in the clear.

        Raises:
            DecoderMissing: The key is not known here.
            DecodeError: The body, its queue, its content type or its headers have changed.
        """
        from cryptography.exceptions import InvalidTag

        key = self._known_key(facts, around)
        if len(body) < _SALT + _NONCE + _TAG:
            raise DecodeError(around.content_type, f"{self.name}: it is too short")
        salt, nonce, sealed = body[:_SALT], body[_SALT : _SALT + _NONCE], body[_SALT + _NONCE :]
        try:
            return self._cipher(key, salt).decrypt(nonce, sealed, self._bound(key, around))
        except InvalidTag:
            reason = f"{self.name}: it does not open with key {key!r}: the body, its headers or its queue were changed"
        raise DecodeError(around.content_type, reason)

    def _new_cipher(self, key: str, salt: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._keyring.derive(key, b"encrypt", salt))

    def _fresh_salt(self) -> bytes:
        # No lock: it could be held at a fork. Threads that meet here renew twice or miscount by a few, and a child goes on
        # with its parent's salt; the nonces are random, so none of this does harm.
        if self._left <= 0:
            self._salt, self._left = os.urandom(_SALT), _MESSAGES_PER_SALT
        self._left -= 1
        return self._salt


class SignatureCodec(_Sealing):
    """HMAC-SHA256: everybody may read, only who has the key can write. Arguments as of `EncryptionCodec`."""

    name = "hmac-sha256"
    stage: Stage = "sign"

    def __init__(
        self, keyring: Keyring, queues: Callable[[str], bool] | None = None, *, required: bool = False
    ) -> None:
        super().__init__(keyring, queues, required=required)
        self._signing = lru_cache(maxsize=1024)(keyring.derive)

    def encode(self, body: bytes, around: Envelope) -> Encoded:
        """Return the signed body and the id of its key.

        Raises:
            InvalidArgument: There is no key.
        """
        key = self._first_key()
        return self._tag(key, body, around) + body, {"key": key}

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> bytes:
        """Return the body without its signature.

        Raises:
            DecoderMissing: The key is not known here.
            DecodeError: The signature is not of this body, queue, content type and headers.
        """
        key = self._known_key(facts, around)
        tag, content = body[:32], body[32:]
        if not hmac.compare_digest(tag, self._tag(key, content, around)):
            reason = (
                f"{self.name}: the signature with key {key!r} is wrong: the body, its headers or its queue were changed"
            )
            raise DecodeError(around.content_type, reason)
        return content

    def _tag(self, key: str, body: bytes, around: Envelope) -> bytes:
        bound = self._bound(key, around)
        # The length tells where the one ends and the other begins.
        signed = len(bound).to_bytes(8, "big") + bound + body
        return hmac.digest(self._signing(key, b"sign"), signed, hashlib.sha256)
