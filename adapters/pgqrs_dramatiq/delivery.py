"""A message that was claimed, on its way through Dramatiq's worker.

Its lease is its identity: the same message may be queued twice, and a consumer may be replaced by another while it runs.
Whoever settles it, on whatever thread and by whichever consumer, settles this one delivery.
"""

from __future__ import annotations

import os
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from dramatiq.broker import MessageProxy

from pgqrs_core.logs import error_text
from pgqrs_core.settling import Verdict
from pgqrs_dramatiq.envelope import readable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dramatiq.message import Message

    from pgqrs_core.messages import Delivery
    from pgqrs_core.settling import Kind
    from pgqrs_dramatiq.source import Source

__all__ = ["Leased"]

#: What a message died of is kept for people to read: the end of a long traceback says most.
_LONGEST: Final = 20_000


class Leased(MessageProxy):
    """A claimed message. It is settled once; what comes later changes nothing."""

    def __init__(self, message: Message[Any], source: Source, delivery: Delivery, claimed_at: float) -> None:
        super().__init__(message)
        self._source: Source | None = source
        self._pid = os.getpid()
        self.delivery = delivery
        self.claimed_at = claimed_at
        #: Whether a retry of it could not be stored: then no ack may remove it.
        self.retry_failed = False
        #: When its actor began and ended, on the monotonic clock, and what surrounds it meanwhile.
        self.began_at: float | None = None
        self.ended_at: float | None = None
        self.surrounding: AbstractContextManager[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process still has to settle it."""
        return self._source is not None and self._pid == os.getpid()

    @property
    def is_failing(self) -> bool:
        """Whether an attempt at it has failed and it is not settled: to enqueue it now is to retry it."""
        return self.is_held and self.has_reason

    @property
    def has_reason(self) -> bool:
        """Whether anybody has said why it failed."""
        return self._exception is not None

    @property
    def source(self) -> Source:
        """Where it came from. Only while it is held."""
        assert self._source is not None
        return self._source

    def ack(self) -> None:
        """It was handled. If it was to be retried and that failed, it comes again instead."""
        self.settle("requeue" if self.retry_failed else "ack")

    def nack(self) -> None:
        """It failed for good: it becomes a dead letter, with the reason."""
        self.settle("reject", self.reason())

    def settle(self, kind: Kind, error: dict[str, Any] | None = None) -> None:
        """Have a verdict written, unless there is one already."""
        source = self._source
        if source is None or self._pid != os.getpid():
            # A forked child holds messages of its parent; what becomes of them is the parent's to say.
            return
        # In this order: an exception in between may only lead to a second verdict, which finds nothing to do.
        source.settler.give(Verdict(kind, source.queue, self.delivery, self.claimed_at, self._seconds, error))
        self.let_go()

    def let_go(self) -> None:
        """It is settled: there is room for another one."""
        source, self._source = self._source, None
        if source is not None:
            source.settled(self.delivery.lease)

    @property
    def _seconds(self) -> float | None:
        """For how many seconds its actor ran; None if it did not."""
        if self.began_at is None:
            return None
        return (self.ended_at or time.monotonic()) - self.began_at

    def reason(self) -> dict[str, Any]:
        """Return why it failed, as dead letters keep it."""
        error = self._exception
        if error is None:
            return {"type": "Failed", "message": "a middleware or the actor marked it as failed"}
        trace = self.options.get("traceback") or "".join(traceback.format_exception(error))
        return {
            "type": type(error).__name__,
            "message": error_text(error),
            "traceback": readable(str(trace))[-_LONGEST:],
        }

    def __del__(self) -> None:
        # Dramatiq loses what it holds when a worker thread is killed: that is to come again, as if its process had died.
        source = getattr(self, "_source", None)
        if source is not None:
            source.abandon(self.delivery.lease)
