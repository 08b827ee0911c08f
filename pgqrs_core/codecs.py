"""Codecs: what turns a stored body into another one and back – compression, signatures, encryption.

A codec belongs to a stage. On the way in the codecs that want a message are applied in the order of the stages, and each
leaves an entry in the header ``pgqrs_encoding``; on the way out these entries are undone, the last first. So what is
undone depends on the message alone: old and new messages, encoded or not, lie in one queue, and neither the order in
which plugins are loaded nor today's configuration matters to those of yesterday.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from pgqrs_core.errors import DecodeError, DecoderMissing, InvalidArgument, PayloadError, PgqrsError, PluginError
from pgqrs_core.interrupts import is_interrupt
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import decode_headers, encode_headers

if TYPE_CHECKING:
    from pgqrs_core.events import ConsumeBatch, Draft
    from pgqrs_core.messages import Delivery

__all__ = [
    "ANY_QUEUE",
    "CHOICE",
    "ENCODING",
    "PROTECTING",
    "STAGES",
    "Codec",
    "CodecStack",
    "Encoded",
    "Envelope",
    "Stage",
    "names_in",
]

Stage: TypeAlias = Literal["transform", "compress", "sign", "encrypt"]
Encoded: TypeAlias = "tuple[bytes, dict[str, Any]]"

#: In the order in which they are applied. Ciphertext does not compress; a signature should not be readable.
STAGES: Final[tuple[Stage, ...]] = ("transform", "compress", "sign", "encrypt")
#: Those whose codecs also encode what adapters keep beside the queues, see `pgqrs_core.kept`.
PROTECTING: Final[frozenset[Stage]] = frozenset(("sign", "encrypt"))
#: Among the names that rule a message: it is sealed wherever messages of any queue are, and must be where any must.
#: No queue has a name with a NUL.
ANY_QUEUE: Final = "\0any queue"
#: The header that records what was done to a body. Handlers do not see it.
ENCODING: Final = "pgqrs_encoding"
#: The header by which a producer chooses for one message: ``{"zstd": False}``. It is not stored.
CHOICE: Final = "pgqrs_codecs"
_logger = get_logger("pgqrs.plugins")

#: More layers than there are stages and plugins for; a body of a thousand layers is an attack.
_MOST_LAYERS: Final = 8


class Envelope(msgspec.Struct, frozen=True):
    """What surrounds a body: where it was sent, what it is, its headers, the entries of inner codecs among them.

    On both ways the headers are what JSON gives.
    """

    queue: str
    content_type: str
    headers: dict[str, Any]

    def canonical(self) -> bytes:
        """Return bytes that are the same on both ways and differ if anything differs: what a seal should bind."""
        everything = [self.queue, self.content_type, self.headers]
        try:
            return msgspec.json.encode(everything, order="deterministic")
        except (TypeError, ValueError, OverflowError):
            # Lone surrogates, integers beyond 64 bits: rare, and slower; a matter of the values, so the same on both ways.
            return json.dumps(everything, sort_keys=True, separators=(",", ":")).encode()


@runtime_checkable
class Codec(Protocol):
    """What a plugin returns from ``pgqrs_codecs``. Used from any thread, concurrently.

    A codec of the stages ``sign`` and ``encrypt`` may have an attribute ``strict``: True where messages of any queue must
    be encoded. Then what adapters keep beside the queues must be, too: it belongs to no queue.
    """

    #: Recorded in every message, so never changed once released, and unique among the loaded plugins.
    name: str
    stage: Stage
    #: False where it encodes on request only, since nothing is configured: then `wants` and `required` are not asked.
    active: bool

    def wants(self, queue: str, size: int) -> bool:
        """Return whether a message of ``size`` bytes is to be encoded, where its producer did not choose."""

    def required(self, queue: str) -> bool:
        """Return whether messages of a queue must be encoded: others are refused, and dead-lettered if found."""

    def encode(self, body: bytes, around: Envelope) -> Encoded | None:
        """Return the new body and what `decode` must know, JSON values for the header; None to leave it as it is."""

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> bytes:
        """Return the body as it was. Raise `DecodeError` with a reason that holds no secret, or anything.

        Raise `DecoderMissing` where another process may be able to: then the message is left to that, and not buried.
        """


class CodecStack:
    """The codecs of one engine. Immutable, so any thread may use it.

    Args:
        entries: pairs of plugin name and codec.
    """

    def __init__(self, entries: Iterable[tuple[str, Codec]] = ()) -> None:
        self._in_turn = sorted(entries, key=lambda entry: (STAGES.index(entry[1].stage), entry[1].name))
        self._active = [codec for _, codec in self._in_turn if codec.active]
        self._by_name = {codec.name: (plugin, codec) for plugin, codec in self._in_turn}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the codecs, in the order in which they are applied."""
        return tuple(self._by_name)

    def is_idle(self, draft: Draft) -> bool:
        """Return whether a message is to be encoded nowhere, whatever queue it goes to."""
        return not self._active and (draft.headers is None or CHOICE not in draft.headers)

    @property
    def protecting(self) -> tuple[tuple[str, Codec], ...]:
        """The active codecs that sign or encrypt, with their plugins, in the order in which they are applied."""
        return tuple(entry for entry in self._in_turn if entry[1].active and entry[1].stage in PROTECTING)

    @property
    def strict(self) -> tuple[str, ...]:
        """The names of those of them that refuse what they have not encoded, in some queue."""
        return tuple(codec.name for _, codec in self.protecting if getattr(codec, "strict", False))

    @property
    def is_active(self) -> bool:
        """Whether any codec is configured for any queue."""
        return bool(self._active)

    def required(self, *names: str) -> list[str]:
        """Return the names of the codecs that are required in any of these queues or exchanges."""
        return [codec.name for codec in self._active if _is_required(codec, names)]

    def concerns_drafts(self, queue: str, drafts: Sequence[Draft]) -> bool:
        """Return whether any of these messages is to be encoded, or says something about it."""
        for draft in drafts:
            if draft.headers is not None and CHOICE in draft.headers:
                return True
        return any(
            codec.required(queue) or any(codec.wants(queue, len(draft.body)) for draft in drafts)
            for codec in self._active
        )

    def concerns(self, queue: str, deliveries: Sequence[Delivery], names: Sequence[str] = ()) -> bool:
        """Return whether any of these messages is encoded, or should be."""
        if self.required(queue, *names):
            return True
        return any(item.raw_headers is not None and ENCODING in item.raw_headers for item in deliveries)

    def encode(self, drafts: Sequence[Draft], *, address: str = "", names: Sequence[str] = ()) -> None:
        """Encode drafts in place.

        Args:
            drafts: the messages.
            address: what a seal binds in the place of the queue's name.
            names: those by whose rules they are encoded, in the place of the queue's name.

        Raises:
            InvalidArgument: the header of a choice is malformed, names an unknown codec, or refuses a required one.
            PluginError: a codec failed, or returned something else than it should.
        """
        for draft in drafts:
            headers = dict(draft.headers or {})
            choice = self._choice(headers.pop(CHOICE, {}))
            # As they will be read: with texts as keys, lists for tuples.
            headers = decode_headers(encode_headers(headers))
            ruling = names or (draft.queue,)
            stack: list[dict[str, Any]] = []
            for plugin, codec in self._in_turn:
                if not self._is_wanted(plugin, codec, ruling, len(draft.body), choice.get(codec.name)):
                    continue
                around = Envelope(address or draft.queue, draft.content_type, _with(headers, stack))
                encoded = _encoded(plugin, codec, draft.body, around)
                if encoded is not None:
                    draft.body = encoded[0]
                    stack = [*stack, {"codec": codec.name, **encoded[1]}]
                elif codec.active and _is_required(codec, ruling):
                    raise PluginError(plugin, f"codec {codec.name!r} left a message as it was that must be encoded")
            draft.headers = _with(headers, stack) or None

    def protect(self, body: bytes, around: Envelope) -> tuple[bytes, list[dict[str, Any]]]:
        """Return a body as the codecs that protect leave it, and their entries; without any, none.

        Raises:
            PluginError: a codec failed, or left it as it was.
        """
        stack: list[dict[str, Any]] = []
        for plugin, codec in self.protecting:
            encoded = _encoded(
                plugin, codec, body, msgspec.structs.replace(around, headers=_with(around.headers, stack))
            )
            if encoded is None:
                raise PluginError(plugin, f"codec {codec.name!r} left as it was what must be encoded")
            body = encoded[0]
            stack = [*stack, {"codec": codec.name, **encoded[1]}]
        return body, stack

    def undo(self, stack: object, body: bytes, around: Envelope) -> bytes:
        """Return a body as it was before the codecs that these entries name.

        Args:
            stack: the entries, as they were read from wherever.
            body: the encoded body.
            around: what surrounds it, without the entries.

        Raises:
            DecodeError: they are malformed or too many, or it does not open.
            DecoderMissing: a codec or key is not loaded here.
            PluginError: a codec lacks its library, or returned something else than bytes.
        """
        if not isinstance(stack, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("codec"), str) for entry in stack
        ):
            raise DecodeError(around.content_type, f"its header {ENCODING!r} is malformed")
        if len(stack) > _MOST_LAYERS:
            raise DecodeError(around.content_type, f"it has {len(stack)} layers; at most {_MOST_LAYERS} are allowed")
        for place in reversed(range(len(stack))):
            inner = msgspec.structs.replace(around, headers=_with(around.headers, stack[:place]))
            body = self._undone(stack[place], body, inner)
        return body

    def decode(self, batch: ConsumeBatch) -> None:
        """Decode deliveries in place; what cannot be decoded, or is not encoded as it must be, is buried with the reason.

        What needs a codec or a key that is not loaded here is postponed: another process may have it.

        Raises:
            PluginError: a codec lacks its library, or returned something else than bytes.
        """
        required = self.required(*(batch.names or (batch.queue,)))
        count, before, left = len(batch.deliveries), len(batch.buried), len(batch.postponed)
        for delivery in batch.deliveries:
            if not required and (delivery.raw_headers is None or ENCODING not in delivery.raw_headers):
                continue
            try:
                self._decode(batch, delivery, required)
            except DecoderMissing as error:
                batch.postpone(delivery, str(error))
            except PayloadError as error:
                batch.bury(delivery, str(error))
        if refused := batch.buried[before:]:
            # One key that is missing can do this to all that come.
            text = "queue %r: %d of %d messages cannot be decoded and are refused; the first, %d: %s"
            _logger.warning(text, batch.queue, len(refused), count, refused[0][0].id, refused[0][1])
        if unknown := batch.postponed[left:]:
            text = "queue %r: %d of %d messages need a codec or key that is not loaded here; the first, %d: %s"
            _logger.warning(text, batch.queue, len(unknown), count, unknown[0][0].id, unknown[0][1])

    def _decode(self, batch: ConsumeBatch, delivery: Delivery, required: list[str]) -> None:
        try:
            headers = delivery.headers
            stack = headers.pop(ENCODING, [])
        # Another program may have written anything.
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DecodeError(delivery.content_type, f"its header {ENCODING!r} is malformed") from error
        if missing := [name for name in required if name not in names_in(stack)]:
            reason = f"it lacks what queue {batch.queue!r} requires: {', '.join(missing)}"
            raise DecodeError(delivery.content_type, reason)
        around = Envelope(batch.address or batch.queue, delivery.content_type, headers)
        body = self.undo(stack, delivery.body, around)
        if stack:
            delivery.stored = delivery.raw_headers, delivery.body
            delivery.headers, delivery.body = headers, body

    def _undone(self, entry: dict[str, Any], body: bytes, around: Envelope) -> bytes:
        facts = dict(entry)
        name = str(facts.pop("codec"))
        if name not in self._by_name:
            known = ", ".join(self.names) or "none"
            raise DecoderMissing(around.content_type, f"no codec {name!r:.80} is loaded; known are: {known}")
        plugin, codec = self._by_name[name]
        try:
            found = codec.decode(body, around, facts)
        except PgqrsError:
            raise
        except ImportError as error:
            raise PluginError(plugin, f"codec {name!r}: {error}") from error
        except Exception as error:
            if is_interrupt(error):
                raise
            # Only the kind: the text of a library's error may hold a part of the body.
            raise DecodeError(around.content_type, f"codec {name!r} failed: {type(error).__name__}") from error
        if type(found) is not bytes:
            raise PluginError(plugin, f"codec {name!r}: decode returned {type(found).__name__}, not bytes")
        return found

    def _choice(self, given: object) -> dict[str, bool]:
        if not isinstance(given, dict) or not all(isinstance(value, bool) for value in given.values()):
            raise InvalidArgument(f"header {CHOICE}", given, "a dict of names of codecs and True or False")
        for name in given:
            if name not in self._by_name:
                known = ", ".join(self.names) or "none"
                raise InvalidArgument(f"header {CHOICE}", name, f"of codecs that are loaded; known are: {known}")
        return given

    def _is_wanted(self, plugin: str, codec: Codec, names: Sequence[str], size: int, chosen: bool | None) -> bool:
        required = codec.active and _is_required(codec, names)
        if chosen is False and required:
            what = f"free of {codec.name!r}: False, for queue {names[0]!r} requires it"
            raise InvalidArgument(f"header {CHOICE}", {codec.name: False}, what)
        if chosen is not None:
            return chosen
        try:
            if required or (codec.active and ANY_QUEUE in names and codec.stage in PROTECTING):
                return True
            return codec.active and any(codec.wants(name, size) for name in names)
        except Exception as error:
            if is_interrupt(error):
                raise
            raise PluginError(plugin, f"codec {codec.name!r}: wants: {type(error).__name__}: {error}") from error


def _is_required(codec: Codec, names: Sequence[str]) -> bool:
    if ANY_QUEUE in names and codec.stage in PROTECTING and getattr(codec, "strict", False):
        return True
    return any(map(codec.required, names))


def names_in(stack: object) -> list[str]:
    """Return the names of the codecs in entries that were read from wherever."""
    entries = stack if isinstance(stack, list) else []
    return [entry["codec"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("codec"), str)]


def _with(headers: dict[str, Any], stack: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**headers, ENCODING: list(stack)} if stack else headers


def _encoded(plugin: str, codec: Codec, body: bytes, around: Envelope) -> Encoded | None:
    try:
        encoded = codec.encode(body, around)
    except PgqrsError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        reason = f"codec {codec.name!r}: encode failed: {type(error).__name__}: {error}"
        raise PluginError(plugin, reason) from error
    if encoded is None:
        return None
    pair: Any = encoded
    if not (isinstance(pair, tuple) and list(map(type, pair)) == [bytes, dict]):
        raise PluginError(plugin, f"codec {codec.name!r}: encode must return bytes and a dict, or None")
    return encoded
