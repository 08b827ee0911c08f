"""`Producer.batch()`: many messages, one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.exceptions import BatchPublishError

from pgqrs_core.errors import Unavailable
from pgqrs_kombu.errors import translated

if TYPE_CHECKING:
    from pgqrs_kombu.channel import Channel
    from pgqrs_kombu.publishing import Parcel

__all__ = ["PublishBatch"]


class PublishBatch:
    """Gathers messages and writes them together: with one statement for each queue, all or none.

    Args:
        channel: where they are published.
        max_size: after how many messages they are written; what was written stays, whatever becomes of later ones.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._parcels: list[Parcel] = []
        self._failed: BaseException | None = None
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
        with translated():
            parcel = self.channel.broker.publisher.route(message, exchange or "", routing_key or "")
        if parcel.is_empty:
            self.channel._unroutable(message, exchange or "", routing_key or "", mandatory=mandatory)
            return
        self._parcels.append(parcel)
        if len(self._parcels) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered.

        Raises:
            BatchPublishError: the server went away during the commit, so it is not known whether it took place.
        """
        self._check()
        parcels, self._parcels = self._parcels, []
        if not parcels:
            return
        try:
            with translated():
                self.channel.broker.publisher.send(parcels)
        except Exception as error:
            self._failed = error
            if isinstance(error, Unavailable) and error.in_flight:
                raise BatchPublishError(
                    f"it is unknown whether {len(parcels)} messages were stored: {error}"
                ) from error
            raise

    def discard(self) -> None:
        """Forget what was gathered, and be used no more."""
        self._parcels = []
        self._closed = True

    #: What was gathered and not flushed goes with it.
    close = discard

    def _check(self) -> None:
        if self._failed is not None:
            raise BatchPublishError("a batch that has failed cannot be used again") from self._failed
        if self._closed:
            raise RuntimeError("the batch is closed")
