"""Between Dramatiq's messages and the rows they become.

The body is what the encoder wrote, whatever that is. Beside it, as headers, stand the actor and the message id, so that
people see in `pgqrs dead list` what a message was, whichever encoder wrote it.
"""

from __future__ import annotations

from math import inf, isnan
from typing import Any, Final

from dramatiq.common import current_millis
from dramatiq.encoder import JSONEncoder
from dramatiq.errors import DecodeError
from dramatiq.message import Message, get_encoder

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.events import Draft
from pgqrs_core.messages import MAX_PRIORITY

__all__ = ["compose", "decode", "due_in", "readable", "undecodable"]

#: Options with which Dramatiq calculates, whatever they are.
_NUMBERS: Final = frozenset(["retries", "max_retries", "min_backoff", "max_backoff", "max_age", "time_limit"])
_FAR: Final = 2**53
_OCTETS: Final = "application/octet-stream"


def due_in(options: dict[str, Any], delay: float | None) -> float | None:
    """Return in how many seconds a message is due; None for at once.

    Args:
        options: its options; without a delay their ``eta`` counts, in milliseconds since 1970.
        delay: milliseconds, as `Broker.enqueue` takes them; below one, like None, it is no delay.

    Raises:
        InvalidArgument: the delay, or the ``eta``, is no number.
    """
    if delay is None:
        eta = options.get("eta")
        if eta is None:
            return None
        _check("eta", eta)
        delay = eta - current_millis()
    else:
        _check("delay", delay)
    return delay / 1000 if delay > 0 else None


def _check(parameter: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or isnan(value):
        raise InvalidArgument(parameter, value, "a number of milliseconds")


def compose(message: Message[Any], queue: str, delay: float | None, priority: object) -> Draft:
    """Return what a message is stored as.

    Args:
        message: the message, encoded here by Dramatiq's global encoder.
        queue: the name of its queue.
        delay: seconds until it is due.
        priority: its ``broker_priority``, 0 to 9; what is above counts as 9, as on RabbitMQ.

    Raises:
        InvalidArgument: the priority is no such number.
    """
    headers = {"actor": message.actor_name, "message_id": message.message_id}
    content_type = "application/json" if isinstance(get_encoder(), JSONEncoder) else _OCTETS
    return Draft(queue, message.encode(), content_type, headers, _priority(priority), delay)


def _priority(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgument("broker_priority", value, f"a whole number from 0 to {MAX_PRIORITY}")
    return min(value, MAX_PRIORITY)


def decode(body: bytes, queue_name: str) -> Message[Any]:
    """Return a message as Dramatiq's workers want it: of the queue it came from, and due.

    They would look up its consumer by its queue, and park in their own memory what has an ``eta``.

    Raises:
        DecodeError: the body is not one that the global encoder wrote.
    """
    message: Message[Any] = Message.decode(body)
    if not (isinstance(message.options, dict) and isinstance(message.kwargs, dict)):
        raise DecodeError("its options or keyword arguments are not a mapping", body, None)
    if not isinstance(message.actor_name, str):
        raise DecodeError("its actor's name is not a text", body, None)
    if not isinstance(message.message_id, str):
        raise DecodeError("its id is not a text", body, None)
    for name in _NUMBERS & message.options.keys():
        if not _is_number(message.options[name]):
            raise DecodeError(f"its option {name!r} is not a number, or out of range", body, None)
    throws = message.options.get("throws")
    # The error that it makes of anything else ends the thread that runs actors.
    if throws is not None and not all(
        isinstance(one, type) for one in (throws if isinstance(throws, tuple) else [throws])
    ):
        raise DecodeError("its option 'throws' is not a class of exceptions, or several", body, None)
    message.options.pop("eta", None)
    return message if message.queue_name == queue_name else message.copy(queue_name=queue_name)


def _is_number(value: object) -> bool:
    """Tell whether Dramatiq can calculate with a value: None stands for none, and infinity for no limit."""
    if value is None or value == inf:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _FAR


def undecodable(error: DecodeError) -> dict[str, Any]:
    """Return the reason for which an unreadable message is dead."""
    cause = f": {type(error.error).__name__}: {error.error}" if error.error is not None else ""
    return {"type": "DecodeError", "message": readable(f"{error}{cause}")}


def readable(text: str) -> str:
    """Return a text that JSON can hold: lone surrogates come from file names and the like."""
    return text.encode("utf-8", "replace").decode()
