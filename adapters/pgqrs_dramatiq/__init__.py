"""pgqrs for Dramatiq: broker, results and rate limits on one PostgreSQL database."""

from __future__ import annotations

from pgqrs_dramatiq.broker import PgqrsBroker

__all__ = ["PgqrsBroker"]
