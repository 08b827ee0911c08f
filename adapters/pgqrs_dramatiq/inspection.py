"""Looking at queues and emptying them: what tests and operators ask of a broker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq.broker import Broker
from dramatiq.common import q_name
from dramatiq.errors import DramatiqError, QueueJoinTimeout
from dramatiq.errors import QueueNotFound as UnknownQueue

from pgqrs_core.errors import QueueNotFound
from pgqrs_core.logs import get_logger
from pgqrs_dramatiq import operations
from pgqrs_dramatiq.database import persist
from pgqrs_dramatiq.errors import translated

if TYPE_CHECKING:
    from pgqrs_core.messages import Queue
    from pgqrs_dramatiq.database import Database
    from pgqrs_dramatiq.publishing import Publisher

__all__ = ["Inspection", "MessageFailed"]


_log = get_logger("pgqrs.dramatiq")


class MessageFailed(DramatiqError):
    """A message became a dead letter while `join` waited with ``fail_fast``.

    Attributes:
        reason: What the dead letter keeps: type, message and traceback.
    """

    def __init__(self, queue_name: str, reason: dict[str, Any]) -> None:
        super().__init__(f"a message of queue {queue_name!r} died: {reason.get('type')}: {reason.get('message')}")
        self.reason = reason


class Inspection(Broker):
    """The part of the broker that counts, waits and empties."""

    _database: Database
    _publisher: Publisher

    def get_queue_message_counts(self, queue_name: str) -> tuple[int, int, int]:
        """Return how many messages of a queue are ready, delayed and dead. Those in flight are none of these.

        Raises:
            QueueNotFound: the queue is neither declared here nor there.
        """
        counts = self._run(queue_name, operations.count)
        return counts.ready, counts.delayed, counts.dead

    def flush(self, queue_name: str) -> None:
        """Remove all messages of a queue: ready, delayed, in flight and dead. Raises as `get_queue_message_counts`."""
        self._run(queue_name, operations.flush)
        runtime = self._database.belongings.get("runtime")
        if runtime is not None:
            runtime.intake.forget(q_name(queue_name))

    def flush_all(self) -> None:
        """Remove all messages of all queues declared here. One that cannot be flushed does not keep the others from it.

        Raises:
            DramatiqError: the first error, when all the others are flushed.
        """
        failed: list[DramatiqError] = []
        for queue_name in self.get_declared_queues():
            try:
                self.flush(queue_name)
            except DramatiqError as error:
                _log.warning("queue %r could not be flushed, the others are: %s", queue_name, error)
                failed.append(error)
        if failed:
            raise failed[0]

    def join(
        self,
        queue_name: str,
        min_successes: int = 1,
        idle_time: int | None = None,
        *,
        interval: int = 100,
        fail_fast: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Wait until a queue holds nothing that is ready, delayed or in flight, all seen at one moment.

        Args:
            queue_name: the queue.
            min_successes: how often in a row it must be seen empty. Once is enough, unless tasks enqueue others late.
            idle_time: milliseconds between two looks, if another than ``interval``.
            interval: milliseconds between two looks.
            fail_fast: raise as soon as a message of it becomes a dead letter.
            timeout: milliseconds to wait at most.

        Raises:
            QueueJoinTimeout: it is still not empty.
            QueueNotFound: the queue is neither declared here nor there.
            MessageFailed: with ``fail_fast``, a message died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        pause = (interval if idle_time is None else idle_time) / 1000
        since = None
        successes = 0
        while True:
            seen = self._run(queue_name, operations.outstanding, since)
            since = since or seen.at
            if fail_fast and seen.death is not None:
                raise MessageFailed(queue_name, seen.death)
            successes = 0 if seen.any else successes + 1
            if successes >= min_successes:
                return
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise QueueJoinTimeout(queue_name)
            time.sleep(min(pause, left))

    def _run(self, queue_name: str, make: Any, *args: Any) -> Any:
        def task() -> Any:
            queue: Queue = self._publisher.queue(q_name(queue_name))
            return self._database.engine.on(queue.name, make, *args)

        with translated():
            try:
                return self._database.call(lambda: persist(task))
            except QueueNotFound as error:
                raise UnknownQueue(queue_name) from error
