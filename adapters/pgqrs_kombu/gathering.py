"""Many messages, one transaction: what `batch()` and Kombu's `Producer.batch()` gather."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.exceptions import BatchPublishError

from pgqrs_core.errors import Unavailable
from pgqrs_kombu.errors import translated

if TYPE_CHECKING:
    from pgqrs_kombu.channel import Channel
    from pgqrs_kombu.publishing import Parcel, Publisher

__all__ = ["Gathering", "PublishBatch"]


class Gathering:
    """Messages that are to be written together: with one statement for each queue, all or none.

    Args:
        max_size: after how many messages they are written; what was written stays, whatever becomes of later ones.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._parcels: list[tuple[Publisher, Parcel]] = []
        self._failed: BaseException | None = None

    def add(self, publisher: Publisher, parcel: Parcel) -> None:
        """Keep a message for later."""
        self._check()
        self._parcels.append((publisher, parcel))
        if len(self._parcels) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. Messages of several brokers are one transaction for each.

        Raises:
            Unavailable: the server is away, and nothing was stored: it may be tried again.
            BatchPublishError: the server went away during the commit, so it is not known whether it took place.
        """
        self._check()
        while self._parcels:
            publisher = self._parcels[0][0]
            mine = [parcel for owner, parcel in self._parcels if owner is publisher]
            try:
                with translated():
                    publisher.send(mine)
            except Unavailable as error:
                if not error.in_flight:
                    raise
                self._failed = error
                raise BatchPublishError(f"it is unknown whether {len(mine)} messages were stored: {error}") from error
            except BaseException as error:
                self._failed = error
                raise
            self._parcels = [item for item in self._parcels if item[0] is not publisher]

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
        self._gathering = Gathering(max_size)
        self._closed = False

    def publish(
        self,
        message: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        **_: Any,
    ) -> None:
        """Route a message, and keep it for later."""
        self._check()
        publisher = self.channel.broker.publisher
        with translated():
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
