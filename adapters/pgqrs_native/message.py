"""A message as handlers see it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pgqrs_core.errors import PayloadError
from pgqrs_core.events import Handled
from pgqrs_core.logs import bound_logger, message_fields
from pgqrs_core.messages import Delivery, Lease, Queue

__all__ = ["Message"]

T = TypeVar("T")


class Message(Generic[T]):
    """One claimed message with its payload decoded.

    Attributes:
        queue: the queue's name.
        error: why the payload could not be read; only with ``mismatch="return"``, else None.
        lease_lost: True once another consumer may hold the message: do not apply its effects any more.
    """

    __slots__ = (
        "_delivery",
        "_payload",
        "_queue",
        "began_at",
        "claimed_at",
        "ended_at",
        "error",
        "lease_lost",
        "lease_seconds",
        "provisional",
        "settled",
    )

    def __init__(
        self,
        queue: Queue,
        delivery: Delivery,
        payload: T,
        *,
        claimed_at: float,
        lease_seconds: float,
        error: PayloadError | None = None,
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._payload = payload
        #: When it was claimed, in seconds since the epoch by this machine's clock.
        self.claimed_at = claimed_at
        #: When its handler began and ended, by the same clock; for a reader without handlers, the claim. None: not yet.
        self.began_at: float | None = None
        self.ended_at: float | None = None
        #: For how many seconds it was claimed.
        self.lease_seconds = lease_seconds
        self.error = error
        self.lease_lost = False
        #: Whether it was acked, archived, nacked or released already.
        self.settled = False
        #: Whether that was done in the caller's transaction, which may yet roll back.
        self.provisional = False

    @property
    def open(self) -> bool:
        """Whether a failure should still be reported for it."""
        return not self.settled or self.provisional

    @property
    def id(self) -> int:
        """The id within its queue."""
        return self._delivery.id

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._queue.name

    @property
    def payload(self) -> T:
        """The decoded payload.

        Raises:
            DecodeError, PayloadMismatch: if it could not be decoded and the reader chose to get it all the same.
        """
        if self.error is not None:
            raise self.error
        return self._payload

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, ``message_type`` among them; a copy."""
        return self._delivery.headers

    @property
    def message_type(self) -> str | None:
        """The name of the payload's type, as its producer gave it."""
        return self._delivery.headers.get("message_type") if self._delivery.raw_headers else None

    @property
    def attempt(self) -> int:
        """Which delivery this is: 1 for the first."""
        return self._delivery.attempt

    @property
    def priority(self) -> int:
        """0 to 9; 9 is delivered first."""
        return self._delivery.priority

    @property
    def enqueued_at(self) -> datetime:
        """When it was enqueued, by the database's clock, in UTC."""
        return self._delivery.enqueued_at

    @property
    def content_type(self) -> str:
        """How the body is encoded."""
        return self._delivery.content_type

    @property
    def body(self) -> bytes:
        """The payload as it was stored."""
        return self._delivery.body

    @property
    def handled(self) -> Handled:
        """What plugins are told of it when its handler is called."""
        delivery = self._delivery
        return Handled(delivery.id, delivery.attempt, delivery.raw_headers)

    @property
    def lease(self) -> Lease:
        """What fences this delivery from others of the same message."""
        return self._delivery.lease

    @property
    def log_fields(self) -> dict[str, Any]:
        """What a line in a log should say of this message: ``queue``, ``message_id``, ``attempt``, ``worker``."""
        return message_fields(self.queue, self.id, self.attempt)

    def logger(self, logger: Any = "pgqrs.handler") -> Any:
        """Return a logger that adds ``log_fields`` to whatever it logs. It never sees the payload or the headers.

        Args:
            logger: a logger of `logging` or of structlog, or the name of one; see `pgqrs_core.logs.bound_logger`.
        """
        return bound_logger(logger, self.log_fields)

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self.queue!r}, attempt {self.attempt}>"
