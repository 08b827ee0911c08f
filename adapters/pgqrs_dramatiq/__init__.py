"""pgqrs for Dramatiq: broker, results and rate limits on one PostgreSQL database."""

from __future__ import annotations

from pgqrs_dramatiq.broker import PgqrsBroker
from pgqrs_dramatiq.errors import Refused
from pgqrs_dramatiq.inspection import MessageFailed
from pgqrs_dramatiq.limits import PgqrsRateLimiterBackend
from pgqrs_dramatiq.results import PgqrsResultBackend

__all__ = ["MessageFailed", "PgqrsBroker", "PgqrsRateLimiterBackend", "PgqrsResultBackend", "Refused"]
