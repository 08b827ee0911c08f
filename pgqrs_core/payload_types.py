"""The types of payloads: which can be decoded, what they are called, where a payload does not fit."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import msgspec
from typing_extensions import is_typeddict

from pgqrs_core.errors import InvalidArgument, PayloadMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_type", "decoder_for", "mismatch", "plain", "reason_of", "shown", "type_name"]

D = TypeVar("D")

_EXPECTED = "Any, a dataclass, msgspec.Struct, TypedDict or other type that msgspec decodes"
# " - at `$.items[3].price`", " - at `key` in `$.prices`". Greedy: a validator's own text may hold the same.
_WHERE = re.compile(r"(?P<reason>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`\Z", re.DOTALL)
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(.*?)`\Z")


def check_type(type_: Any) -> None:
    """Refuse a type that no payload can be decoded as, before any message is claimed for it.

    Raises:
        InvalidArgument: msgspec cannot decode it, or a type within it.
    """
    if type_ is not Any:
        decoder_for(type_)


def decoder_for(type_: Any, kind: Callable[[Any], D] = msgspec.json.Decoder) -> D:  # type: ignore[assignment]
    """Return the decoder into ``type_``, built once for each type.

    Args:
        type_: What to decode as.
        kind: ``msgspec.json.Decoder``, or another that msgspec has.

    Raises:
        InvalidArgument: msgspec cannot decode it, or a type within it.
    """
    try:
        decoder: D = _cached_decoder(type_, kind)
    except TypeError:
        # Types with unhashable annotations are legal; building their decoder anew is slow, but right.
        decoder = _build_decoder(type_, kind)
    return decoder


@lru_cache(maxsize=1024)
def _cached_decoder(type_: Any, kind: Callable[[Any], Any]) -> Any:
    return _build_decoder(type_, kind)


def _build_decoder(type_: Any, kind: Callable[[Any], D]) -> D:
    try:
        decoder = kind(type_)
        unknown = _first_custom(msgspec.inspect.type_info(type_), set())
    # Unresolvable annotations raise NameError and others; msgspec itself TypeError.
    except Exception as error:
        raise InvalidArgument("payload type", type_, f"{_EXPECTED} ({reason_of(error)})") from error
    # msgspec builds a decoder for any class and then refuses each value, as if the messages were wrong.
    if unknown is not None:
        inner = "" if unknown is type_ else f" ({shown(unknown)} within it is none)"
        raise InvalidArgument("payload type", type_, _EXPECTED + inner)
    return decoder


def _first_custom(node: Any, seen: set[int]) -> Any:
    """Return the first class within a described type that msgspec has no idea how to build, or None."""
    if isinstance(node, msgspec.inspect.CustomType):
        return None if node.cls is object else node.cls
    if isinstance(node, tuple):
        parts: tuple[Any, ...] = node
    elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(node) not in seen:
        seen.add(id(node))
        parts = tuple(getattr(node, field) for field in node.__struct_fields__)
    else:
        return None
    return next((found for part in parts if (found := _first_custom(part, seen)) is not None), None)


@lru_cache(maxsize=1024)
def type_name(payload_type: type) -> str | None:
    """Return the name under which payloads of a class travel, the header ``message_type``.

    It is the class's own ``__message_type__`` if it has one, else its ``__name__`` if it is a dataclass, a
    ``msgspec.Struct`` or a TypedDict. ``__message_type__`` is not inherited: a subclass is another message.

    Returns:
        The name; None for anything else, as dict or int.
    """
    cls = get_origin(payload_type) or payload_type
    own = getattr(cls, "__dict__", {}).get("__message_type__")
    if own is not None:
        return str(own)
    named = isinstance(cls, type) and (is_dataclass(cls) or issubclass(cls, msgspec.Struct))
    return cls.__name__ if named or is_typeddict(cls) else None


def mismatch(error: Exception, type_: Any) -> PayloadMismatch:
    """Translate what msgspec says about a value that does not fit ``type_``.

    The field is a path such as ``to`` or ``items[3].price``; ``$`` is the payload itself.
    """
    reason, path = reason_of(error), ""
    if where := _WHERE.match(reason):
        reason, path = where["reason"], where["path"]
        if where["key"]:
            reason = f"{reason}, as a key"
    if field := _FIELD.match(reason):
        path = f"{path}.{field[1]}" if path else field[1]
    return PayloadMismatch(shown(type_), path or "$", reason)


def reason_of(error: BaseException) -> str:
    """Return what an exception says, with its class where the text alone would not tell."""
    text = str(error)
    if text and isinstance(error, (msgspec.MsgspecError, TypeError, ValueError, RecursionError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain(value: Any) -> Any:
    """Turn what msgspec does not know into what it knows: numpy.float64, SafeString and their like, deque.

    Raises:
        TypeError: There is nothing that it stands for.
    """
    if isinstance(value, str):
        return str.__str__(value)
    # msgspec asks about keys too, and True as a key is more likely a mistake than a 1.
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, deque):
        return list(value)
    raise TypeError(f"objects of type {type(value).__name__} have no form in it")


def shown(type_: Any) -> str:
    """Return a type as people write it."""
    return type_.__name__ if isinstance(type_, type) and get_origin(type_) is None else str(type_)
