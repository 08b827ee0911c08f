"""What hooks receive: one object a batch, so that a hook costs once a batch and not once a message.

=================  ========  ==================================  ==========================================
object             may set   fields                              meaning
=================  ========  ==================================  ==========================================
``EnqueueBatch``   drafts'   ``queue adapter drafts ids``        about to be written
``Draft``          yes       ``queue body content_type headers   one message, encoded
                             priority delay at ttl
                             idempotency_key durable``
``ConsumeBatch``   methods   ``queue adapter deliveries          just claimed, not yet decoded
                             dropped buried postponed address
                             names``
``Enqueued``       frozen    ``queue adapter ids count bytes     written and committed
                             seconds``
``Claimed``        frozen    ``queue adapter deliveries          just claimed, not yet decoded
                             claimed_at seconds managed``
``Handling``       frozen    ``queue adapter messages            about to be handled
                             failures``
``Handled``        frozen    ``message_id attempt raw_headers``  one message of it
``Consumed``       frozen    ``queue adapter outcomes kinds      settled
                             seconds_in_handler details``
``Outcome``        frozen    ``message_id kind attempt           what became of one message
                             seconds_in_queue
                             seconds_in_handler error``
=================  ========  ==================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import decode_headers, discreet

if TYPE_CHECKING:
    from datetime import datetime

    from pgqrs_core.messages import Delivery

__all__ = [
    "Claimed",
    "ConsumeBatch",
    "Consumed",
    "Draft",
    "EnqueueBatch",
    "Enqueued",
    "Handled",
    "Handling",
    "Outcome",
    "OutcomeKind",
]

OutcomeKind: TypeAlias = Literal["acked", "archived", "nacked", "dead", "released", "lost"]


class Draft(msgspec.Struct):
    """One message that is about to be written.

    Attributes:
        queue: Where it goes; not to be changed.
        body: The encoded payload.
        content_type: What ``body`` is; whoever changes one usually changes the other.
        headers: What travels beside the body, JSON values only, ``message_type`` among them. None is empty.
        priority: 0 to 9, 9 first.
        delay: Seconds until it is due; None is at once.
        at: When it is due, in place of a delay.
        ttl: Seconds after which it is no longer delivered; None is never.
        durable: Whether storing it waits until it is on disk. Without, a crash of the server may lose what was stored in
            the second before; it is for messages that are worth less than their commit.
        idempotency_key: What it is known by, 1 to 255 characters: while the queue knows a message by this key, nothing
            is stored, and the id is that message's. None is a message of its own.
    """

    queue: str
    body: bytes
    content_type: str
    headers: dict[str, Any] | None = None
    priority: int = 0
    delay: float | None = None
    at: datetime | None = None
    ttl: float | None = None
    idempotency_key: str | None = None
    durable: bool = True

    __repr__ = discreet


class EnqueueBatch(msgspec.Struct):
    """Messages that are about to be written to one queue in one statement.

    Attributes:
        queue: The queue's name.
        adapter: Which front end enqueues, for example ``native``.
        drafts: The messages, in order. Change them in place; do not add or remove any.
        ids: Their ids, in the same order, once they are written; empty before.
    """

    queue: str
    adapter: str
    drafts: list[Draft]
    ids: Sequence[int] = ()


class ConsumeBatch(msgspec.Struct):
    """Messages that were claimed together and are not decoded yet.

    Attributes:
        queue: The queue's name.
        adapter: Which front end consumes.
        deliveries: Those still to be handled. ``drop``, ``bury`` and ``postpone`` put a shorter list in its place, so a
            loop over it is not disturbed.
        dropped: Pairs of delivery and reason: will be deleted without having been handled.
        buried: Pairs of delivery and reason: will be dead-lettered.
        postponed: Pairs of delivery and reason: will come again later, perhaps to another process.
        address: What their seals bind in the place of the queue's name, where that is something else; else empty.
        names: By whose rules codecs are required, where that is not the queue alone: a mailbox and its exchanges, and
            `pgqrs_core.codecs.ANY_QUEUE` where it is sealed if messages of any queue are.
    """

    queue: str
    adapter: str
    deliveries: list[Delivery]
    dropped: list[tuple[Delivery, str]] = []
    buried: list[tuple[Delivery, str]] = []
    postponed: list[tuple[Delivery, str]] = []
    address: str = ""
    names: Sequence[str] = ()

    def drop(self, delivery: Delivery, reason: str) -> None:
        """Delete a message without handling it.

        Args:
            delivery: One of ``deliveries``.
            reason: Why, for the log.

        Raises:
            InvalidArgument: The delivery is not, or no longer, in this batch.
        """
        self._take(delivery)
        self.dropped.append((delivery, reason))

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Dead-letter a message without handling it.

        Args:
            delivery: One of ``deliveries``.
            reason: Why; it becomes the message's last error.

        Raises:
            InvalidArgument: The delivery is not, or no longer, in this batch.
        """
        self._take(delivery)
        self.buried.append((delivery, reason))

    def postpone(self, delivery: Delivery, reason: str) -> None:
        """Give a message back that this process cannot handle and another one may; its attempt does not count.

        It is due again after half its age, within 1 to 60 seconds. A worker with ``on_unknown="bury"`` dead-letters it.

        Args:
            delivery: One of ``deliveries``.
            reason: Why; it becomes the message's last error.

        Raises:
            InvalidArgument: The delivery is not, or no longer, in this batch.
        """
        self._take(delivery)
        self.postponed.append((delivery, reason))

    @property
    def count(self) -> int:
        """How many were claimed."""
        return len(self.deliveries) + len(self.dropped) + len(self.buried) + len(self.postponed)

    def _take(self, delivery: Delivery) -> None:
        """Take one delivery out, by identity: two deliveries with equal fields are still two."""
        left = [other for other in self.deliveries if other is not delivery]
        if len(left) == len(self.deliveries):
            raise InvalidArgument("delivery", delivery, "one that is still in this batch")
        self.deliveries = left


class Enqueued(msgspec.Struct, frozen=True):
    """Messages were written to one queue.

    Attributes:
        queue: The queue's name.
        adapter: Which front end enqueued.
        ids: The message ids, in the order of the drafts; of one that was stored before under its key, the id it got then.
        count: How many.
        bytes: The size of all bodies together, as written.
        seconds: From the first statement to the commit.
    """

    queue: str
    adapter: str
    ids: Sequence[int]
    count: int
    bytes: int
    seconds: float


class Claimed(msgspec.Struct, frozen=True):
    """Messages were claimed from one queue by one statement.

    Attributes:
        queue: The queue's name.
        adapter: Which front end consumes.
        deliveries: The messages as stored, before any plugin has changed them. They are not the plugin's to change.
        claimed_at: When, in seconds since the epoch by this machine's clock.
        seconds: How long the claim took that found them; waiting for something to claim is not counted.
        managed: Whether the front end calls handlers itself, so that ``pgqrs_around_handler`` follows.
    """

    queue: str
    adapter: str
    deliveries: Sequence[Delivery]
    claimed_at: float
    seconds: float
    managed: bool


class Handled(msgspec.Struct, frozen=True, gc=False):
    """One message that is about to be handled.

    Attributes:
        message_id: Its id within the queue.
        attempt: 1 at the first delivery.
        raw_headers: The headers as JSON, None for none.
    """

    message_id: int
    attempt: int
    raw_headers: str | None

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, parsed at each access."""
        return decode_headers(self.raw_headers)


class Handling(msgspec.Struct, frozen=True):
    """One call of a handler.

    Attributes:
        queue: The queue's name.
        adapter: Which front end consumes.
        messages: What the handler gets: one message, or several if it takes batches.
        failures: What a batch handler returned as failed, once it has: ids and errors. It adds nothing to what is raised.
    """

    queue: str
    adapter: str
    messages: Sequence[Handled]
    failures: list[tuple[int, BaseException]] = []


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one claimed message.

    Attributes:
        message_id: Its id within the queue.
        kind: ``acked`` deleted; ``archived`` moved to the archive; ``nacked`` failed and will be retried;
            ``dead`` dead-lettered; ``released`` given back untried; ``lost`` the lease had passed to another.
        attempt: 1 at the first delivery.
        seconds_in_queue: From enqueue to claim.
        seconds_in_handler: How long its handler ran; without handlers, from the claim, or from the delivery to Kombu's
            consumer, to the settling. None if no handler saw it.
        error: One line, for ``nacked`` and ``dead``; else None.
    """

    message_id: int
    kind: OutcomeKind
    attempt: int
    seconds_in_queue: float
    seconds_in_handler: float | None = None
    error: str | None = None


class Consumed(msgspec.Struct, frozen=True):
    """Messages of one queue were settled together.

    Attributes:
        queue: The queue's name.
        adapter: Which front end consumed.
        kinds: What became of each message.
        seconds_in_handler: How long each one's handler ran, as in `Outcome`.
        details: Puts the outcomes together: of a batch of acks they would cost more than all else that observers need.
    """

    queue: str
    adapter: str
    kinds: Sequence[OutcomeKind]
    seconds_in_handler: Sequence[float | None]
    details: Callable[[], Sequence[Outcome]]

    @classmethod
    def of(cls, queue: str, adapter: str, outcomes: Sequence[Outcome]) -> Consumed:
        """Return the event of outcomes that are there already."""
        spent = [one.seconds_in_handler for one in outcomes]
        return cls(queue, adapter, [one.kind for one in outcomes], spent, lambda: outcomes)

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """One for each message, put together at each access. Whoever only counts looks at ``kinds``."""
        return self.details()
