"""The error of a database that is away, as Celery's users know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.exceptions import OperationalError

from pgqrs_core.errors import Unavailable

__all__ = ["BackendUnavailable", "translated"]


class BackendUnavailable(OperationalError, Unavailable):
    """The server is away: the error that Celery raises for its broker, and ours. The cause says more."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise `BackendUnavailable` where the server is away: a chord needs broker and backend, and raises one error."""
    try:
        yield
    except OperationalError:
        raise
    except Unavailable as error:
        raise BackendUnavailable(str(error), target=error.target, in_flight=error.in_flight) from error
