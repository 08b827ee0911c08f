"""The native client. What it answers is what is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bodies import key_of
from pgqrs_native import Client

from actors.options import Options
from actors.pulling import Held
from pgqrs_core.config import Config
from pgqrs_core.errors import PgqrsError

__all__ = ["Native"]


class Native:
    """Enqueues, and asks for messages."""

    errors = (PgqrsError, OSError)
    doubts = ()
    sizes = (1, 1, 3, 20)
    kinds = ("ack", "ack", "ack", "nack", "archive", "release")
    renews_itself = False

    def __init__(self, dsn: str, options: Options) -> None:
        self._client = Client(Config.load(url=dsn, query_timeout_seconds=options.timeout))
        self._options = options
        self._queue = options.meets_at

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        producer, bodies = self._client.producer, [key.encode() for key in keys]
        if len(keys) == 1:
            return [producer.enqueue(self._queue, bodies[0], priority=priority, delay=delay)]
        return producer.batch_enqueue(self._queue, bodies, priority=priority, delay=delay)

    def send_within(self, connection: Any, keys: list[str]) -> list[int]:
        """Enqueue in the caller's transaction."""
        return self._client.producer.batch_enqueue(self._queue, [key.encode() for key in keys], connection=connection)

    def receive(self, limit: int) -> list[Held]:
        read, options = self._client.consumer.read_batch, self._options
        # What others sent is not for this client to decode, nor to bury.
        messages = read(self._queue, count=limit, lock_time=options.lease, wait=options.wait, mismatch="return")
        return [Held(key_of(message._delivery.body), message.lease, message.attempt, message) for message in messages]

    def settle(self, what: str, held: list[Held], delay: float) -> list[bool]:
        consumer, messages = self._client.consumer, [item.raw for item in held]
        if what == "nack":
            return [fate != "lost" for fate in consumer.nack_batch(messages, delay=delay)]
        method: Callable[[Any], list[bool]] = {
            "ack": consumer.dequeue_batch,
            "archive": consumer.archive_batch,
            "release": consumer.release_batch,
        }[what]
        return method(messages)

    def extend(self, held: list[Held], lease: float) -> list[bool]:
        return self._client.consumer.extend_lock_batch([item.raw for item in held], lease)

    def close(self) -> None:
        self._client.close()
