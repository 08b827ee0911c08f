"""The channel: what Kombu asks of a broker, answered from the database."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual
from kombu.utils.uuid import uuid

from pgqrs_core.errors import DecodeError
from pgqrs_core.logs import get_logger
from pgqrs_core.marks import Marks
from pgqrs_core.settling import Verdict
from pgqrs_kombu import envelope, mail, topology
from pgqrs_kombu.arguments import check_consumer
from pgqrs_kombu.declarations import Declarations
from pgqrs_kombu.errors import no_route, not_found, translated, translating
from pgqrs_kombu.gathering import PublishBatch
from pgqrs_kombu.qos import QoS
from pgqrs_kombu.source import Source

if TYPE_CHECKING:
    from pgqrs_core.messages import Delivery, Queue
    from pgqrs_kombu.transport import Transport

__all__ = ["Channel"]

_log = get_logger("pgqrs.kombu")


class Channel(Declarations, virtual.Channel):  # type: ignore[misc]
    """One channel of a connection. State is in the database; what is here is its consumers and unsettled deliveries."""

    Message = envelope.Message
    supports_fanout = True
    supports_batch_publish = True
    #: Bodies are bytes in the database, and need no disguise.
    body_encoding = None
    from_transport_options = ()

    _ids = count(1)

    def __init__(self, connection: Transport) -> None:
        self.connection: Transport | None = connection
        self.channel_id = next(self._ids)
        self.closed = False
        self.no_ack_consumers: set[str] = set()
        #: Handlers of messages that came back: ``basic_return``.
        self.events: dict[str, set[Callable[..., Any]]] = defaultdict(set)
        self._broker = connection.broker
        self._consumers: dict[str, Source] = {}
        self._qos = QoS(self, self._broker)
        self._qos.on_credit = connection.kick
        self._qos.on_requeue = connection.recall

    @property
    def qos(self) -> QoS:
        """The unsettled deliveries."""
        return self._qos

    # Publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Put the parts of a message together."""
        properties = properties if properties is not None else {}
        properties.setdefault("priority", priority or 0)
        return {
            "body": body,
            "content-encoding": content_encoding,
            "content-type": content_type,
            "headers": headers or {},
            "properties": properties,
        }

    def basic_publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        **_: Any,
    ) -> None:
        """Store a message in every queue that it is routed to.

        One that reaches none is dropped with a warning, as on RabbitMQ; if it is ``mandatory`` it comes back to the
        channel's ``basic_return`` handlers, and without one it is an error.
        """
        if not isinstance(message, dict):
            # What `celery amqp` publishes: a text alone.
            message = self.prepare_message(message, content_type="text/plain", content_encoding="utf-8")
        with translated():
            publish, restore = self.broker.publisher.publish, self.broker.remembered.restore_bound
            target = exchange or "", routing_key or ""
            if not publish(message, *target) and not (restore(*target) and publish(message, *target)):
                self._unroutable(message, exchange or "", routing_key or "", mandatory=mandatory)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what gathers messages and writes them in one transaction."""
        return PublishBatch(self, max_size)

    def _unroutable(self, message: Any, exchange: str, routing_key: str, *, mandatory: bool) -> None:
        if not mandatory:
            # Events that nobody listens to are everyday.
            _log.log(
                logging.DEBUG if exchange else logging.WARNING,
                "a message was dropped: no queue for exchange %r and routing key %r",
                exchange,
                routing_key,
            )
            return
        error = no_route(exchange, routing_key)
        handlers = self.events.get("basic_return")
        if not handlers:
            raise error
        for handle in list(handlers):
            handle(error, exchange, routing_key, message)

    # Consuming

    def basic_consume(
        self,
        queue: str,
        no_ack: bool = False,
        callback: Callable[[envelope.Message], Any] | None = None,
        consumer_tag: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> str:
        """Begin to consume from a queue (404 if there is none)."""
        tag = consumer_tag or f"pgqrs-{uuid()}"
        with translated():
            check_consumer(arguments)
            known = self._known(queue)
            if known.mailbox is not None:
                if not self.broker.use_mailbox(known.mailbox):
                    self.broker.directory.forget(queue)
                    raise not_found("queue", queue)
                place = topology.mailbox_queue(known.mailbox, queue)
            else:
                place = self.broker.engine.queue(queue)
        source = Source(self, queue, place, callback or (lambda _: None), tag=tag, no_ack=bool(no_ack))
        self._consumers[tag] = source
        if no_ack:
            self.no_ack_consumers.add(tag)
        assert self.connection is not None
        self.connection.intake.add(source)
        return tag

    @translating
    def basic_cancel(self, consumer_tag: str, **_: Any) -> None:
        """End a consumer. An auto-delete queue goes with its last one."""
        source = self._consumers.pop(consumer_tag, None)
        self.no_ack_consumers.discard(consumer_tag)
        if source is None:
            return
        if self.connection is not None:
            self.connection.intake.remove(source)
        if source.mailbox is not None:
            self.broker.closing.run(partial(self._leave_mailbox, source.mailbox))
            self.broker.directory.changed()

    def _leave_mailbox(self, mailbox: int) -> None:
        self.broker.drop_mailbox(mailbox)
        self.broker.engine.transact(topology.delete_if_left, mailbox, self.broker.channel)

    @translating
    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> envelope.Message | None:
        """Take one message, if there is one. Those whose headers cannot be read are buried and passed over."""
        while True:
            taken = self._take(queue)
            if taken is None:
                return None
            place, delivery, now = taken
            tag = self._qos.next_tag()
            try:
                message = envelope.Message(delivery, self, tag, queue, self.broker.most_bytes(place))
            except DecodeError as error:
                self.broker.bury(place, delivery, now, error)
                continue
            if no_ack:
                self.broker.give(Verdict("ack", place, delivery, now))
            else:
                if place.id > 0:
                    self.broker.keeper.hold(place, [delivery.lease], self.broker.options.lease)
                self._qos.hold(tag, place, delivery, now, message)
            return message

    def _take(self, queue: str) -> tuple[Queue, Delivery, float] | None:
        broker = self.broker
        known = self._known(queue)
        self._qos.await_returned()
        now = time.time()
        if known.mailbox is not None:
            received = broker.engine.run(
                mail.receive, {known.mailbox: mail.Sought(queue, Marks())}, 1, broker.engine.plugins
            )
            found = [delivery for _, delivery in received]
            place = topology.mailbox_queue(known.mailbox, queue)
        else:
            place = broker.engine.queue(queue)
            found = broker.claim(place, Marks(), 1)
        return (place, found[0], now) if found else None

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Settle a message as handled. From any thread, and after the connection was lost too."""
        self._qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Have a message delivered again, or dead-lettered."""
        self._qos.reject(delivery_tag, requeue)

    def give_up(self, delivery_tag: int) -> None:
        """Have a message delivered again that its consumer began to handle and will not finish.

        The delivery counts, and no ack of it holds any more. Without effect on what was settled before.
        """
        self._qos.give_up(delivery_tag)

    def refuse(self, delivery_tag: int, error: dict[str, Any]) -> None:
        """Make a message a dead letter, with this as the reason. Without effect on what was settled before."""
        self._qos.refuse(delivery_tag, error)

    def has(self, delivery_tag: Any) -> bool:
        """Tell whether a delivery of this channel is not settled yet."""
        return self._qos.is_held(delivery_tag)

    def is_last(self, delivery_tag: int) -> bool:
        """Tell whether a message that is not settled is delivered for the last time before it is dead."""
        return self._qos.is_last(delivery_tag)

    @translating
    def basic_recover(self, requeue: bool = False) -> None:
        """Give all unsettled messages back."""
        self._qos.restore_unacked_once()

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Set how many deliveries may be unsettled; 0 for any number."""
        self._qos.prefetch_count = prefetch_count or 0
        if self.connection is not None:
            self.connection.kick()

    @translating
    def close(self) -> None:
        """End all consumers, and give all unsettled messages back."""
        if self.closed:
            return
        self.closed = True
        try:
            for tag in list(self._consumers):
                self.basic_cancel(tag)
        finally:
            self._qos.on_credit = self._qos.on_requeue = None
            self._qos.restore_unacked()
            self.broker.closing.run(self.broker.flush)
            if self.connection is not None:
                self.connection.close_channel(self)

    def abandon(self) -> None:
        """The connection is lost: ask the server nothing."""
        self.closed = True
        self._consumers.clear()
        self._qos.abandon()
        self.connection = None
