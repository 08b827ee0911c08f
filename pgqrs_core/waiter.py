"""One consumer that waits for news of one or several queues."""

from __future__ import annotations

from collections.abc import Sequence

from pgqrs_core.messages import Queue
from pgqrs_core.watch import Watch

__all__ = ["Waiter"]


class Waiter:
    """One consumer, from joining the watch to leaving it.

    If any of its queues is not marked yet, or has had news, it looks once more as soon as all are marked; else it outwaits
    the present generation of each.
    """

    def __init__(self, watch: Watch, queues: Sequence[Queue]) -> None:
        self._watch = watch
        self._joined = [(queue, watch.join(queue)) for queue in queues]
        self.unmarked = any(generation is None for _, generation in self._joined)
        #: Whether the connection must be told that somebody waits.
        self.urgent = self.unmarked or any(watch.is_early(queue) for queue in queues)

    def is_over(self) -> bool:
        """Tell whether it is time to look."""
        if self.unmarked:
            return all(self._watch.is_marked(queue) for queue, _ in self._joined)
        return any(self._has_news(queue, generation) for queue, generation in self._joined)

    def where(self) -> list[Queue]:
        """Return the queues worth a look."""
        return [queue for queue, generation in self._joined if self._has_news(queue, generation)]

    def leave_out(self, queue_id: int) -> None:
        """Wait for one queue no more; of several waits for it, one ends."""
        for place, (queue, _) in enumerate(self._joined):
            if queue.id == queue_id:
                del self._joined[place]
                self._watch.leave(queue)
                return

    def leave(self) -> list[int]:
        """End the wait; return the generation of each queue."""
        return [self._watch.leave(queue) for queue, _ in self._joined]

    def _has_news(self, queue: Queue, generation: int | None) -> bool:
        return generation is None or self._watch.has_news(queue, generation)
