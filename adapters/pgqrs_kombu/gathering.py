"""Many messages, one transaction: what `batch()` and Kombu's `Producer.batch()` gather."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqrs_core.errors import Unavailable
from pgqrs_core.scopes import Caller
from pgqrs_kombu.compat import BatchPublishError
from pgqrs_kombu.errors import translated
from pgqrs_kombu.outbox import current_scope

if TYPE_CHECKING:
    from pgqrs_kombu.channel import Channel
    from pgqrs_kombu.publishing import Parcel, Publisher

__all__ = ["Gathering", "PublishBatch"]


class Gathering:
    """Messages that are to be written together: with one statement for each queue, all or none.

    Args:
        max_size: after how many messages they are written; what was written stays, whatever becomes of later ones.
        connection: the caller's connection to write them on; None for the brokers' own.
    """

    def __init__(self, max_size: int, connection: object = None) -> None:
        self._max_size = max_size
        self.connection = connection
        self._parcels: list[tuple[Publisher, Parcel]] = []
        self._failed: BaseException | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._parcels)

    def add(self, publisher: Publisher, parcel: Parcel) -> None:
        """Keep a message for later."""
        self._check()
        if self._ended:
            raise RuntimeError("the batch has ended")
        item = publisher, parcel
        self._parcels.append(item)
        if len(self._parcels) < self._max_size:
            return
        try:
            self.flush()
        except Unavailable:
            # Kombu retries the publish, which adds the message again.
            if self._parcels[-1] is item:
                self._parcels.pop()
                raise

    def flush(self) -> None:
        """Write what was gathered. Messages of several brokers are one transaction for each.

        Raises:
            BrokerUnavailable: the server is away, and nothing was stored: it may be tried again.
            BatchPublishError: the server went away during the commit, so it is not known whether it took place.
        """
        self._check()
        while self._parcels:
            publisher = self._parcels[0][0]
            mine = [parcel for owner, parcel in self._parcels if owner is publisher]
            try:
                with translated():
                    publisher.send(mine, self.connection)
            except Unavailable as error:
                if not error.in_flight:
                    raise
                self._failed = error
                raise BatchPublishError(f"it is unknown whether {len(mine)} messages were stored: {error}") from error
            except BaseException as error:
                self._failed = error
                raise
            self._parcels = [item for item in self._parcels if item[0] is not publisher]

    def end(self) -> None:
        """Gather nothing more."""
        self._ended = True

    def discard(self) -> None:
        """Forget what was gathered."""
        self._parcels = []

    def _check(self) -> None:
        if self._failed is not None:
            raise BatchPublishError("a batch that has failed cannot be used again") from self._failed


class PublishBatch:
    """What Kombu's `Producer.batch()` asks of a channel."""

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._scope = current_scope()
        self._caller = Caller.current()
        self._gathering = Gathering(max_size, None if self._scope is None else self._scope.connection)
        self._closed = False

    def publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        **_: Any,
    ) -> None:
        """Route a message, and keep it for later.

        Kombu keeps one batch for each producer and thread. A message of another task or greenlet, or of an inner block
        with a batch or transaction of its own, is published as that has it.
        """
        self._check()
        scope = current_scope()
        if (
            not Caller.current().is_within(self._caller)
            or scope is not self._scope
            or (scope and scope.batch is not None)
        ):
            self.channel.basic_publish(message, exchange, routing_key, mandatory)
            return
        publisher = self.channel.broker.publisher
        with translated():
            parcel = publisher.route(message, exchange or "", routing_key or "")
            if parcel.is_empty and self.channel.broker.remembered.restore_bound(exchange or "", routing_key or ""):
                parcel = publisher.route(message, exchange or "", routing_key or "")
        if parcel.is_empty:
            self.channel._unroutable(message, exchange or "", routing_key or "", mandatory=mandatory)
            return
        self._gathering.add(publisher, parcel)

    def flush(self) -> None:
        """Write what was gathered, see `Gathering.flush`."""
        self._check()
        self._gathering.flush()

    def discard(self) -> None:
        """Forget what was gathered, and be used no more."""
        self._gathering.discard()
        self._closed = True

    #: What was gathered and not flushed goes with it.
    close = discard

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the batch is closed")
