"""Which errors mean what to Kombu and Celery.

========================  ====================================================================================
connection errors         the server is away, or does not hold what we need: Celery's worker reconnects
recoverable ones          of these, those that a later try may not see: publishing retries
channel errors            a request was refused: the caller's to know; a worker goes on
========================  ====================================================================================

psycopg's own classes are not among them: every timeout of a lock is an ``OperationalError`` of psycopg's, and a worker
that reconnects for one drops what it has prefetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from amqp.exceptions import (
    ChannelError,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
    error_for_code,
)
from amqp.exceptions import ConnectionError as AMQPConnectionError
from kombu.exceptions import OperationalError

from pgqrs_core.errors import (
    BodyTooLarge,
    ConfigurationError,
    InvalidArgument,
    PgqrsError,
    QueueNotFound,
    SchemaError,
    Unavailable,
)

__all__ = [
    "CHANNEL_ERRORS",
    "CONNECTION_ERRORS",
    "RECOVERABLE_CONNECTION_ERRORS",
    "QueueGone",
    "as_operational",
    "not_equivalent",
    "not_found",
    "no_route",
    "translated",
    "unknown_type",
]

_QUEUE_DECLARE: Final = (50, 10)
_EXCHANGE_DECLARE: Final = (40, 10)
_BASIC_PUBLISH: Final = (60, 40)


class QueueGone(RecoverableConnectionError):  # type: ignore[misc]
    """An ephemeral queue that is being consumed does not exist any more: connect and declare again."""


CONNECTION_ERRORS: Final = (Unavailable, SchemaError, AMQPConnectionError)
RECOVERABLE_CONNECTION_ERRORS: Final = (Unavailable, RecoverableConnectionError)
CHANNEL_ERRORS: Final = (ChannelError, PgqrsError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise AMQP's errors for requests that a broker of AMQP would refuse too, with ours as their cause."""
    try:
        yield
    except QueueNotFound as error:
        raise NotFound(str(error), _QUEUE_DECLARE) from error
    except BodyTooLarge as error:
        raise PreconditionFailed(str(error), _BASIC_PUBLISH) from error
    except (InvalidArgument, ConfigurationError) as error:
        raise PreconditionFailed(str(error)) from error


@contextmanager
def as_operational() -> Iterator[None]:
    """Raise Kombu's error where the server is away, as Kombu does around what it retries, with ours as its cause."""
    try:
        yield
    except RECOVERABLE_CONNECTION_ERRORS as error:
        raise OperationalError(str(error)) from error


def not_found(kind: str, name: str) -> NotFound:
    """Return the error for an exchange or a queue that does not exist."""
    return NotFound(f"NOT_FOUND - no {kind} {name!r}", _QUEUE_DECLARE if kind == "queue" else _EXCHANGE_DECLARE)


def not_equivalent(kind: str, name: str, reason: str) -> PreconditionFailed:
    """Return the error for a declaration that contradicts what is there."""
    method = _QUEUE_DECLARE if kind == "queue" else _EXCHANGE_DECLARE
    return PreconditionFailed(f"PRECONDITION_FAILED - {kind} {name!r} {reason}", method)


def unknown_type(exchange: str, kind: str) -> ChannelError:
    """Return the error for an exchange of a type that is not supported."""
    message = f"exchange {exchange!r}: type {kind!r} is unknown; there are direct, topic and fanout"
    return ChannelError(message, _EXCHANGE_DECLARE, "Exchange.declare", 503)


def no_route(exchange: str, routing_key: str) -> ChannelError:
    """Return what a mandatory message that reached no queue comes back with."""
    reason = f"NO_ROUTE - no queue for exchange {exchange!r} and routing key {routing_key!r}"
    return error_for_code(312, reason, _BASIC_PUBLISH, ChannelError)
