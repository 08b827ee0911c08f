"""The asynchronous client's part that puts messages in. Its twin is :mod:`pgqrs_native.producer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

from pgqrs_core.engine import AsyncEngine
from pgqrs_core.events import EnqueueBatch
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.operations.enqueue import check_draft
from pgqrs_core.operations.traffic import outgoing, written
from pgqrs_native.coalescing import Coalescer
from pgqrs_native.shared import check_batch
from pgqrs_native.traffic import ADAPTER, compose

__all__ = ["AsyncProducer"]


class _Coalescers:
    """What gathers the messages of each queue. A forked child begins anew: the parent's tasks write what they gathered."""

    def __init__(self, write: Callable[..., Any]) -> None:
        self._write = write
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        self._by_queue: dict[str, Coalescer] = {}

    def of(self, queue: str) -> Coalescer:
        """Return the one of a queue."""
        coalescer = self._by_queue.get(queue)
        if coalescer is None:
            coalescer = self._by_queue[queue] = Coalescer(partial(self._write, queue))
        return coalescer


class AsyncProducer:
    """Puts messages into queues.

    Every method takes ``connection``: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session``, or a
    Django connection. The messages then belong to its transaction, and are delivered if and when it commits.

    Without it, what concurrent tasks enqueue to one queue is written together.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._coalescers = _Coalescers(self._write)

    async def enqueue(
        self,
        queue: str,
        payload: object,
        *,
        priority: int = 0,
        delay: float | None = None,
        at: datetime | None = None,
        ttl: float | None = None,
        headers: dict[str, Any] | None = None,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> int:
        """Store a message and return its id.

        Args:
            queue: the queue's name.
            payload: bytes, JSON values, a dataclass, a ``msgspec.Struct``, or whatever a serializer takes.
            priority: 0 to 9; 9 is delivered first.
            delay: seconds until it may be delivered.
            at: the time from which it may be delivered, with a time zone, instead of a delay.
            ttl: seconds after which it is no longer delivered.
            headers: what travels beside the payload; JSON values.
            content_type: the serializer to use; by default chosen by the payload.
            idempotency_key: what the message is known by, 1 to 255 characters. While the queue knows it (a day unless
                its ``idempotency_seconds`` differ), to enqueue under it again stores nothing, whatever the payload, and
                returns the id of the first, also when that was consumed long ago. This makes a retry safe.
            connection: store it in this connection's transaction. Consumers that wait are woken after the commit where
                SQLAlchemy or Django tell of it, and find it within about a second after that of a psycopg connection.

        Raises:
            QueueNotFound, InvalidArgument, BodyTooLarge, EncodeError: nothing was stored.
            Unavailable: the server could not be reached; nothing was stored.
            EnqueueUnknown: the connection broke during the commit; with a key, enqueue again.
        """
        drafts = compose(
            self._engine.plugins,
            queue,
            (payload,),
            priority=priority,
            delay=delay,
            at=at,
            ttl=ttl,
            headers=headers,
            content_type=content_type,
            idempotency_keys=None if idempotency_key is None else (idempotency_key,),
        )
        return (await self._send(queue, drafts, connection))[0]

    async def enqueue_delayed(self, queue: str, payload: object, delay: float, **options: Any) -> int:
        """Store a message that may be delivered after ``delay`` seconds; options as for `enqueue`."""
        return await self.enqueue(queue, payload, delay=delay, **options)

    async def batch_enqueue(
        self,
        queue: str,
        payloads: Iterable[object],
        *,
        priority: int = 0,
        delay: float | None = None,
        at: datetime | None = None,
        ttl: float | None = None,
        headers: dict[str, Any] | None = None,
        content_type: str | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        connection: object = None,
    ) -> list[int]:
        """Store many messages, all or none, and return their ids in order.

        Options as for `enqueue`; ``idempotency_keys`` holds one for each payload, or None for one that has none.
        """
        drafts = compose(
            self._engine.plugins,
            queue,
            payloads,
            priority=priority,
            delay=delay,
            at=at,
            ttl=ttl,
            headers=headers,
            content_type=content_type,
            idempotency_keys=idempotency_keys,
        )
        check_batch(self._engine.config, len(drafts))
        return await self._send(queue, drafts, connection)

    async def _send(self, queue: str, drafts: list[Any], connection: object) -> list[int]:
        engine = self._engine
        if connection is None:
            known = await engine.queue(queue)
            for draft in drafts:
                check_draft(known, draft)
            coalescer = self._coalescers.of(queue)
            # Others' messages may go with these: each caller is surrounded by himself.
            hooks = engine.plugins.hooks
            if not hooks.surrounds_enqueue:
                return await coalescer.send(drafts)
            batch = EnqueueBatch(queue, ADAPTER, drafts)
            with hooks.around_enqueue(batch):
                batch.ids = await coalescer.send(drafts)
            return list(batch.ids)
        return await engine.run_in(
            connection,
            outgoing,
            await engine.queue(queue),
            drafts,
            plugins=engine.plugins,
            adapter=ADAPTER,
            doorbell=None,
        )

    async def _write(self, queue: str, drafts: list[Any]) -> list[int]:
        engine = self._engine
        return await engine.on(queue, written, drafts, engine.plugins, ADAPTER, engine.doorbell)
