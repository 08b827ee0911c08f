"""Registers both codecs with the keys that are configured; without keys, to say why a message cannot be read."""

from __future__ import annotations

from pgqrs_core.codecs import Codec
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugin_settings import PluginSettings, Setting, matcher
from pgqrs_core.requirements import missing
from pgqrs_crypto.codecs import EncryptionCodec, SignatureCodec
from pgqrs_crypto.keyring import Keyring

__all__ = ["pgqrs_configure"]

_SETTINGS = {
    "keys": Setting("names", "`id:key` each, 32 bytes in base64; the first seals, all open", (), secret=True),
    "encrypt": Setting("names", "queues whose messages are encrypted; `*` is any text", ()),
    "sign": Setting("names", "queues whose messages are signed", ()),
    "required": Setting("bool", "whether other messages are refused in these queues", False),
}


class _Sealing:
    def __init__(self, codecs: list[Codec]) -> None:
        self._codecs = codecs

    @hookimpl
    def pgqrs_codecs(self) -> list[Codec]:
        return self._codecs


@hookimpl
def pgqrs_configure(settings: PluginSettings) -> object:
    """Encrypt and sign as configured."""
    given = settings.read(_SETTINGS)
    problem = None
    try:
        keyring = Keyring(given["keys"])
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        raise settings.refused("keys", problem)
    if (given["encrypt"] or given["sign"] or given["required"]) and keyring.first is None:
        raise settings.refused("keys", "is missing: messages cannot be sealed without a key")
    if given["encrypt"] and (absent := missing("cryptography", "crypto")):
        raise settings.refused("encrypt", f"cannot be done: {absent}")
    encrypt, sign = (matcher(given[key]) if given[key] else None for key in ("encrypt", "sign"))
    required = given["required"]
    return _Sealing(
        [EncryptionCodec(keyring, encrypt, required=required), SignatureCodec(keyring, sign, required=required)]
    )
