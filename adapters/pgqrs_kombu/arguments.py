"""The arguments of declarations, which are whatever a client sends: those that are known, and those that are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import MAX_SECONDS

__all__ = ["Rules", "as_json", "check_consumer", "check_exchange", "rules_of", "seconds_of"]

DEAD_LETTER_EXCHANGE: Final = "x-dead-letter-exchange"
DEAD_LETTER_ROUTING_KEY: Final = "x-dead-letter-routing-key"
MAX_LENGTH: Final = "x-max-length"
OVERFLOW: Final = "x-overflow"
#: Of RabbitMQ's arguments of queues, those that mean something here. How a queue is kept is PostgreSQL's affair.
_KNOWN: Final = frozenset(
    [
        "x-expires",
        "x-message-ttl",
        "x-max-priority",
        "x-queue-type",
        DEAD_LETTER_EXCHANGE,
        DEAD_LETTER_ROUTING_KEY,
        MAX_LENGTH,
        OVERFLOW,
    ]
)
_QUEUE_TYPES: Final = ("classic", "quorum")
_REFUSED_OF_CONSUMERS: Final = ("x-priority", "x-stream-offset")


class Rules(NamedTuple):
    """What becomes of messages that fall out of a queue, and how many it holds."""

    #: Where dead letters are published; None if they stay in the queue. The empty text is the default exchange.
    exchange: str | None = None
    #: With which routing key; None for their own.
    routing_key: str | None = None
    #: How many messages may be ready.
    length: int | None = None

    def __bool__(self) -> bool:
        return self.exchange is not None or self.length is not None


def rules_of(arguments: Mapping[str, Any] | None, *, ephemeral: bool = False) -> Rules:
    """Return the rules that a queue is declared with.

    Raises:
        InvalidArgument: an argument of RabbitMQ's is not supported, or has a value that is not.
    """
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    for name in given:
        if str(name).startswith("x-") and name not in _KNOWN:
            raise InvalidArgument(
                f"argument {name!r}", given[name], f"left out, for it is not supported; {_supported()}"
            )
    if given.get("x-queue-type", "classic") not in _QUEUE_TYPES:
        raise InvalidArgument("argument 'x-queue-type'", given["x-queue-type"], "'classic' or 'quorum'")
    if given.get(OVERFLOW, "drop-head") != "drop-head":
        raise InvalidArgument(f"argument {OVERFLOW!r}", given[OVERFLOW], "'drop-head': others are not supported")
    exchange, key, length = (given.get(name) for name in (DEAD_LETTER_EXCHANGE, DEAD_LETTER_ROUTING_KEY, MAX_LENGTH))
    for name, text in ((DEAD_LETTER_EXCHANGE, exchange), (DEAD_LETTER_ROUTING_KEY, key)):
        if text is not None and not isinstance(text, str):
            raise InvalidArgument(f"argument {name!r}", text, "a text")
    if key is not None and exchange is None:
        raise InvalidArgument(
            f"argument {DEAD_LETTER_ROUTING_KEY!r}", key, f"given together with {DEAD_LETTER_EXCHANGE!r}"
        )
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < 2**31):
        raise InvalidArgument(f"argument {MAX_LENGTH!r}", length, "a whole number from 0")
    rules = Rules(exchange, key, length)
    if rules and ephemeral:
        what = DEAD_LETTER_EXCHANGE if exchange is not None else MAX_LENGTH
        raise InvalidArgument(
            f"argument {what!r}", given[what], "left out of exclusive, auto_delete and expiring queues"
        )
    return rules


def check_exchange(arguments: Mapping[str, Any] | None) -> None:
    """Refuse arguments of an exchange, of which none is supported: ``alternate-exchange`` for example.

    Raises:
        InvalidArgument: naming the argument.
    """
    for key, value in (arguments or {}).items():
        if value is not None and (key == "alternate-exchange" or str(key).startswith("x-")):
            raise InvalidArgument(f"argument {key!r}", value, "left out, for exchanges have none that is supported")


def check_consumer(arguments: Mapping[str, Any] | None) -> None:
    """Refuse arguments of a consumer that are not supported.

    Raises:
        InvalidArgument: naming the argument.
    """
    for key, value in (arguments or {}).items():
        if key in _REFUSED_OF_CONSUMERS:
            raise InvalidArgument(f"argument {key!r}", value, "left out, for it is not supported")


def _supported() -> str:
    return f"there are {', '.join(sorted(_KNOWN))}"


def as_json(arguments: Mapping[str, Any] | None) -> str | None:
    """Return the arguments of a declaration as they are stored.

    Raises:
        InvalidArgument: they hold something else than JSON values.
    """
    if not arguments:
        return None
    try:
        return msgspec.json.encode(dict(arguments)).decode()
    except Exception as error:
        raise InvalidArgument("arguments", type(arguments), f"a mapping of JSON values ({error})") from error


def seconds_of(arguments: Mapping[str, Any], key: str) -> float | None:
    """Return an argument that is a number of milliseconds, in seconds; None where it is not given.

    Raises:
        InvalidArgument: it is no number.
    """
    value = arguments.get(key)
    if value is None:
        return None
    try:
        seconds = float(value) / 1000
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidArgument(key, value, "a number of milliseconds")
    return min(max(seconds, 0.001), MAX_SECONDS)
