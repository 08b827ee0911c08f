"""The blocking client: admin, producer and consumer. Its asynchronous twin is :mod:`pgqrs_native.async_client`.

Methods here are thin: what they do is decided by operations, which both clients run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, TypeVar, overload

from typing_extensions import Self

from pgqrs_core.config import Config
from pgqrs_core.engine import Engine
from pgqrs_core.errors import LeaseLost
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.messages import ArchivedMessage, DeadMessage, Metrics, Queue, Snapshot
from pgqrs_core.operations import archives, dead, maintenance, metrics, queues, schema, settle
from pgqrs_core.operations.maintenance import Housekeeping
from pgqrs_core.operations.settle import Fate
from pgqrs_core.operations.traffic import outgoing
from pgqrs_core.plugins import Plugins
from pgqrs_native.message import Message
from pgqrs_native.shared import (
    MarksShelf,
    by_queue,
    check_batch,
    check_errors,
    check_read,
    marker,
    queue_options,
    scatter,
)
from pgqrs_native.traffic import ADAPTER, Mismatch, compose, failing, reading, settling

__all__ = ["Admin", "Client", "Consumer", "Producer"]

T = TypeVar("T")


class Client:
    """A connection to the queues of one database schema.

    Args:
        config: a URL (``postgresql://user:password@host/database``), a `Config`, or None to read ``DATABASE_URL``,
            ``PGQRS_*`` and ``pgqrs.yaml``.
        plugins: the plugins to use; by default those that are installed.

    Thread-safe; connects at the first use; use it as a context manager, or call `close`.
    """

    def __init__(self, config: str | Config | None = None, *, plugins: Plugins | None = None) -> None:
        self.engine = Engine(config, plugins=plugins)
        self.keeper = LeaseKeeper(self.engine)
        #: Queues: creating, changing, watching and removing them.
        self.admin = Admin(self.engine)
        #: Putting messages in.
        self.producer = Producer(self.engine)
        #: Taking messages out.
        self.consumer = Consumer(self.engine, self.keeper)

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self.engine.config

    def close(self) -> None:
        """Close all connections. Messages that are still leased return when their leases end."""
        self.keeper.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Admin:
    """The schema, the queues, their figures, dead letters and archives."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def install(self) -> list[str]:
        """Create or upgrade the tables; return the steps that were taken, none when all was there."""
        return self._engine.transact(schema.install_all, self._engine.schema, self._engine.plugins)

    def uninstall(self) -> list[str]:
        """Drop all queues with their messages, and all tables; return the names of the queues."""
        return self._engine.transact(schema.uninstall, self._engine.schema)

    def schema_version(self) -> int:
        """Return the version of the installed tables, 0 for none."""
        return self._engine.run(schema.version, self._engine.schema)

    def create_queue(self, name: str, **options: Any) -> Queue:
        """Create a queue; see `QueueOptions` for what can be set. Harmless to repeat with the same options.

        Raises:
            InvalidQueueName, InvalidArgument: nothing was changed.
            QueueExists: it exists with other options.
        """
        return self._engine.transact(
            self._engine.checked, queues.create_queue, name, queue_options(self._engine.config, options)
        )

    def alter_queue(self, name: str, **changes: Any) -> Queue:
        """Change some options of a queue. Running clients follow within seconds."""
        self._engine.forget(name)
        return self._engine.transact(self._engine.checked, queues.alter_queue, name, changes)

    def list_queues(self) -> list[Queue]:
        """Return all queues, by name."""
        return self._engine.run(self._engine.checked, queues.list_queues)

    def delete_queue(self, name: str) -> None:
        """Drop a queue with everything in it, archive and dead letters included."""
        self._engine.transact(self._engine.checked, queues.delete_queue, name)
        self._engine.forget(name)

    def purge_queue(self, name: str) -> int:
        """Remove the ready and delayed messages; return how many. Those held by consumers and the dead stay."""
        return self._engine.on(name, queues.purge_queue)

    def pause_queue(self, name: str) -> None:
        """Let nothing be claimed from a queue until `resume_queue`."""
        self._engine.run(self._engine.checked, queues.pause_queue, name)

    def resume_queue(self, name: str) -> None:
        """End a pause."""
        self._engine.run(self._engine.checked, queues.resume_queue, name)

    def queue_metrics(self, name: str) -> Metrics:
        """Return the figures of one queue. Cheap, whatever the backlog; large counts are estimates."""
        self._engine.forget(name)
        return self._engine.run(metrics.measure, [self._engine.queue(name)])[0]

    def all_queues_metrics(self) -> list[Metrics]:
        """Return the figures of all queues, by name."""
        return self._engine.run(metrics.measure, self.list_queues())

    def peek(self, name: str, count: int = 10) -> list[Snapshot]:
        """Return the next messages of a queue without claiming them, those in flight included."""
        return self._engine.on(name, queues.peek, count)

    def list_dead(self, name: str, limit: int = 50, before: datetime | None = None) -> list[DeadMessage]:
        """Return dead messages, the latest first; ``before`` (a ``died_at``) continues a list."""
        return self._engine.on(name, dead.list_dead, limit, before)

    def show_dead(self, name: str, message_id: int) -> DeadMessage | None:
        """Return one dead message, or None."""
        return self._engine.on(name, dead.show_dead, message_id)

    def replay_dead(self, name: str, ids: Sequence[int] | None = None) -> int:
        """Put dead messages back into the queue as if new, all of them when ``ids`` is None; return how many."""
        return self._engine.on(name, dead.replay_dead, ids, self._engine.doorbell)

    def purge_dead(self, name: str, ids: Sequence[int] | None = None) -> int:
        """Remove dead messages for good, all of them when ``ids`` is None; return how many."""
        return self._engine.on(name, dead.purge_dead, ids)

    def list_archive(self, name: str, limit: int = 50, before: int | None = None) -> list[ArchivedMessage]:
        """Return archived messages, the newest id first; ``before`` (an id) continues a list."""
        return self._engine.on(name, archives.list_archive, limit, before)

    def replay_archive(self, name: str, ids: Sequence[int]) -> int:
        """Move archived messages back into the queue, with new ids; return how many."""
        return self._engine.on(name, archives.replay_archive, ids, self._engine.doorbell)

    def prune_archive(self, name: str, older_than: float) -> int:
        """Remove what was archived more than ``older_than`` seconds ago; return how many."""
        return self._engine.on(name, archives.prune_archive, older_than)

    def maintain(self) -> Housekeeping:
        """Do the housekeeping of all queues once, now: expiry, retention, vacuum. Workers do it by themselves."""
        return self._engine.run(self._engine.checked, maintenance.maintain, self._engine.schema)


class Producer:
    """Puts messages into queues.

    Every method takes ``connection``: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session``, or a
    Django connection. The messages then belong to its transaction, and are delivered if and when it commits.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enqueue(
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
            connection: store it in this connection's transaction.

        Raises:
            QueueNotFound, InvalidArgument, BodyTooLarge, EncodeError: nothing was stored.
            Unavailable: the server could not be reached; nothing was stored.
            EnqueueUnknown: the connection broke during the commit.
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
        )
        return self._send(queue, drafts, connection)[0]

    def enqueue_delayed(self, queue: str, payload: object, delay: float, **options: Any) -> int:
        """Store a message that may be delivered after ``delay`` seconds; options as for `enqueue`."""
        return self.enqueue(queue, payload, delay=delay, **options)

    def batch_enqueue(
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
        connection: object = None,
    ) -> list[int]:
        """Store many messages, all or none, and return their ids in order. Options as for `enqueue`."""
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
        )
        check_batch(self._engine.config, len(drafts))
        return self._send(queue, drafts, connection)

    def _send(self, queue: str, drafts: list[Any], connection: object) -> list[int]:
        engine = self._engine
        if connection is None:
            return engine.on(queue, outgoing, drafts, plugins=engine.plugins, adapter=ADAPTER, doorbell=engine.doorbell)
        return engine.run_in(
            connection,
            outgoing,
            engine.queue(queue),
            drafts,
            plugins=engine.plugins,
            adapter=ADAPTER,
            doorbell=None,
        )


class Consumer:
    """Takes messages out of queues and settles them.

    Settling is fenced: it only takes effect while the lease that came with the message still holds. Single methods
    raise `LeaseLost` otherwise; batch methods answer per message and do the others.
    """

    def __init__(self, engine: Engine, keeper: LeaseKeeper) -> None:
        self._engine = engine
        self._keeper = keeper
        self._marks = MarksShelf()

    @overload
    def read(
        self,
        queue: str,
        type: type[T],
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> Message[T] | None: ...
    @overload
    def read(
        self,
        queue: str,
        type: Any = ...,
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> Message[Any] | None: ...

    def read(
        self,
        queue: str,
        type: Any = Any,
        *,
        lock_time: float | None = None,
        wait: float = 0.0,
        mismatch: Mismatch = "bury",
    ) -> Message[Any] | None:
        """Claim one message, or return None. See `read_batch`."""
        found = self.read_batch(queue, type, count=1, lock_time=lock_time, wait=wait, mismatch=mismatch)
        return found[0] if found else None

    @overload
    def read_batch(
        self,
        queue: str,
        type: type[T],
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> list[Message[T]]: ...
    @overload
    def read_batch(
        self,
        queue: str,
        type: Any = ...,
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> list[Message[Any]]: ...

    def read_batch(
        self,
        queue: str,
        type: Any = Any,
        *,
        count: int = 10,
        lock_time: float | None = None,
        wait: float = 0.0,
        mismatch: Mismatch = "bury",
    ) -> list[Message[Any]]:
        """Claim up to ``count`` messages.

        Args:
            queue: the queue's name.
            type: what payloads are decoded as: a dataclass, ``msgspec.Struct``, TypedDict, or anything.
            count: 1 to ``max_batch_size``.
            lock_time: for how many seconds they are hidden from others (0.1 to 43,200); the queue's lease by default.
            wait: for how many seconds to wait when there are none (0 to 86,400).
            mismatch: what to do with a payload that cannot be decoded or does not fit: ``"bury"`` dead-letters the
                message with the reason; ``"return"`` returns it with its ``error`` set.

        Raises:
            QueueNotFound, InvalidArgument, Unavailable.
        """
        engine = self._engine
        check_read(engine.config, type, count=count, lock_time=lock_time, wait=wait, mismatch=mismatch)
        number = engine.queue(queue).id
        marks = self._marks.take(number)
        try:
            return engine.on(
                queue,
                reading,
                marks,
                type,
                count=count,
                lock_time=lock_time,
                wait=float(wait),
                mismatch=mismatch,
                plugins=engine.plugins,
            )
        finally:
            self._marks.give(number, marks)

    def dequeue(self, message: Message[Any], *, connection: object = None) -> None:
        """Remove a handled message; with ``connection``, in its transaction.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.dequeue_batch([message], connection=connection)[0]:
            raise LeaseLost(message.queue, message.id)

    def dequeue_batch(self, messages: Sequence[Message[Any]], *, connection: object = None) -> list[bool]:
        """Remove handled messages; False for those whose lease was lost."""
        return self._settle("ack", messages, connection)

    def archive(self, message: Message[Any], *, connection: object = None) -> None:
        """Move a handled message to the archive.

        Raises:
            LeaseLost: it may be somebody else's by now.
            ArchiveDisabled: the queue keeps none.
        """
        if not self.archive_batch([message], connection=connection)[0]:
            raise LeaseLost(message.queue, message.id)

    def archive_batch(self, messages: Sequence[Message[Any]], *, connection: object = None) -> list[bool]:
        """Move handled messages to the archive; False for those whose lease was lost."""
        return self._settle("archive", messages, connection)

    def release(self, message: Message[Any]) -> None:
        """Give an untried message back at once, in its old place; the attempt does not count.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.release_batch([message])[0]:
            raise LeaseLost(message.queue, message.id)

    def release_batch(self, messages: Sequence[Message[Any]]) -> list[bool]:
        """Give untried messages back at once; False for those whose lease was lost."""
        return self._settle("release", messages, None)

    def nack(
        self,
        message: Message[Any],
        *,
        delay: float | None = None,
        error: BaseException | str | None = None,
        bury: bool = False,
    ) -> Fate:
        """Give a failed message back, to be retried after ``delay`` seconds or the queue's back-off.

        Without attempts left, or with ``bury``, it is dead-lettered with ``error``. Returns ``"nacked"`` or ``"dead"``.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        fate = self.nack_batch([message], delay=delay, errors=[error], bury=bury)[0]
        if fate == "lost":
            raise LeaseLost(message.queue, message.id)
        return fate

    def nack_batch(
        self,
        messages: Sequence[Message[Any]],
        *,
        delay: float | None = None,
        errors: Sequence[BaseException | str | None] | None = None,
        bury: bool = False,
    ) -> list[Fate]:
        """Give failed messages back; ``"nacked"``, ``"dead"`` or ``"lost"`` for each."""
        engine = self._engine
        why = check_errors(messages, errors)
        answers = []
        for queue, group in by_queue(messages):
            self._keeper.drop(message.lease for message in group)
            fates = engine.run(
                failing,
                queue,
                group,
                delay=delay,
                errors=[why[id(message)] for message in group],
                bury=bury,
                plugins=engine.plugins,
                doorbell=engine.doorbell,
            )
            answers.append((group, fates))
        return scatter(messages, answers)

    def extend_lock(self, message: Message[Any], lock_time: float) -> None:
        """Keep a message for ``lock_time`` seconds from now (0.1 to 43,200).

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.extend_lock_batch([message], lock_time)[0]:
            raise LeaseLost(message.queue, message.id)

    def extend_lock_batch(self, messages: Sequence[Message[Any]], lock_time: float) -> list[bool]:
        """Keep messages for ``lock_time`` seconds from now; False for those whose lease was lost."""
        answers = [
            (group, self._engine.run(settle.extend, queue, [message.lease for message in group], lock_time))
            for queue, group in by_queue(messages)
        ]
        return scatter(messages, answers)

    @overload
    def lease(
        self,
        queue: str,
        type: type[T],
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[Message[T] | None]: ...

    @overload
    def lease(
        self,
        queue: str,
        type: Any = ...,
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[Message[Any] | None]: ...

    @contextmanager
    def lease(
        self,
        queue: str,
        type: Any = Any,
        *,
        lock_time: float | None = None,
        wait: float = 0.0,
        archive: bool = False,
    ) -> Iterator[Message[Any] | None]:
        """Handle one message in a ``with`` block: acked (or archived) at its end, nacked when it raises.

        The lease renews itself meanwhile. Yields None when there is no message. A message that the block settled
        itself is left alone.
        """
        with self.lease_batch(queue, type, count=1, lock_time=lock_time, wait=wait, archive=archive) as messages:
            yield messages[0] if messages else None

    @overload
    def lease_batch(
        self,
        queue: str,
        type: type[T],
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[list[Message[T]]]: ...

    @overload
    def lease_batch(
        self,
        queue: str,
        type: Any = ...,
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[list[Message[Any]]]: ...

    @contextmanager
    def lease_batch(
        self,
        queue: str,
        type: Any = Any,
        *,
        count: int = 10,
        lock_time: float | None = None,
        wait: float = 0.0,
        archive: bool = False,
    ) -> Iterator[list[Message[Any]]]:
        """Handle several messages in a ``with`` block; see `lease`.

        Settle single ones inside it to treat them apart.
        """
        messages = self.read_batch(queue, type, count=count, lock_time=lock_time, wait=wait)
        self.hold(messages)
        try:
            yield messages
        except Exception as error:
            left = [message for message in messages if message.open]
            self.nack_batch(left, errors=[error] * len(left))
            raise
        except BaseException:
            # Interrupted, not failed: somebody else should have them at once.
            self.release_batch([message for message in messages if message.open])
            raise
        else:
            left = [message for message in messages if not message.settled]
            kept = self._settle("archive" if archive else "ack", left, None)
            for message, alive in zip(left, kept):
                if not alive:
                    raise LeaseLost(message.queue, message.id)

    def hold(self, messages: Sequence[Message[Any]]) -> None:
        """Renew the leases of these messages from now on, until they are settled."""
        for message in messages:
            age = max(time.time() - message.claimed_at, 0.0)
            self._keeper.hold(message._queue, [message.lease], message.lease_seconds, marker([message]), age=age)

    def _settle(self, action: Any, messages: Sequence[Message[Any]], connection: object) -> list[bool]:
        engine = self._engine
        answers = []
        for queue, group in by_queue(messages):
            self._keeper.drop(message.lease for message in group)
            if connection is None:
                kept = engine.run(settling, queue, action, group, plugins=engine.plugins, doorbell=engine.doorbell)
            else:
                kept = engine.run_in(connection, settling, queue, action, group, plugins=engine.plugins, doorbell=None)
            answers.append((group, kept))
        return scatter(messages, answers)
