"""The backend of rate limiters and barriers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dramatiq.rate_limits import RateLimiterBackend

from pgqrs_core.config import Config
from pgqrs_core.secret import hidden
from pgqrs_dramatiq import operations
from pgqrs_dramatiq.database import MAX_CONNECTIONS, database_of
from pgqrs_dramatiq.errors import translated
from pgqrs_dramatiq.waiting import EVENTS, wait_for

__all__ = ["PgqrsRateLimiterBackend"]


class PgqrsRateLimiterBackend(RateLimiterBackend):
    """Counts for Dramatiq's rate limiters, barriers and group callbacks, exactly, whoever comes at the same time.

    A counter that has expired counts as absent. Times to live are in milliseconds, by the clock of the server.

    Args:
        url: the database, as for `PgqrsBroker`. With the same address, schema and ``max_connections`` as the broker it
            uses the broker's connections.
        schema: the schema that holds the tables, ``pgqrs`` by default.
        max_connections: the most connections of this process, at least 3.
        create_schema: install pgqrs at the first use if nothing of it is in the schema.

    Raises:
        ConnectionFailed: the address is none.
    """

    def __init__(
        self,
        url: str | Config | None = None,
        *,
        schema: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        create_schema: bool = True,
    ) -> None:
        url = hidden(url)
        self._database = database_of(url, schema=schema, max_connections=max_connections, create_schema=create_schema)

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Set a counter that is absent; tell whether it was."""
        with translated():
            return self._database.run(operations.add_limit, key, value, ttl / 1000)

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """Add ``amount`` and begin the time to live anew; False, and nothing changed, beyond ``maximum``."""
        with translated():
            return self._database.run(operations.change_limit, key, amount, ttl / 1000, maximum=maximum)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """Subtract ``amount`` and begin the time to live anew; False, and nothing changed, below ``minimum``."""
        with translated():
            return self._database.run(operations.change_limit, key, -amount, ttl / 1000, minimum=minimum)

    def incr_and_sum(self, key: str, keys: Callable[[], Sequence[str]], amount: int, maximum: int, ttl: int) -> bool:
        """Add ``amount`` unless the counter, or the sum of all ``keys()`` with it, would exceed ``maximum``."""
        database = self._database
        with translated():
            schema = database.config.database.schema
            return database.transact(operations.change_limit_of_sum, key, keys, amount, maximum, ttl / 1000, schema)

    def wait(self, key: str, timeout: int | None) -> bool:
        """Wait for an event, or find that it has happened.

        Args:
            key: what it is published as.
            timeout: milliseconds to wait at most, any number of them; None for ever.

        Returns:
            Whether it happened in time.
        """
        with translated():
            return wait_for(self._database, EVENTS, key, None if timeout is None else timeout / 1000) is not None

    def wait_notify(self, key: str, ttl: int) -> None:
        """Publish an event. Whoever waits is woken; who comes within ``ttl`` milliseconds finds it."""
        with translated():
            channel = self._database.engine.doorbell.channel
            self._database.run(operations.publish_event, key, ttl / 1000, channel)

    def close(self) -> None:
        """Close the connections, unless a broker needs them. They open again at the next use."""
        self._database.leave(self)
