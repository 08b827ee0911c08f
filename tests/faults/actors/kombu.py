"""Kombu's transport. It claims, settles and renews by itself, which is overheard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import kombu
import pgqrs_kombu
from pgqrs_kombu.compat import BatchPublishError
from pgqrs_kombu.url import masked

from actors.options import Options
from actors.pulling import Held
from pgqrs_core.errors import PgqrsError

__all__ = ["Kombu", "url_of"]


def url_of(dsn: str) -> str:
    """Return a connection string as a URL of Kombu's."""

    class Address:
        hostname = dsn

    return masked(Address(), include_password=True, mask="")


class Kombu:
    """Publishes, and has messages delivered."""

    errors = (PgqrsError, OSError, BatchPublishError)
    doubts = (BatchPublishError,)
    sizes = (1, 1, 1, 5)
    kinds = ("ack", "ack", "ack", "nack")
    renews_itself = True

    def __init__(self, dsn: str, options: Options) -> None:
        self._options = options
        self._url = url_of(dsn)
        self._queue = kombu.Queue(options.meets_at, durable=True)
        self._buffer: list[Any] = []
        self._connection: Any = None
        self._consumer: Any = None

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            if self._connection is None:
                settings = {"lease": self._options.held_for, "query_timeout": self._options.timeout}
                self._connection = kombu.Connection(self._url, transport_options=settings)
                self._connection.connect()
            yield self._connection
        except self.errors:
            # As Kombu's own `ensure` does: what was open is dropped, and the next use begins anew.
            connection, self._connection, self._consumer = self._connection, None, None
            if connection is not None:
                connection.collect()
            raise

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        """Publish; several are stored at once or not at all. There are no delays, but those of Celery's tasks."""
        with self._connected() as connection, pgqrs_kombu.batch() if len(keys) > 1 else nullcontext():
            producer = connection.Producer(serializer="raw")
            for key in keys:
                producer.publish(
                    key.encode(),
                    content_type="application/data",
                    content_encoding="binary",
                    routing_key=self._options.meets_at,
                    declare=[self._queue],
                    priority=priority,
                )
        return [0] * len(keys)

    def send_within(self, connection: Any, keys: list[str]) -> list[int]:
        """Publish in the caller's transaction."""
        with pgqrs_kombu.in_transaction(connection):
            return self.send(keys, 0, None)

    def receive(self, limit: int) -> list[Held]:
        with self._connected() as connection:
            if self._consumer is None:
                channel = connection.channel()
                channel.basic_qos(0, self._options.batch, False)
                accept, put = ["application/data"], self._buffer.append
                self._consumer = kombu.Consumer(channel, [self._queue], on_message=put, accept=accept)
                self._consumer.consume()
            with suppress(TimeoutError):
                connection.drain_events(timeout=self._options.wait)
        messages, self._buffer[:] = self._buffer[:], []
        return [Held(bytes(message.body).decode(), None, 0, message) for message in messages]

    def settle(self, what: str, held: list[Held], delay: float) -> None:
        for item in held:
            if what == "nack":
                item.raw.requeue()
            else:
                item.raw.ack()

    def extend(self, held: list[Held], lease: float) -> list[bool]:
        # It renews by itself.
        return []

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()
