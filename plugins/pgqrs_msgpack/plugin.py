"""The serializer of MessagePack and its registration. msgspec is the core's own dependency."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pgqrs_core.errors import DecodeError, EncodeError, InvalidArgument, PayloadError
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.payload_types import decoder_for, mismatch, plain, reason_of
from pgqrs_core.serializers import Serializer

__all__ = ["CONTENT_TYPE", "MsgpackSerializer", "pgqrs_serializers"]

#: As registered with IANA.
CONTENT_TYPE: Final = "application/vnd.msgpack"

_encode = msgspec.msgpack.Encoder(enc_hook=plain).encode
_decode = msgspec.msgpack.Decoder().decode


class MsgpackSerializer:
    """MessagePack: what JSON can hold, and bytes, NaN, times with a zone and keys of any kind unchanged."""

    content_type = CONTENT_TYPE

    def handles(self, payload: Any) -> bool:
        """Return False: JSON stays the default; this is chosen by name."""
        return False

    def encode(self, payload: Any) -> bytes:
        """Return ``payload`` as MessagePack.

        Raises:
            EncodeError: It holds what MessagePack has no form for: other objects, integers beyond 64 bits, lone
                surrogates; or is nested too deeply.
        """
        try:
            return _encode(payload)
        except Exception as error:
            raise EncodeError(CONTENT_TYPE, reason_of(error)) from error

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the payload, as ``type_``: a dataclass, Struct, TypedDict, or anything that msgspec decodes.

        Raises:
            DecodeError: The body is not MessagePack.
            PayloadMismatch: It is, but does not fit ``type_``.
            InvalidArgument: Nothing can be decoded as ``type_``.
        """
        try:
            return _decode(body) if type_ is Any else decoder_for(type_, msgspec.msgpack.Decoder).decode(body)
        except (InvalidArgument, PayloadError):
            raise
        except Exception as error:
            if type_ is not Any and isinstance(error, msgspec.ValidationError):
                raise mismatch(error, type_) from error
            raise DecodeError(CONTENT_TYPE, reason_of(error)) from error


@hookimpl
def pgqrs_serializers() -> list[Serializer]:
    """Add the serializer."""
    return [MsgpackSerializer()]
