"""What Dramatiq's consumer threads read from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ActorNotFound, DecodeError

from pgqrs_core.logs import get_logger
from pgqrs_core.settling import Verdict
from pgqrs_dramatiq.delivery import Leased
from pgqrs_dramatiq.envelope import decode, undecodable
from pgqrs_dramatiq.errors import translation

if TYPE_CHECKING:
    from pgqrs_core.messages import Delivery
    from pgqrs_dramatiq.broker import PgqrsBroker
    from pgqrs_dramatiq.runtime import Runtime
    from pgqrs_dramatiq.source import Source

__all__ = ["AttemptsExhausted", "PgqrsConsumer"]

_log = get_logger("pgqrs.dramatiq")

#: Seconds for which a consumer that is told to end rests at most, so that its thread notices soon.
_LAST: Final = 0.1
#: Actors that are remembered as logged.
_MOST_SAID: Final = 1_000


class AttemptsExhausted(Exception):
    """A message was delivered again and again without being settled: it killed its workers, or outlived their leases."""


class PgqrsConsumer(Consumer):
    """Iterates over one queue, for one thread; it may be told of what was settled by any.

    Args:
        broker: whose middleware is told of what is buried here.
        runtime: what this process shares.
        source: where messages come from.
        queue_name: the queue's name.
        timeout: milliseconds after which an idle or saturated consumer answers None.
    """

    def __init__(self, broker: PgqrsBroker, runtime: Runtime, source: Source, queue_name: str, timeout: int) -> None:
        self._broker = broker
        self._runtime = runtime
        self._source = source
        self._queue_name = queue_name
        self._timeout = max(timeout, 0) / 1000
        self._said: set[str] = set()

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there is none in time, or as many are unsettled as may be."""
        source = self._source
        deadline = time.monotonic() + (min(self._timeout, _LAST) if source.ended else self._timeout)
        while (found := source.take(deadline)) is not None:
            message = self._open(*found)
            if message is not None:
                return message
        if source.error is not None:
            raise translation(source.error) from source.error
        return None

    def ack(self, message: MessageProxy) -> None:
        """Remove a message that was handled. Never fails: the lease decides whether it was still ours."""
        if isinstance(message, Leased):
            message.ack()

    def nack(self, message: MessageProxy) -> None:
        """Make a message a dead letter, with the exception it carries as the reason; one for an unknown actor is left."""
        if isinstance(message, Leased):
            unknown = message.actor_name not in self._broker.actors
            if unknown and not message.has_reason:
                # Dramatiq 1 does not say so itself.
                message.stuff_exception(ActorNotFound(message.actor_name))
            # Dramatiq's worker has marked it as failed before; code that consumes by hand has not.
            if unknown and message.failed and self._broker.unknown_actors == "retry":
                self._leave(message)
            else:
                message.nack()

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give messages back that nobody began to handle, at once and in their old places."""
        for message in messages:
            if isinstance(message, Leased):
                message.settle("release")
        self._runtime.flush()

    def stop(self) -> None:
        """Claim nothing more, and give back what was not delivered yet. What was delivered is kept alive."""
        self._runtime.intake.end(self._source)
        self._source.ring()

    def close(self) -> None:
        """End. What it delivered can still be settled."""
        self.stop()
        self._runtime.flush()

    def _open(self, delivery: Delivery, claimed_at: float) -> Leased | None:
        source = self._source
        try:
            content = decode(delivery.body, self._queue_name)
        except DecodeError as error:
            source.settler.give(Verdict("reject", source.queue, delivery, claimed_at, error=undecodable(error)))
            source.settled(delivery.lease)
            return None
        message = Leased(content, source, delivery, claimed_at)
        limit = source.queue.options.max_attempts
        if delivery.attempt > limit:
            self._bury(message, AttemptsExhausted(f"delivered {limit} times without being settled: its workers died"))
            return None
        return message

    def _leave(self, message: Leased) -> None:
        """Give a message back for a worker that knows its actor; say so once for each actor."""
        if message.actor_name not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(message.actor_name)
            text = "message %d of queue %r is left to a worker that knows actor %r, as others like it will be"
            _log.warning(text, message.delivery.id, self._queue_name, message.actor_name)
        message.settle("postpone", message.reason())

    def _bury(self, message: Leased, error: Exception) -> None:
        """Reject a message as a worker does that has given up on it, so that middleware learns of it."""
        message.fail()
        message.stuff_exception(error)
        self._broker.emit_before("nack", message)
        message.nack()
        self._broker.emit_after("nack", message)
        message.clear_exception()
