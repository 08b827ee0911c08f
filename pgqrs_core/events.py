"""What hooks receive: one object a batch, so that a hook costs once a batch and not once a message.

=================  ========  ==================================  ==========================================
object             may set   fields                              meaning
=================  ========  ==================================  ==========================================
``EnqueueBatch``   drafts'   ``queue adapter drafts``            about to be written
``Draft``          yes       ``queue body content_type headers   one message, encoded
                             priority delay at ttl``
``ConsumeBatch``   methods   ``queue adapter deliveries          just claimed, not yet decoded
                             dropped buried``
``Enqueued``       frozen    ``queue adapter ids count bytes     written and committed
                             seconds``
``Consumed``       frozen    ``queue adapter outcomes``          settled
``Outcome``        frozen    ``message_id kind attempt           what became of one message
                             seconds_in_queue
                             seconds_in_handler error``
=================  ========  ==================================  ==========================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import discreet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgqrs_core.messages import Delivery

__all__ = ["ConsumeBatch", "Consumed", "Draft", "EnqueueBatch", "Enqueued", "Outcome", "OutcomeKind"]

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
    """

    queue: str
    body: bytes
    content_type: str
    headers: dict[str, Any] | None = None
    priority: int = 0
    delay: float | None = None
    at: datetime | None = None
    ttl: float | None = None

    __repr__ = discreet


class EnqueueBatch(msgspec.Struct):
    """Messages that are about to be written to one queue in one statement.

    Attributes:
        queue: The queue's name.
        adapter: Which front end enqueues, for example ``native``.
        drafts: The messages, in order. Change them in place; do not add or remove any.
    """

    queue: str
    adapter: str
    drafts: list[Draft]


class ConsumeBatch(msgspec.Struct):
    """Messages that were claimed together and are not decoded yet.

    Attributes:
        queue: The queue's name.
        adapter: Which front end consumes.
        deliveries: Those still to be handled. ``drop`` and ``bury`` put a shorter list in its place, so a
            loop over it is not disturbed.
        dropped: Pairs of delivery and reason: will be deleted without having been handled.
        buried: Pairs of delivery and reason: will be dead-lettered.
    """

    queue: str
    adapter: str
    deliveries: list[Delivery]
    dropped: list[tuple[Delivery, str]] = []
    buried: list[tuple[Delivery, str]] = []

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
        ids: The message ids, in the order of the drafts.
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


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one claimed message.

    Attributes:
        message_id: Its id within the queue.
        kind: ``acked`` deleted; ``archived`` moved to the archive; ``nacked`` failed and will be retried;
            ``dead`` dead-lettered; ``released`` given back untried; ``lost`` the lease had passed to another.
        attempt: 1 at the first delivery.
        seconds_in_queue: From enqueue to claim.
        seconds_in_handler: None if no handler saw it.
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
        outcomes: One for each message.
    """

    queue: str
    adapter: str
    outcomes: Sequence[Outcome]
