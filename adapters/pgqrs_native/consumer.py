"""The blocking client's part that takes messages out. Its twin is :mod:`pgqrs_native.async_consumer`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, overload

from pgqrs_core.engine import Engine
from pgqrs_core.errors import LeaseLost, PgqrsError
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.operations.settle import is_refusal_that_passes
from pgqrs_native.message import Message
from pgqrs_native.settlements import Settlements
from pgqrs_native.shared import MarksShelf, check_read, marker, retries
from pgqrs_native.traffic import Mismatch, reading, surrounding

__all__ = ["Consumer"]

T = TypeVar("T")


class Consumer(Settlements):
    """Takes messages out of queues and settles them."""

    def __init__(self, engine: Engine, keeper: LeaseKeeper) -> None:
        super().__init__(engine, keeper)
        self._marks = MarksShelf()

    @overload
    def read(
        self,
        queue: str,
        type: type[T],
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> Message[T] | None: ...
    @overload
    def read(
        self,
        queue: str,
        type: Any = ...,
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> Message[Any] | None: ...

    def read(
        self,
        queue: str,
        type: Any = Any,
        *,
        lock_time: float | None = None,
        wait: float = 0.0,
        mismatch: Mismatch = "bury",
    ) -> Message[Any] | None:
        """Claim one message, or return None. See `read_batch`."""
        found = self.read_batch(queue, type, count=1, lock_time=lock_time, wait=wait, mismatch=mismatch)
        return found[0] if found else None

    @overload
    def read_batch(
        self,
        queue: str,
        type: type[T],
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> list[Message[T]]: ...
    @overload
    def read_batch(
        self,
        queue: str,
        type: Any = ...,
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        mismatch: Mismatch = ...,
    ) -> list[Message[Any]]: ...

    def read_batch(
        self,
        queue: str,
        type: Any = Any,
        *,
        count: int = 10,
        lock_time: float | None = None,
        wait: float = 0.0,
        mismatch: Mismatch = "bury",
    ) -> list[Message[Any]]:
        """Claim up to ``count`` messages.

        Args:
            queue: the queue's name.
            type: what payloads are decoded as: a dataclass, ``msgspec.Struct``, TypedDict, or anything.
            count: 1 to ``max_batch_size``.
            lock_time: for how many seconds they are hidden from others (0.1 to 43,200); the queue's lease by default.
            wait: for how many seconds to wait when there are none (0 to 86,400).
            mismatch: what to do with a payload that cannot be decoded or does not fit: ``"bury"`` dead-letters the
                message with the reason; ``"return"`` returns it with its ``error`` set. What another process may be able
                to decode, since its content type, codec or key is not known to this one, is never buried: it comes
                again after half its age, within 1 to 60 seconds, its attempt uncounted.

        Raises:
            QueueNotFound, InvalidArgument, Unavailable.
        """
        engine = self._engine
        check_read(engine.config, engine.plugins, type, count=count, lock_time=lock_time, wait=wait, mismatch=mismatch)
        number = engine.queue(queue).id
        marks = self._marks.take(number)
        try:
            return engine.on(
                queue,
                reading,
                marks,
                type,
                count=count,
                lock_time=lock_time,
                wait=float(wait),
                mismatch=mismatch,
                plugins=engine.plugins,
            )
        finally:
            self._marks.give(number, marks)

    @overload
    def lease(
        self,
        queue: str,
        type: type[T],
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[Message[T] | None]: ...

    @overload
    def lease(
        self,
        queue: str,
        type: Any = ...,
        *,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[Message[Any] | None]: ...

    @contextmanager
    def lease(
        self,
        queue: str,
        type: Any = Any,
        *,
        lock_time: float | None = None,
        wait: float = 0.0,
        archive: bool = False,
    ) -> Iterator[Message[Any] | None]:
        """Handle one message in a ``with`` block: acked (or archived) at its end, nacked when it raises.

        The lease renews itself meanwhile. Yields None when there is no message. A message that the block settled
        itself is left alone.
        """
        with self.lease_batch(queue, type, count=1, lock_time=lock_time, wait=wait, archive=archive) as messages:
            yield messages[0] if messages else None

    @overload
    def lease_batch(
        self,
        queue: str,
        type: type[T],
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[list[Message[T]]]: ...

    @overload
    def lease_batch(
        self,
        queue: str,
        type: Any = ...,
        *,
        count: int = ...,
        lock_time: float | None = ...,
        wait: float = ...,
        archive: bool = ...,
    ) -> AbstractContextManager[list[Message[Any]]]: ...

    @contextmanager
    def lease_batch(
        self,
        queue: str,
        type: Any = Any,
        *,
        count: int = 10,
        lock_time: float | None = None,
        wait: float = 0.0,
        archive: bool = False,
    ) -> Iterator[list[Message[Any]]]:
        """Handle several messages in a ``with`` block; see `lease`.

        Settle single ones inside it to treat them apart.
        """
        messages = self.read_batch(queue, type, count=count, lock_time=lock_time, wait=wait)
        self.hold(messages)
        try:
            with surrounding(self._engine.plugins, messages):
                yield messages
        except Exception as error:
            left = [message for message in messages if message.open]
            self.nack_batch(left, errors=[error] * len(left))
            raise
        except BaseException:
            # Interrupted, not failed: somebody else should have them at once.
            self.release_batch([message for message in messages if message.open])
            raise
        else:
            left = [message for message in messages if not message.settled]
            kept = self._settle_handled("archive" if archive else "ack", left)
            for message, alive in zip(left, kept):
                if not alive:
                    raise LeaseLost(message.queue, message.id)
        finally:
            # Whatever became of them, from here on they are held by nothing.
            self._keeper.drop(message.lease for message in messages)

    def _settle_handled(self, action: Any, messages: Sequence[Message[Any]]) -> list[bool]:
        """Settle what was handled; again while the server refuses it, for as long as one lease lasts."""
        tries = retries(messages)
        while True:
            try:
                return self._settle(action, messages, None)
            except PgqrsError as error:
                time.sleep(tries.pause_after(error, passes=is_refusal_that_passes(error)))

    def hold(self, messages: Sequence[Message[Any]]) -> None:
        """Renew the leases of these messages from now on, until they are settled."""
        for message in messages:
            age = max(time.time() - message.claimed_at, 0.0)
            self._keeper.hold(message._queue, [message.lease], message.lease_seconds, marker([message]), age=age)
