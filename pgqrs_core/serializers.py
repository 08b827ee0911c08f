"""Turn payloads into bytes and back: the protocol, JSON, raw bytes, and the look-up among all loaded.

A body is stored as bytes beside its content type, so whoever knows that type can read it. This module is
itself a plugin: the core's serializers are registered as anybody else's.

JSON is msgspec's where that is exact. msgspec writes NaN and the infinities as null and refuses lone
surrogates; such payloads are written and read by the standard library instead and come back intact. What JSON
has no form for follows msgspec: tuples and sets come back as lists, keys that are numbers as text, bytes as
base64 – unless the reader asks for a type that says otherwise.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from pgqrs_core.errors import DecodeError, DecoderMissing, EncodeError, PayloadMismatch, PgqrsError, PluginError
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.payload_types import check_type, decoder_for, mismatch, plain, reason_of, shown, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BytesSerializer",
    "JsonSerializer",
    "Serializer",
    "SerializerRegistry",
    "TypedSerializer",
    "check_type",
    "type_name",
]

_BYTES_LIKE = (bytes, bytearray, memoryview)

_encode = msgspec.json.Encoder(enc_hook=plain).encode
_pack = msgspec.msgpack.Encoder(enc_hook=plain).encode
_null = re.compile(b"null").search  # twice as fast as ``in``, and run for every message
_decode_any = msgspec.json.Decoder().decode
# In MessagePack a double is 0xcb and eight bytes; NaN and the infinities have an exponent of ones.
_not_finite = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search


def _hides_a_number(payload: Any) -> bool:
    """Return whether ``payload`` may hold a NaN or an infinity. When in doubt, yes: it only costs time."""
    try:
        return _not_finite(_pack(payload)) is not None
    except (OverflowError, TypeError, ValueError):  # integers beyond 64 bits, and the like
        return True


def _encode_exactly(payload: Any) -> bytes:
    """Encode with the standard library, which has forms for NaN, the infinities and lone surrogates."""
    builtins = msgspec.to_builtins(payload, str_keys=True, enc_hook=plain)
    return json.dumps(builtins, separators=(",", ":")).encode("ascii")


@runtime_checkable
class Serializer(Protocol):
    """What turns payloads into bodies of one content type and back. Used from any thread, concurrently."""

    content_type: str

    def handles(self, payload: Any) -> bool:
        """Return whether this serializer wants to encode ``payload``. Asked for each message: be quick."""

    def encode(self, payload: Any) -> bytes:
        """Return the body. Raise `EncodeError`, or anything, if there is none."""

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the payload, as ``type_`` if one is asked for. Raise `PayloadError`, or anything."""


@runtime_checkable
class TypedSerializer(Serializer, Protocol):
    """A serializer of classes that msgspec does not know, as pydantic's models are."""

    #: The content types from which it can read its classes, its own among them.
    reads: tuple[str, ...]

    def knows(self, type_: Any) -> bool:
        """Return whether payloads can be decoded as ``type_`` by this serializer."""

    def type_name(self, cls: type) -> str | None:
        """Return what goes into the header ``message_type`` for payloads of a class; None if it is no class of its."""


class JsonSerializer:
    """JSON in UTF-8: JSON values, dataclasses, ``msgspec.Struct``, dates, UUIDs, decimals, enums, sets."""

    content_type = "application/json"

    def handles(self, payload: Any) -> bool:
        """Return True unless ``payload`` is bytes."""
        return not isinstance(payload, _BYTES_LIKE)

    def encode(self, payload: Any) -> bytes:
        """Return ``payload`` as JSON.

        Raises:
            EncodeError: It holds something that JSON has no form for, is nested too deeply, or has an
                integer of more digits than Python converts.
        """
        try:
            try:
                body = _encode(payload)
                # A null may stand for NaN. Most stand for None; finding out costs a tenth of writing it anew.
                exact = _null(body) is None or not _hides_a_number(payload)
            except UnicodeEncodeError:
                exact = False
            return body if exact else _encode_exactly(payload)
        except Exception as error:
            raise EncodeError(self.content_type, reason_of(error)) from error

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the payload, as ``type_``: a dataclass, Struct, TypedDict, or anything that msgspec decodes.

        Raises:
            DecodeError: The body is not JSON, or nested too deeply.
            PayloadMismatch: It is JSON but does not fit ``type_``.
            InvalidArgument: Nothing can be decoded as ``type_``.
        """
        decode = _decode_any if type_ is Any else decoder_for(type_).decode
        try:
            return decode(body)
        except Exception:  # whatever it is, the exact way knows better what to call it
            return self._decode_exactly(body, type_)

    def _decode_exactly(self, body: bytes, type_: Any) -> Any:
        """Decode what msgspec's parser refuses, rightly or not: NaN, infinities, lone surrogates."""
        try:
            # Decoded here, for json.loads would take UTF-16 too, which no other reader expects.
            value = json.loads(str(body, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise DecodeError(self.content_type, reason_of(error)) from error
        if type_ is Any:
            return value
        try:
            return msgspec.convert(value, type_, str_keys=True)
        except Exception as error:
            raise mismatch(error, type_) from error


class BytesSerializer:
    """Bytes as they are."""

    content_type = "application/octet-stream"

    def handles(self, payload: Any) -> bool:
        """Return whether ``payload`` is bytes, a bytearray or a memoryview."""
        return isinstance(payload, _BYTES_LIKE)

    def encode(self, payload: Any) -> bytes:
        """Return the bytes of ``payload``.

        Raises:
            EncodeError: It is not bytes.
        """
        if not isinstance(payload, _BYTES_LIKE):
            raise EncodeError(self.content_type, f"it is of type {type(payload).__name__}, not bytes")
        return bytes(payload)

    def decode(self, body: bytes, type_: Any = Any) -> Any:
        """Return the body, as bytes or as the bytes-like ``type_``.

        Raises:
            PayloadMismatch: ``type_`` is something else.
        """
        if type_ is Any or type_ is object or type_ is bytes:
            return bytes(body)
        if type_ is bytearray or type_ is memoryview:
            return type_(body)
        raise PayloadMismatch(shown(type_), "$", f"Expected `{shown(type_)}`, got `bytes`")


class SerializerRegistry:
    """All serializers of one engine, by content type and by payload. Immutable, so any thread may use it.

    Args:
        entries: Pairs of plugin name and serializer, in the order of loading.
        defaults: The content type by queue, ``mail.*=application/vnd.msgpack`` each; the first that matches counts.

    Raises:
        PluginError: Two serializers claim one content type.
    """

    def __init__(self, entries: Iterable[tuple[str, Serializer]], defaults: Iterable[str] = ()) -> None:
        self._by_type: dict[str, tuple[str, Serializer]] = {}
        for plugin, serializer in entries:
            taken = self._by_type.setdefault(serializer.content_type, (plugin, serializer))
            if taken[1] is not serializer:
                reason = f"serializes {serializer.content_type}, as plugin {taken[0]!r} does; block one of them"
                raise PluginError(plugin, reason)
        # The core's JSON takes whatever it can, so everybody else is asked first; sorted() is stable.
        self._defaults = tuple((pattern, kind) for pattern, _, kind in (one.rpartition("=") for one in defaults))
        self._typed = [one for _, one in self._by_type.values() if isinstance(one, TypedSerializer)]
        self._in_turn = sorted(self._by_type.values(), key=lambda entry: type(entry[1]) in _OWN)

    @property
    def content_types(self) -> tuple[str, ...]:
        """The content types that can be decoded, sorted."""
        return tuple(sorted(self._by_type))

    def default_for(self, queue: str) -> str | None:
        """Return as what payloads for a queue are encoded whose sender names no content type; None: by their types."""
        for pattern, kind in self._defaults:
            if fnmatchcase(queue, pattern):
                return kind
        return None

    def encode(self, payload: Any, content_type: str | None = None) -> tuple[str, bytes]:
        """Return the content type and the body of ``payload``.

        Args:
            payload: What is to be sent.
            content_type: Encode as this, instead of asking who handles the payload.

        Raises:
            EncodeError: Nobody handles it, or it cannot be serialised.
            PluginError: A serializer returned something else than bytes.
        """
        if content_type is None:
            plugin, serializer = self._choose(payload)
        else:
            plugin, serializer = self._named(content_type, EncodeError)
        try:
            body = serializer.encode(payload)
        except PgqrsError:
            raise
        except Exception as error:
            raise EncodeError(serializer.content_type, reason_of(error)) from error
        if type(body) is not bytes:
            method = f"{type(serializer).__name__}.encode"
            raise PluginError(plugin, f"{method} returned {type(body).__name__}, not bytes")
        return serializer.content_type, body

    def check_type(self, type_: Any) -> None:
        """Refuse a type that no payload can be decoded as, before any message is claimed for it.

        Raises:
            InvalidArgument: Neither msgspec nor a plugin can decode it, or a type within it.
        """
        if not any(one.knows(type_) for one in self._typed):
            check_type(type_)

    def type_name(self, cls: type) -> str | None:
        """Return the name under which payloads of a class travel, the header ``message_type``; None for dict."""
        return type_name(cls) or next((name for one in self._typed if (name := one.type_name(cls))), None)

    def decode(self, content_type: str, body: bytes, type_: Any = Any) -> Any:
        """Return the payload of a body, as ``type_`` if one is asked for.

        Raises:
            DecodeError: Nobody knows the content type, or the body is not of it.
            PayloadMismatch: It decodes but does not fit ``type_``.
            InvalidArgument: Nothing can be decoded as ``type_``.
        """
        _, serializer = self._named(content_type, DecoderMissing)
        if type_ is not Any and self._typed:
            serializer = next(
                (one for one in self._typed if content_type in one.reads and one.knows(type_)), serializer
            )
        try:
            return serializer.decode(body, type_)
        except PgqrsError:
            raise
        except Exception as error:
            raise DecodeError(content_type, reason_of(error)) from error

    def _choose(self, payload: Any) -> tuple[str, Serializer]:
        for entry in self._in_turn:
            try:
                if entry[1].handles(payload):
                    return entry
            except Exception as error:
                method = f"{type(entry[1]).__name__}.handles"
                raise PluginError(entry[0], f"{method} failed: {reason_of(error)}") from error
        raise EncodeError("any known type", f"no serializer handles {type(payload).__name__}")

    def _named(self, content_type: str, error: type[EncodeError | DecodeError]) -> tuple[str, Serializer]:
        try:
            return self._by_type[content_type]
        except KeyError:
            known = ", ".join(self.content_types) or "none"
            raise error(content_type, f"no serializer is loaded for it; known are: {known}") from None


_OWN = (JsonSerializer, BytesSerializer)


@hookimpl
def pgqrs_serializers() -> list[Serializer]:
    """Register the core's own serializers, as any plugin does."""
    return [JsonSerializer(), BytesSerializer()]
