"""Exchanges, queues and bindings as a channel declares, deletes and lists them. All of it is in the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from amqp.protocol import queue_declare_ok_t
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.uuid import uuid

from pgqrs_core.errors import NotPermitted, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.metrics import measure_one
from pgqrs_core.operations.queues import purge_queue
from pgqrs_kombu import mail, topology
from pgqrs_kombu.arguments import rules_of
from pgqrs_kombu.errors import not_found, translated, translating

if TYPE_CHECKING:
    from pgqrs_kombu.broker import Broker
    from pgqrs_kombu.qos import QoS
    from pgqrs_kombu.topology import Declared
    from pgqrs_kombu.transport import Transport

__all__ = ["Declarations"]

_log = get_logger("pgqrs.kombu")

_DEFAULT_EXCHANGE: Final = "amq.direct"


class Declarations:
    """The part of a channel that has to do with the topology."""

    connection: Transport | None
    _broker: Broker
    _qos: QoS

    @property
    def broker(self) -> Broker:
        """What this process shares; a forked child has its own."""
        return self.connection.broker if self.connection is not None else self._broker

    # Exchanges

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Declare an exchange; with ``passive`` only see whether it exists (404)."""
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        with translated():
            if passive:
                if self.broker.directory.read(name) is None:
                    raise not_found("exchange", name)
                return
            self.broker.engine.run(
                topology.declare_exchange,
                name,
                kind,
                durable=bool(durable),
                auto_delete=bool(auto_delete),
                arguments=arguments,
            )
            self.broker.remembered.exchange(
                name, kind=kind, durable=bool(durable), auto_delete=bool(auto_delete), arguments=arguments
            )

    @translating
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings."""
        self.broker.remembered.forget_exchange(exchange)
        self.broker.engine.transact(topology.delete_exchange, exchange, if_unused=bool(if_unused))
        self.broker.directory.changed()

    # Queues

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        **_: Any,
    ) -> queue_declare_ok_t:
        """Declare a queue, and count its messages and consumers; with ``passive`` only if it exists (else 404)."""
        name = queue or f"amq.gen-{uuid()}"
        broker = self.broker
        with translated():
            if passive:
                known = self._known(name)
            else:
                known = broker.engine.transact(
                    topology.declare_queue,
                    name,
                    exclusive=bool(exclusive),
                    auto_delete=bool(auto_delete),
                    arguments=arguments,
                    owner=self._owner,
                    options=broker.queue_options,
                )
                if known.mailbox is None:
                    broker.engine.forget(name)
                    broker.remembered.queue(name, arguments)
                    broker.forwarder.learn(name, rules_of(arguments))
                broker.directory.learn(known)
                if exclusive and self.connection is not None:
                    self.connection.exclusive.add(name)
            if nowait and not passive:
                return queue_declare_ok_t(name, 0, 0)
            consumers = 0
            if known.mailbox is not None:
                consumers = broker.count_consumers(known.mailbox)
            try:
                return queue_declare_ok_t(name, self._count(known), consumers)
            except NotPermitted:
                if passive:
                    raise
                # Who only publishes may declare what is there, and may not count; nobody declares in order to count.
                return queue_declare_ok_t(name, 0, consumers)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Bind a queue to an exchange. Written each time: what another process has removed comes back."""
        broker = self.broker
        with translated():
            broker.engine.transact(
                topology.bind, queue, exchange or _DEFAULT_EXCHANGE, routing_key or "", arguments, broker.channel
            )
        broker.remembered.binding(queue, exchange or _DEFAULT_EXCHANGE, routing_key or "", arguments)
        broker.directory.changed()

    @translating
    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Remove a binding."""
        broker = self.broker
        broker.remembered.forget_binding(queue, exchange or _DEFAULT_EXCHANGE, routing_key or "")
        broker.engine.run(topology.unbind, queue, exchange or _DEFAULT_EXCHANGE, routing_key or "", broker.channel)
        broker.directory.changed()

    @translating
    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any) -> int:
        """Delete a queue with its bindings and messages; return how many messages those were."""
        broker = self.broker
        known = broker.engine.run(topology.find_declared, queue)
        if known is None:
            return 0
        try:
            size = self._count(known)
        except ServerError as error:
            if if_empty:
                raise
            # Its table is missing, for example: all the more reason to delete it.
            _log.warning("the messages of queue %r cannot be counted, and it is deleted all the same: %s", queue, error)
            size = 0
        if if_empty and size:
            return 0
        broker.remembered.forget_queue(queue)
        broker.engine.transact(topology.delete_declared, queue, broker.channel, if_unused=bool(if_unused))
        broker.engine.forget(queue)
        broker.directory.forget(queue)
        return size

    @translating
    def queue_purge(self, queue: str, **_: Any) -> int:
        """Remove the messages that wait, those held for a later time included; return how many."""
        known = self._known(queue)
        self._qos.await_returned()
        if known.mailbox is not None:
            return self.broker.engine.run(mail.purge, known.mailbox)
        return self.broker.engine.on(queue, purge_queue)

    def after_reply_message_received(self, queue: str) -> None:
        """Kombu is done with a reply queue."""
        self.queue_delete(queue)

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        """Return Kombu's options of a queue as RabbitMQ's arguments."""
        return to_rabbitmq_queue_arguments(arguments or {}, **options)  # type: ignore[no-any-return]

    # What Kombu's tools ask

    @translating
    def get_bindings(self) -> list[dict[str, str]]:
        """Return all bindings."""
        return [
            {"destination": queue, "source": exchange, "routing_key": key}
            for queue, exchange, key in self.list_bindings()
        ]

    @translating
    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """Return queue, exchange and routing key of all bindings."""
        return iter(self.broker.engine.run(topology.list_bindings))

    @translating
    def get_exchanges(self) -> list[str]:
        """Return the names of all exchanges."""
        return self.broker.engine.run(topology.exchange_names)

    @translating
    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return what is bound to an exchange."""
        return [(key, "", queue) for queue, name, key in self.list_bindings() if name == exchange]

    @property
    def _owner(self) -> int:
        assert self.connection is not None
        return self.connection.owner

    def _known(self, queue: str) -> Declared:
        known = self.broker.directory.queue(queue)
        if known is None:
            raise not_found("queue", queue)
        return known

    def _count(self, known: Declared) -> int:
        self._qos.await_returned()
        if known.mailbox is not None:
            return self.broker.engine.run(mail.size, known.mailbox)
        place = self.broker.engine.queue(known.name)
        return self.broker.engine.run(measure_one, place).ready
