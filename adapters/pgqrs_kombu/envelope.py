"""A Kombu message as a row, and a row as a Kombu message.

The body is stored as the bytes it is, its content type in its column, Kombu's headers as the headers. Kombu's properties
and the content encoding stand beside the headers under one key of their own. So any tool of pgqrs shows a Celery task
readably, and a message that was enqueued by any other means of pgqrs can be consumed by Kombu.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import datetime, timezone
from typing import Any, Final

import kombu.message
import msgspec
from kombu.utils import json as kombu_json

from pgqrs_core.errors import DecodeError, InvalidArgument
from pgqrs_core.events import Draft
from pgqrs_core.messages import MAX_PRIORITY, MAX_SECONDS, Delivery, encode_headers
from pgqrs_kombu import tasks
from pgqrs_kombu.compression import expand

__all__ = ["KEY", "Message", "compose", "exchange_of", "message_of"]

#: The one header that is not the publisher's.
KEY: Final = "_kombu"
#: The delivery mode of AMQP that lets a crash of the broker lose a message.
_TRANSIENT: Final = 1
#: How Kombu marks values that JSON does not have.
_TYPED: Final = "__type__"
_TEXTUAL: Final = re.compile(r"text/|application/(.*\+)?(json|xml|x-yaml|yaml)\b")

_decode = msgspec.json.decode


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
        InvalidArgument: the headers or properties hold what cannot be stored, or the expiration is no number.
    """
    body = message["body"]
    properties = message["properties"]
    headers = message["headers"]
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    stored = {**headers, KEY: {"properties": properties, "content_encoding": message["content-encoding"]}}
    try:
        encode_headers(stored)
    except InvalidArgument:
        stored = _with_types_marked(stored)
    expiration = properties.get("expiration")
    ttl = message_ttl if expiration is None else _seconds(expiration, message_ttl)
    return Draft(
        queue,
        body.encode() if isinstance(body, str) else bytes(body),
        message["content-type"] or "",
        stored,
        priority_of(properties),
        None,
        _due(headers.get("eta")) if hold_eta and "eta" in headers else None,
        ttl,
        durable=properties.get("delivery_mode") != _TRANSIENT,
    )


def message_of(delivery: Delivery, queue: str) -> dict[str, Any]:
    """Return a stored message in the form in which Kombu publishes one."""
    headers = _headers(delivery.raw_headers)
    envelope = headers.pop(KEY, None)
    known = isinstance(envelope, dict) and isinstance(envelope.get("properties"), dict)
    encoding = "utf-8" if _TEXTUAL.match(delivery.content_type) else "binary"
    return {
        "body": delivery.body,
        "content-type": delivery.content_type,
        "content-encoding": envelope.get("content_encoding") if known and envelope else encoding,
        "headers": headers,
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": queue},
            **(envelope["properties"] if known and envelope else {}),
            "priority": delivery.priority,
        },
    }


def exchange_of(raw_headers: str | None) -> str:
    """Return the exchange to which a stored message was published; empty if it was sent to its queue."""
    try:
        exchange = _headers(raw_headers)[KEY]["properties"]["delivery_info"]["exchange"]
    except (KeyError, TypeError):
        return ""
    return exchange if isinstance(exchange, str) else ""


def priority_of(properties: dict[str, Any]) -> int:
    """Return the priority, brought within 0 to 9."""
    try:
        return min(max(int(properties.get("priority") or 0), 0), MAX_PRIORITY)
    except (TypeError, ValueError, OverflowError):
        return 0


def _seconds(expiration: object, message_ttl: float | None) -> float:
    try:
        ttl = float(expiration) / 1000  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        ttl = math.nan
    if math.isnan(ttl):
        raise InvalidArgument("expiration", expiration, "a number of milliseconds")
    ttl = min(max(ttl, 0.001), MAX_SECONDS)
    return ttl if message_ttl is None else min(ttl, message_ttl)


def _due(eta: object) -> datetime | None:
    """Return when a message is due; None where the publisher wrote something that only his worker understands."""
    if not isinstance(eta, (str, datetime)):
        return None
    try:
        due = eta if isinstance(eta, datetime) else datetime.fromisoformat(eta.replace("Z", "+00:00"))
        # Celery writes a time zone since protocol 2; without one it means UTC.
        return (due if due.tzinfo else due.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def _with_types_marked(headers: dict[str, Any]) -> dict[str, Any]:
    """Let Kombu's own JSON write what plain JSON cannot: times, decimals, UUIDs."""
    try:
        marked: dict[str, Any] = msgspec.json.decode(kombu_json.dumps(headers))
    except Exception as error:
        what, value = _unwritable(headers)
        raise InvalidArgument(what, type(value), f"what can be written as JSON ({error})") from error
    return marked


def _unwritable(headers: dict[str, Any]) -> tuple[str, object]:
    """Return the name of the first property or header that cannot be written, and its value."""
    given = [(f"header {name!r}", value) for name, value in headers.items() if name != KEY]
    given += [(f"property {name!r}", value) for name, value in headers.get(KEY, {}).get("properties", {}).items()]
    for what, value in given:
        try:
            kombu_json.dumps({"value": value})
        except Exception:
            return what, value
    return "headers", headers


class Message(kombu.message.Message):  # type: ignore[misc]
    """A message as Kombu's consumers get it. Weak references to it tell whether anybody still wants it."""

    def __init__(self, delivery: Delivery, channel: Any, tag: int, queue: str) -> None:
        headers = _headers(delivery.raw_headers)
        envelope = headers.pop(KEY, None)
        if isinstance(envelope, dict) and isinstance(envelope.get("properties"), dict):
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
        body, failures = _expanded(delivery.body, compression)
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


def _expanded(body: bytes, compression: object) -> tuple[bytes, list[Any]]:
    """Return a body without its compression, or what kept us from that, in Kombu's form."""
    if not compression:
        return body, []
    try:
        return expand(body, compression), []
    except DecodeError:
        return body, [sys.exc_info()]


def _headers(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    # Whoever wrote it by hand may have written anything.
    try:
        headers = kombu_json.loads(text) if _TYPED in text else _decode(text)
    except Exception:
        return {}
    return headers if isinstance(headers, dict) else {}
