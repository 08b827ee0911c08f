"""Which errors mean what to Dramatiq, which knows how to go on after its own only.

===========================  ==================================================================================
``ConnectionFailed``         the server cannot be reached, its address is wrong, or it lacks our tables
``ConnectionClosed``         the connection broke; what was on its way may or may not have been done
``QueueNotFound``            the queue is neither declared here nor known to the database
``Refused``                  the message cannot be stored: its body is too large, an option is out of range
``BrokerError``              anything else that the database or a plugin objects to
===========================  ==================================================================================

The error of pgqrs, with its facts as attributes, is the cause of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dramatiq.errors import BrokerError, ConnectionClosed, ConnectionFailed, QueueNotFound

from pgqrs_core import errors

__all__ = ["Refused", "translated", "translation"]


class Refused(BrokerError, ValueError):
    """A message that cannot be stored as it is. Nothing was enqueued."""


def translation(error: errors.PgqrsError) -> BrokerError:
    """Return Dramatiq's error for one of ours."""
    text = str(error)
    if isinstance(error, errors.Unavailable):
        return ConnectionClosed(text) if error.in_flight else ConnectionFailed(text)
    if isinstance(error, (errors.SchemaError, errors.ConfigurationError)):
        return ConnectionFailed(text)
    if isinstance(error, errors.QueueNotFound):
        near = f"; did you mean {' or '.join(map(repr, error.similar))}?" if error.similar else ""
        return QueueNotFound(
            f"queue {error.name!r} is not declared on this broker, and does not exist{near or '.'} "
            "Declare it with broker.declare_queue(), or start its worker first."
        )
    if isinstance(error, errors.InvalidArgument):
        return Refused(text)
    return BrokerError(text)


@contextmanager
def translated() -> Iterator[None]:
    """Raise Dramatiq's errors in place of ours."""
    try:
        yield
    except errors.PgqrsError as error:
        raise translation(error) from error
