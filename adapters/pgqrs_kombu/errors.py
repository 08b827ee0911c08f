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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Final, TypeVar

from amqp.exceptions import (
    ChannelError,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
    error_for_code,
)
from amqp.exceptions import ConnectionError as AMQPConnectionError
from kombu.exceptions import OperationalError
from typing_extensions import ParamSpec

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
    "BrokerUnavailable",
    "QueueGone",
    "not_equivalent",
    "not_found",
    "no_route",
    "translated",
    "translating",
    "unknown_type",
]

T = TypeVar("T")
P = ParamSpec("P")

_QUEUE_DECLARE: Final = (50, 10)
_EXCHANGE_DECLARE: Final = (40, 10)
_BASIC_PUBLISH: Final = (60, 40)


class QueueGone(RecoverableConnectionError):  # type: ignore[misc]
    """An ephemeral queue that is being consumed does not exist any more: connect and declare again."""


class BrokerUnavailable(OperationalError, Unavailable):  # type: ignore[misc]
    """The server is away: Kombu's error for it, and ours. The cause says more."""


CONNECTION_ERRORS: Final = (Unavailable, SchemaError, AMQPConnectionError)
RECOVERABLE_CONNECTION_ERRORS: Final = (Unavailable, RecoverableConnectionError)
CHANNEL_ERRORS: Final = (ChannelError, PgqrsError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise AMQP's errors for requests that a broker of AMQP would refuse too, and Kombu's where the server is away.

    Ours are their causes. So whatever a program calls, and whether or not Kombu retries it, it can catch the same errors.
    """
    try:
        yield
    except OperationalError:
        raise
    except Unavailable as error:
        raise BrokerUnavailable(str(error), target=error.target, in_flight=error.in_flight) from error
    except QueueNotFound as error:
        raise NotFound(str(error), _QUEUE_DECLARE) from error
    except BodyTooLarge as error:
        raise PreconditionFailed(str(error), _BASIC_PUBLISH) from error
    except (InvalidArgument, ConfigurationError) as error:
        raise PreconditionFailed(str(error)) from error


def translating(method: Callable[P, T]) -> Callable[P, T]:
    """Return a method that raises what `translated` makes of its errors."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with translated():
            return method(*args, **kwargs)

    return call


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
