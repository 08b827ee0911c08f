"""News of queues for consumers that sleep elsewhere than in `Wakeups.wait`: in an event loop of their own, for instance.

A subscription is either at rest, when it waits for news of some queues and its consumer sleeps, or up, when its consumer
is busy and nobody need tell him anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pgqrs_core.waiter import Waiter

if TYPE_CHECKING:
    from pgqrs_core.messages import Queue
    from pgqrs_core.wakeups import Wakeups

__all__ = ["Subscription"]


class Subscription:
    """One sleeper, told of news by a call.

    Args:
        wakeups: the wake-ups of this process.
        alert: called once for each rest that news ends, by any thread and under a lock: it must only pass the word on.
    """

    def __init__(self, wakeups: Wakeups, alert: Callable[[], None]) -> None:
        self._wakeups = wakeups
        self._alert = alert
        self._waiter: Waiter | None = None
        self._queues: Sequence[Queue] = ()
        self._told = False

    def rest(self, queues: Sequence[Queue]) -> None:
        """Wait for news of ``queues``, in place of whatever was waited for."""
        with self._wakeups.lock:
            self._leave()
            self._queues = queues
            self._told = False
            if queues:
                self._waiter = Waiter(self._wakeups.watch, queues)
                self._wakeups.serve(self, urgent=self._waiter.urgent)
                self.tell()

    def leave_out(self, queue: Queue) -> None:
        """Wait for news of ``queue`` no more, and go on waiting for those of the others: it has lost a consumer."""
        with self._wakeups.lock:
            if self._waiter is not None:
                self._waiter.leave_out(queue.id)
                numbers = [other.id for other in self._queues]
                if queue.id in numbers:
                    place = numbers.index(queue.id)
                    self._queues = [*self._queues[:place], *self._queues[place + 1 :]]

    def rise(self) -> Sequence[Queue]:
        """End the rest; return the queues worth a look."""
        with self._wakeups.lock:
            if self._waiter is None:
                return ()
            where = self._queues if self._wakeups.watch.is_stale() else self._waiter.where()
            self._leave()
            return where

    def is_over(self) -> bool:
        """Tell whether to rise. Ask now and then: a connection that hangs alerts nobody."""
        with self._wakeups.lock:
            return self._waiter is not None and (self._wakeups.watch.is_stale() or self._waiter.is_over())

    def close(self) -> None:
        """Be told nothing more."""
        with self._wakeups.lock:
            self._leave()
            self._wakeups.subscriptions.discard(self)

    def tell(self) -> None:
        """Alert the sleeper if there is news. Called under the lock."""
        if not self._told and self._waiter is not None and self._waiter.is_over():
            self._told = True
            self._alert()

    def _leave(self) -> None:
        if self._waiter is not None:
            self._waiter.leave()
            self._waiter = None
