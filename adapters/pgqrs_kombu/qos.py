"""What a channel has delivered and not yet settled.

A delivery is known here by its tag, in the database by its lease. Settling goes by the lease, over whatever connection
there is: so an ack still holds after the connection that delivered the message was lost, which no broker of AMQP can offer.
"""

from __future__ import annotations

import time
import weakref
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.transport import virtual

from pgqrs_core.logs import get_logger
from pgqrs_core.settling import Verdict

if TYPE_CHECKING:
    from pgqrs_core.messages import Delivery, Lease, Queue
    from pgqrs_core.settling import Kind
    from pgqrs_kombu.broker import Broker

__all__ = ["QoS"]

_log = get_logger("pgqrs.kombu")


class _Held(NamedTuple):
    queue: Queue
    delivery: Delivery
    claimed_at: float
    #: When the consumer got it, on the monotonic clock.
    handed_at: float
    #: The message, or once the channel is lost a weak reference to it.
    message: Any


class QoS(virtual.QoS):  # type: ignore[misc]
    """The unsettled deliveries of one channel, and how many there may be. Settling is thread-safe."""

    def __init__(self, channel: Any, broker: Broker) -> None:
        # Not the base's: it would copy what is unsettled to the end of the queue at exit.
        self.channel = channel
        self.prefetch_count = 0
        self._broker = broker
        self._held: dict[int, _Held] = {}
        self._tags = count(1)
        self._lost = False
        #: Whether messages went back to their queues that this channel may ask for before that is written.
        self._went_back = False
        #: Called when there is room for more.
        self.on_credit: Any = None
        #: Called when a message goes back that is to come again before others.
        self.on_requeue: Any = None

    def next_tag(self) -> int:
        """Return the tag of the next delivery."""
        return next(self._tags)

    def hold(self, tag: int, queue: Queue, delivery: Delivery, claimed_at: float, message: Any) -> None:
        """Note a delivery that is to be settled by its tag."""
        self._held[tag] = _Held(queue, delivery, claimed_at, time.monotonic(), message)

    def can_consume(self) -> bool:
        """Tell whether one more message may be delivered."""
        return not self.prefetch_count or len(self._held) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """Return how many more messages may be delivered; None for any number."""
        return max(self.prefetch_count - len(self._held), 0) if self.prefetch_count else None

    def holds(self, lease: Lease) -> bool:
        """Tell whether a message was delivered and is not settled."""
        return any(held.delivery.lease == lease for held in list(self._held.values()))

    def get(self, delivery_tag: int) -> Any:
        """Return an unsettled message."""
        message = self._held[delivery_tag].message
        return message() if isinstance(message, weakref.ref) else message

    def ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Settle a message, or with ``multiple`` all up to it, as handled. Never fails: a lost lease is logged."""
        self._settle("ack", self._up_to(delivery_tag) if multiple else (delivery_tag,))

    def reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Have a message delivered again, at once and ahead of others; or dead-lettered.

        The delivery counts, so a message that is requeued for ever ends as a dead letter too.
        """
        self._settle("requeue" if requeue else "reject", (delivery_tag,))

    def give_up(self, delivery_tag: int) -> None:
        """Have a message delivered again, if it was not settled before; later acks of it are refused."""
        if delivery_tag in self._held:
            self._settle("requeue", (delivery_tag,))

    def refuse(self, delivery_tag: int, error: dict[str, Any]) -> None:
        """Make a message a dead letter, with this as the reason, if it was not settled before."""
        if delivery_tag in self._held:
            self._settle("reject", (delivery_tag,), error)

    def is_held(self, delivery_tag: Any) -> bool:
        """Tell whether a delivery is not settled."""
        return delivery_tag in self._held

    def is_last(self, delivery_tag: int) -> bool:
        """Tell whether a message that is not settled is delivered for the last time."""
        held = self._held.get(delivery_tag)
        return held is not None and held.delivery.attempt >= held.queue.options.max_attempts

    def await_returned(self) -> None:
        """Wait until the messages that this channel gave back are in their queues again."""
        if self._went_back:
            self._went_back = False
            self._broker.flush()

    def restore_unacked(self) -> list[Any]:
        """Give everything unsettled back, in its old place; these deliveries do not count."""
        self._settle("release", tuple(self._held))
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give everything unsettled back, now."""
        self.restore_unacked()
        self._broker.flush()

    def abandon(self) -> None:
        """The connection is lost: keep renewing what somebody still works on, and give back what is dropped.

        Celery forgets the requests that it had not begun, and with them their messages; those that run keep theirs.
        """
        self._lost = True
        self.channel = None
        for tag, held in list(self._held.items()):
            self._held[tag] = held._replace(message=weakref.ref(held.message))
        if self._held:
            self._broker.watch_over(self)

    def collect(self) -> bool:
        """Give back what nobody holds any more; tell whether something is left to watch."""
        dropped = [tag for tag, held in list(self._held.items()) if held.message() is None]
        self._settle("release", dropped)
        return bool(self._held)

    def _up_to(self, tag: int) -> list[int]:
        return [other for other in list(self._held) if other <= tag]

    def _settle(self, kind: Kind, tags: Any, error: dict[str, Any] | None = None) -> None:
        give = self._broker.give
        for tag in tags:
            held = self._held.pop(tag, None)
            if held is None:
                _log.warning("delivery tag %r cannot be settled (%s): it is unknown, or was settled before", tag, kind)
                continue
            seconds = None if kind == "release" else time.monotonic() - held.handed_at
            give(Verdict(kind, held.queue, held.delivery, held.claimed_at, seconds, error))
        self._went_back = self._went_back or (kind != "ack" and bool(tags))
        if kind == "requeue" and self.on_requeue is not None and not self._lost:
            self.on_requeue()
        if self.on_credit is not None and not self._lost:
            self.on_credit()
