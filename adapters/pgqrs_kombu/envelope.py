"""A Kombu message as a row, and a row as a Kombu message.

The body is stored as the bytes it is, its content type in its column, Kombu's headers as the headers. Kombu's properties
and the content encoding stand beside the headers under one key of their own, and whether Kombu's JSON wrote them: it has
forms for times, UUIDs and the like. So any tool of pgqrs shows a Celery task readably, and a message that was enqueued by
any other means of pgqrs can be consumed by Kombu.
"""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import datetime, timezone
from typing import Any, Final

import kombu.message
from kombu.utils import json as kombu_json

from pgqrs_core.errors import DecodeError, InvalidArgument
from pgqrs_core.events import Draft
from pgqrs_core.headers import check_headers, decode_headers, encode_headers
from pgqrs_core.messages import MAX_PRIORITY, MAX_SECONDS, Delivery
from pgqrs_kombu import tasks
from pgqrs_kombu.compression import MAX_EXPANDED_BYTES, expand

__all__ = ["KEY", "Message", "compose", "headers_of", "message_of"]

#: The one header that is not the publisher's.
KEY: Final = "_kombu"
#: The delivery mode of AMQP that lets a crash of the broker lose a message.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TRANSIENT: Final = 1
_TEXTUAL: Final = re.compile(r"text/|application/(.*\+)?(json|xml|x-yaml|yaml)\b")


def compose(
    queue: str,
    message: dict[str, Any],
    exchange: str,
    routing_key: str,
    *,
    message_ttl: float | None = None,
    hold_eta: bool = True,
) -> Draft:
    """Return a message as prepared by Kombu in the form in which it is written.

    Args:
        queue: where it goes.
        message: what `Channel.prepare_message` made.
        exchange: where it was published, with its routing key.
        routing_key: see there.
        message_ttl: seconds that the queue keeps a message, from ``x-message-ttl``.
        hold_eta: whether a message with an ``eta`` is to wait in the database until then.

    Raises:
        InvalidArgument: the headers or properties hold what cannot be stored, or the priority, the expiration or the
            ``eta`` of a task is none.
    """
    body = message["body"]
    properties = message["properties"]
    headers = message["headers"]
    priority = priority_of(properties)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    stored = {**headers, KEY: {"properties": properties, "content_encoding": message["content-encoding"]}}
    if not check_headers(stored):
        stored[KEY]["typed"] = True
        stored = _with_types_marked(stored)
    expiration = properties.get("expiration")
    ttl = message_ttl if expiration is None else _seconds(expiration, message_ttl)
    return Draft(
        queue,
        body.encode() if isinstance(body, str) else bytes(body),
        message["content-type"] or "",
        stored,
        priority,
        None,
        _due(headers) if hold_eta and "eta" in headers else None,
        ttl,
        durable=properties.get("delivery_mode") != _TRANSIENT,
    )


def message_of(delivery: Delivery, queue: str) -> dict[str, Any]:
    """Return a stored message in the form in which Kombu publishes one.

    Raises:
        DecodeError: its headers cannot be read.
    """
    headers, envelope = headers_of(delivery.raw_headers)
    properties = envelope.get("properties")
    known = isinstance(properties, dict)
    encoding = "utf-8" if _TEXTUAL.match(delivery.content_type) else "binary"
    return {
        "body": delivery.body,
        "content-type": delivery.content_type,
        "content-encoding": envelope.get("content_encoding") if known else encoding,
        "headers": headers,
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": queue},
            **(properties if isinstance(properties, dict) else {}),
            "priority": delivery.priority,
        },
    }


def priority_of(properties: dict[str, Any]) -> int:
    """Return the priority; what is above 9 counts as 9.

    Raises:
        InvalidArgument: it is no whole number from 0 on.
    """
    given = properties.get("priority")
    if type(given) is int and 0 <= given <= MAX_PRIORITY:
        return given
    if given is None:
        return 0
    try:
        number = int(given)
        right = not isinstance(given, bool) and number >= 0 and (isinstance(given, (str, bytes)) or number == given)
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right:
        raise InvalidArgument("priority", given, f"a whole number; 0 to {MAX_PRIORITY} are told apart")
    return min(number, MAX_PRIORITY)


def _seconds(expiration: object, message_ttl: float | None) -> float:
    try:
        ttl = float(expiration) / 1000  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        ttl = math.nan
    if math.isnan(ttl):
        raise InvalidArgument("expiration", expiration, "a number of milliseconds")
    ttl = min(max(ttl, 0.001), MAX_SECONDS)
    return ttl if message_ttl is None else min(ttl, message_ttl)


def _due(headers: dict[str, Any]) -> datetime | None:
    """Return when a message is due; None for at once.

    Raises:
        InvalidArgument: it is a task of Celery's whose ``eta`` is no time: its worker would drop it.
    """
    eta = headers["eta"]
    if eta is None:
        return None
    try:
        due = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta.replace("Z", "+00:00"))
        # Celery writes a time zone since protocol 2; without one it means UTC, whatever the application's is.
        due = (due if due.tzinfo else due.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        if "task" not in headers or "id" not in headers:
            # Another program's header by this name.
            return None
        raise InvalidArgument("eta", eta, "a time in ISO 8601, within the years 1 to 9999 in UTC") from error
    # Whatever has passed is due at once; the engine takes no time before this one.
    return max(due, _EPOCH)


def _with_types_marked(headers: dict[str, Any]) -> dict[str, Any]:
    """Let Kombu's own JSON write what plain JSON cannot: times, decimals, UUIDs."""
    try:
        return _marked(headers)
    except Exception as error:
        what, value = _unwritable(headers)
        raise InvalidArgument(what, type(value), f"what can be written as JSON ({error})") from error


def _marked(headers: dict[str, Any]) -> dict[str, Any]:
    text = kombu_json.dumps(headers)
    # What looks like a mark and is none could not be read.
    kombu_json.loads(text)
    marked: dict[str, Any] = json.loads(text)
    encode_headers(marked)
    return marked


def _unwritable(headers: dict[str, Any]) -> tuple[str, object]:
    """Return the name of the first property or header that cannot be written, and its value."""
    given = [(f"header {name!r}", value) for name, value in headers.items() if name != KEY]
    given += [(f"property {name!r}", value) for name, value in headers.get(KEY, {}).get("properties", {}).items()]
    for what, value in given:
        try:
            _marked({"value": value})
        except Exception:
            return what, value
    return "headers", headers


def headers_of(raw_headers: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the headers of a stored message, and what stands under `KEY`; that is empty if Kombu did not write them.

    Raises:
        DecodeError: they cannot be read.
    """
    headers = decode_headers(raw_headers)
    envelope = headers.get(KEY)
    if isinstance(envelope, dict) and envelope.get("typed") is True:
        try:
            headers = kombu_json.loads(raw_headers)
        except Exception as error:
            raise DecodeError("headers", str(error)) from error
    envelope = headers.pop(KEY, None)
    return headers, envelope if isinstance(envelope, dict) else {}


class Message(kombu.message.Message):  # type: ignore[misc]
    """A message as Kombu's consumers get it. Weak references to it tell whether anybody still wants it.

    Args:
        delivery: what was claimed.
        channel: the channel that delivers it.
        tag: by which the channel settles it.
        queue: the name of its queue.
        limit: bytes beyond which a compressed body is not expanded.

    Raises:
        DecodeError: its headers cannot be read.
    """

    def __init__(self, delivery: Delivery, channel: Any, tag: int, queue: str, limit: int = MAX_EXPANDED_BYTES) -> None:
        headers, envelope = headers_of(delivery.raw_headers)
        if isinstance(envelope.get("properties"), dict):
            properties = envelope["properties"]
            encoding = envelope.get("content_encoding")
            encoding = encoding if isinstance(encoding, str) else None
        else:
            properties = {}
            encoding = "utf-8" if _TEXTUAL.match(delivery.content_type) else "binary"
        info = properties.get("delivery_info")
        if not isinstance(info, dict) or not info:
            info = {"exchange": "", "routing_key": queue}
        # Kombu would expand it to whatever size it has.
        compression = headers.pop("compression", None)
        body, failures = _expanded(delivery.body, compression, limit)
        info["redelivered"] = delivery.attempt > 1
        info[tasks.KEY] = tasks.origin_of(queue, delivery)
        properties.update(delivery_info=info, delivery_tag=tag, priority=delivery.priority)
        super().__init__(
            body=body,
            delivery_tag=tag,
            content_type=delivery.content_type,
            content_encoding=encoding,
            delivery_info=info,
            properties=properties,
            headers=headers,
            channel=channel,
        )
        self.errors += failures
        if compression:
            self.headers["compression"] = compression


def _expanded(body: bytes, compression: object, limit: int) -> tuple[bytes, list[Any]]:
    """Return a body without its compression, or what kept us from that, in Kombu's form."""
    if not compression:
        return body, []
    try:
        return expand(body, compression, limit), []
    except DecodeError:
        return body, [sys.exc_info()]
