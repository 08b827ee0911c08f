"""The result backend: what actors return, kept in the database for a while."""

from __future__ import annotations

import time
from typing import Any, Final

from dramatiq.encoder import Encoder
from dramatiq.message import Message
from dramatiq.results import Missing, ResultBackend, ResultMissing, ResultTimeout
from dramatiq.results.backend import DEFAULT_TIMEOUT

from pgqrs_core.backoff import Retries
from pgqrs_core.config import Config
from pgqrs_core.errors import ServerError
from pgqrs_core.secret import hidden
from pgqrs_core.sql import Query
from pgqrs_dramatiq import operations
from pgqrs_dramatiq.database import MAX_CONNECTIONS, database_of
from pgqrs_dramatiq.errors import translated
from pgqrs_dramatiq.waiting import RESULTS, wait_for

__all__ = ["PgqrsResultBackend"]

#: Seconds for which a result is kept that the server refuses for a reason that passes: a lock, a full disk.
_REFUSED_SECONDS: Final = 30.0


class PgqrsResultBackend(ResultBackend):
    """Stores results for Dramatiq's ``Results`` middleware.

    Args:
        url: the database, as for `PgqrsBroker`. With the same address, schema and ``max_connections`` as the broker it
            uses the broker's connections.
        schema: the schema that holds the tables, ``pgqrs`` by default.
        max_connections: the most connections of this process, at least 3.
        create_schema: install pgqrs at the first use if nothing of it is in the schema.
        namespace: what the keys begin with, before they are hashed.
        encoder: how results are encoded; Dramatiq's global encoder by default.
        **options: what else Dramatiq's `ResultBackend` takes.

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
        namespace: str = "dramatiq-results",
        encoder: Encoder | None = None,
        **options: Any,
    ) -> None:
        super().__init__(namespace=namespace, encoder=encoder, **options)
        url = hidden(url)
        self._database = database_of(url, schema=schema, max_connections=max_connections, create_schema=create_schema)

    def get_result(self, message: Message[Any], *, block: bool = False, timeout: int | None = None) -> Any:
        """Return the result of a message; None is one.

        Args:
            message: the message.
            block: wait for it: it is woken when the result is stored, and shares one connection with all who wait.
            timeout: milliseconds to wait at most, 10,000 by default; any number counts, 0 too.

        Raises:
            ResultMissing: without ``block``, there is none.
            ResultTimeout: there is none in time.
            ResultFailure: the actor raised, and the message is dead.
            BrokerConnectionError: the server cannot be reached.
        """
        key = self.build_message_key(message)
        found = self._get(key)
        if found is Missing and block:
            seconds = (DEFAULT_TIMEOUT if timeout is None else timeout) / 1000
            with translated():
                data = wait_for(self._database, RESULTS, key, seconds) if seconds > 0 else None
            if data is None:
                raise ResultTimeout(message)
            found = self.encoder.decode(data)
        if found is Missing:
            raise ResultMissing(message)
        return self.unwrap_result(found)

    def close(self) -> None:
        """Close the connections, unless a broker needs them. They open again at the next use."""
        self._database.leave(self)

    def _get(self, message_key: str) -> Any:
        read: Query = RESULTS.read
        with translated():
            rows = self._database.run(operations.read_keys, [message_key], read)
        return self.encoder.decode(rows[0][1]) if rows else Missing

    def _store(self, message_key: str, result: Any, ttl: int) -> None:
        data = self.encoder.encode(result)
        with translated():
            channel = self._database.engine.doorbell.channel
            tries = Retries(_REFUSED_SECONDS)
            while True:
                try:
                    self._database.run(operations.store_result, message_key, data, ttl / 1000, channel)
                except ServerError as error:
                    # Here, and not by a deputy: others need it meanwhile.
                    time.sleep(tries.pause_after(error, passes=error.retryable))
                else:
                    return
