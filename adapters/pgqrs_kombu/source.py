"""One consumer on one queue, as the intake knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgqrs_core.errors import DecodeError
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Delivery, Queue
from pgqrs_kombu.envelope import Message
from pgqrs_kombu.guard import without_odd_numbers
from pgqrs_kombu.mail import Sought

__all__ = ["Source"]


class Source:
    """One consumer on one queue."""

    __slots__ = (
        "again_at",
        "callback",
        "channel",
        "is_gone",
        "look",
        "mailbox",
        "marks",
        "name",
        "no_ack",
        "queue",
        "returned",
        "tag",
    )

    def __init__(
        self, channel: Any, name: str, queue: Queue, callback: Callable[[Message], Any], *, tag: str, no_ack: bool
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.name = name
        self.queue = queue
        self.callback = callback
        self.no_ack = no_ack
        #: The number of an ephemeral queue.
        self.mailbox = -queue.id if queue.id < 0 else None
        self.marks = Marks()
        #: How many messages of ephemeral queues had been put back, below any mark, when it last looked.
        self.returned = 0
        #: Whether there may be something to take.
        self.look = True
        self.again_at = 0.0
        #: Whether it is a durable queue that was deleted, and not made again yet.
        self.is_gone = False

    @property
    def has_room(self) -> bool:
        """Whether one more message may be delivered."""
        return self.no_ack or self.channel.qos.can_consume()

    def sought(self, returned: int) -> Sought:
        """Return where to look in an ephemeral queue, of which so many messages have been put back until now."""
        if returned != self.returned:
            self.returned, self.marks = returned, Marks()
        return Sought(self.name, self.marks)

    def deliver(self, delivery: Delivery, claimed_at: float) -> None:
        """Hand a message to the consumer; one whose headers cannot be read is buried."""
        channel = self.channel
        qos = channel.qos
        tag = qos.next_tag()
        try:
            message = Message(delivery, channel, tag, self.name, channel.broker.most_bytes(self.queue))
        except DecodeError as error:
            channel.broker.bury(self.queue, delivery, claimed_at, error)
            return
        if self.mailbox is not None:
            without_odd_numbers(message.headers)
        if not self.no_ack:
            qos.hold(tag, self.queue, delivery, claimed_at, message)
        else:
            # So that an ack of it is understood to be none.
            message.delivery_info["consumer_tag"] = self.tag
        self.callback(message)
