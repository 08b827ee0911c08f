"""The broker: what Dramatiq asks for, answered from the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from dramatiq.broker import Broker, MessageProxy
from dramatiq.common import current_millis, q_name
from dramatiq.errors import QueueNotFound
from dramatiq.message import Message
from dramatiq.middleware import Middleware

from pgqrs_core.config import Config
from pgqrs_core.errors import InvalidArgument, PgqrsError
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import QueueOptions, check_name
from pgqrs_core.secret import hidden
from pgqrs_dramatiq import composition
from pgqrs_dramatiq.consumer import PgqrsConsumer
from pgqrs_dramatiq.database import MAX_CONNECTIONS, configure, database_for
from pgqrs_dramatiq.delivery import Leased
from pgqrs_dramatiq.envelope import compose, due_in
from pgqrs_dramatiq.errors import translated, translation
from pgqrs_dramatiq.inspection import Inspection
from pgqrs_dramatiq.publishing import Parcel, Publisher
from pgqrs_dramatiq.runtime import runtime_of
from pgqrs_dramatiq.scopes import SCOPES
from pgqrs_dramatiq.shutdown import GiveBack
from pgqrs_dramatiq.surrounding import Surround

__all__ = ["PgqrsBroker"]

_log = get_logger("pgqrs.dramatiq")


class PgqrsBroker(Inspection, Broker):
    """A Dramatiq broker on PostgreSQL.

    Args:
        url: the database, ``postgresql://user:password@host/name``; None reads the environment and ``pgqrs.yaml``; or a
            `pgqrs_core.config.Config`, which then says everything that follows up to ``max_connections``.
        schema: the schema that holds the tables, ``pgqrs`` by default.
        max_connections: the most connections of this process, at least 3 (one of them listens); shared with results and
            rate limits of the same address.
        middleware: as for every broker; None takes Dramatiq's default.
        create_schema: install pgqrs at the first use if nothing of it is in the schema.
        lease: seconds for which a message claimed here is hidden from others, 0.1 to 43,200, renewed while this process
            lives; so long it may take until the messages of a killed process come again. By default what the queue says,
            30 if it is created here. What follows is for queues that are created here; `pgqrs queue alter` changes others.
        max_attempts: how often a message may be delivered in a row without being settled, because its workers die,
            before it becomes a dead letter. Retries of Dramatiq do not count.
        max_body_bytes: the largest encoded message.
        unknown_actors: what a worker does with a message for an actor, or with a codec or key, that it does not know, as
            happens while a new version is rolled out: ``"retry"`` gives it back for a worker that knows it, to come again
            after half its age, within 1 to 60 seconds; ``"bury"`` makes it a dead letter at once, as
            Dramatiq's other brokers do.

    Nothing is connected until something is enqueued or consumed.

    Raises:
        ConnectionFailed: the address is none.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        url: str | Config | None = None,
        *,
        schema: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        middleware: list[Middleware] | None = None,
        create_schema: bool = True,
        lease: float | None = None,
        max_attempts: int = 20,
        max_body_bytes: int = 16 * 1024 * 1024,
        unknown_actors: Literal["retry", "bury"] = "retry",
    ) -> None:
        url = hidden(url)
        with translated():
            if unknown_actors not in ("retry", "bury"):
                raise InvalidArgument("unknown_actors", unknown_actors, "'retry' or 'bury'")
            config = configure(url, schema, max_connections)
            options = QueueOptions(
                lease_seconds=30.0 if lease is None else lease,
                max_attempts=max_attempts,
                max_body_bytes=max_body_bytes,
                archive=False,
            )
        self._lease = lease
        self.unknown_actors: Literal["retry", "bury"] = unknown_actors
        self._database = database_for(config, create_schema=create_schema)
        self._database.join(self)
        self._publisher = Publisher(self._database, lambda name: name in self.queues, options)
        super().__init__(middleware=middleware)
        self.queues: set[str] = set()
        # At the end: others may be placed before and after the first.
        self.add_middleware(GiveBack())
        self.add_middleware(Surround(lambda: self._database.engine.plugins.hooks))
        composition.install()

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue. It is created in the database when something is enqueued or consumed."""
        if queue_name in self.queues:
            return
        with translated():
            check_name(queue_name)
        self.emit_before("declare_queue", queue_name)
        self.queues.add(queue_name)
        self.emit_after("declare_queue", queue_name)

    def get_declared_queues(self) -> set[str]:
        """Return the names of all queues declared here."""
        return self.queues.copy()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Store a message.

        A message that was claimed here and has failed is retried in its own place, in one step that cannot lose it.

        Args:
            message: the message.
            delay: milliseconds until it is due; None, 0 and below is at once.

        Returns:
            The message, or a copy if its options had to change.

        Raises:
            QueueNotFound: its queue is not declared here, and nobody else has created it.
            Refused: its body is too large, or an option is out of range.
            ConnectionFailed: the server cannot be reached; nothing was stored.
            ConnectionClosed: the connection broke while it was being stored: it may be there or not.
        """
        if isinstance(message, Leased) and message.is_failing and self._has_claimed(message):
            return self._retry(message, delay)
        parcel = self._pack(message, delay)
        scope = SCOPES.find(self, message.message_id)
        if scope is None:
            self._send([parcel])
        elif scope.batch is None:
            self._send([parcel], scope.connection)
        else:
            scope.batch.append(parcel)
            if scope.members is None:
                # Its block may still raise: the hook comes when it has ended.
                return parcel.message
        self._tell(parcel)
        return parcel.message

    def enqueue_many(self, messages: Iterable[Message[Any]], *, delay: int | None = None) -> list[Message[Any]]:
        """Store many messages, all or none, with one statement for each queue. Returns and raises as `enqueue` does.

        The hooks ``before_enqueue`` and ``after_enqueue`` surround each message in turn; the statement follows the last.
        """
        messages = list(messages)
        with self._gather({message.message_id for message in messages}):
            return [self.enqueue(message, delay=delay) for message in messages]

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Gather what is enqueued in this block, and store all of it at its end; nothing, if the block raises.

        The hook ``after_enqueue`` comes at the end, before a worker can have the message. Retries are not held back. A
        block within another joins it, unless there is a `transaction` between them. The block is what its own thread,
        greenlet or asyncio task enqueues: others do so by themselves, at once, also if they were started in the block.
        """
        with self._gather(None):
            yield

    @contextmanager
    def _gather(self, members: set[str] | None) -> Iterator[None]:
        """Gather what is enqueued in this block, as `batch` does; with ``members`` only messages of these ids."""
        outer = SCOPES.find(self, next(iter(members), None) if members else None)
        if outer is not None and outer.batch is not None:
            yield
            return
        parcels: list[Parcel] = []
        connection = None if outer is None else outer.connection
        try:
            with SCOPES.enter(self, connection=connection, batch=parcels, members=members):
                yield
        except GeneratorExit:
            # Every other exception is seen by the caller of the block.
            if parcels:
                _log.warning(
                    "%d messages of a batch were discarded: the generator that gathered them was closed", len(parcels)
                )
            raise
        if members is None:
            # Not after the commit: workers may be done with the first ones by then, and what a middleware says of a
            # message that was enqueued would come after what it says of one that was processed.
            for parcel in parcels:
                self._tell(parcel)
        if parcels:
            self._send(parcels, connection)

    @contextmanager
    def transaction(self, connection: object) -> Iterator[None]:
        """Let what is enqueued in this block join the caller's transaction.

        It is delivered if and when the caller commits, and never if it rolls back. Workers that wait are woken after the
        commit where SQLAlchemy or Django tell of it, and else find it within about a second: a notification in the
        transaction would make its commit hold a lock of the whole database. The block is what its own thread, greenlet or
        asyncio task enqueues, as in `batch`.

        Args:
            connection: a psycopg connection, a SQLAlchemy ``Connection`` or ``Session`` on the psycopg driver, or a Django
                connection, to the database that holds the queues.
        """
        with SCOPES.enter(self, connection=connection):
            yield

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> PgqrsConsumer:
        """Return a consumer of a declared queue. Raises as `enqueue` does.

        Args:
            queue_name: the queue.
            prefetch: how many messages may be delivered and unsettled.
            timeout: milliseconds for which the consumer waits for a message before it answers None.
        """
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        with translated():
            self._database.join(self)
            queue = self._publisher.queue(queue_name)
            runtime = runtime_of(self._database)
            lease = queue.options.lease_seconds if self._lease is None else self._lease
            source = runtime.intake.add(queue, prefetch, lease, on_unknown=self.unknown_actors)
            return PgqrsConsumer(self, runtime, source, queue_name, timeout)

    def close(self) -> None:
        """Write what was settled, and close the connections. Harmless to repeat; what is enqueued later opens them anew.

        Connections that another broker of this process uses, too, stay open.
        """
        runtime = self._database.belongings.get("runtime")
        if runtime is not None:
            runtime.flush()
        self._database.leave(self)

    def _pack(self, given: Message[Any] | MessageProxy, delay: int | None) -> Parcel:
        """Return what is to be stored; middleware sees the message as it will be."""
        message: Message[Any] = given.copy() if isinstance(given, MessageProxy) else given
        try:
            due = due_in(message.options, delay)
        except PgqrsError as error:
            raise translation(error) from error
        name = q_name(message.queue_name)
        if name != message.queue_name:
            message = message.copy(queue_name=name)
        if delay is not None and due is not None:
            message = message.copy(options={"eta": current_millis() + delay})
        elif delay is not None and "eta" in message.options:
            message = message.copy()
            del message.options["eta"]
        self.emit_before("enqueue", message, delay)
        try:
            return Parcel(message, delay, compose(message, name, due, self._priority_of(message)))
        except PgqrsError as error:
            raise translation(error) from error

    def _has_claimed(self, message: Leased) -> bool:
        """Tell whether a message comes from the database of this broker, not from another one's."""
        runtime = self._database.belongings.get("runtime")
        return runtime is not None and message.source.settler is runtime.settler

    def _priority_of(self, message: Message[Any]) -> object:
        priority = message.options.get("broker_priority")
        if priority is None and message.actor_name in self.actors:
            priority = self.actors[message.actor_name].options.get("broker_priority")
        return priority

    def _send(self, parcels: list[Parcel], connection: object = None) -> None:
        drafts = [parcel.draft for parcel in parcels]
        # Not by `translated`: a generator is a good part of what a single message costs here.
        try:
            if connection is not None:
                self._publisher.send(drafts, connection)
            else:
                self._database.call(partial(self._publisher.send, drafts))
        except PgqrsError as error:
            raise translation(error) from error

    def _tell(self, parcel: Parcel) -> None:
        self.emit_after("enqueue", parcel.message, parcel.delay)

    def _retry(self, message: Leased, delay: int | None) -> Message[Any]:
        # Should anything go wrong from here on, the ack that follows must not remove the message.
        message.retry_failed = True
        parcel = self._pack(message, delay)

        def task() -> None:
            self._publisher.retry(message, parcel.draft)
            message.let_go()

        with translated():
            self._database.call(task)
        self._tell(parcel)
        return parcel.message
