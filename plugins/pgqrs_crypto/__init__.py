"""Encryption and signatures of bodies, bound to their queue, content type and headers; with keys that can change."""

from pgqrs_crypto.codecs import EncryptionCodec, SignatureCodec
from pgqrs_crypto.keyring import Keyring

__all__ = ["EncryptionCodec", "Keyring", "SignatureCodec"]
