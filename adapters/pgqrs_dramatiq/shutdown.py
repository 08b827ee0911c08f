"""What a worker that is told to stop does with the messages that it has not begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq.common import iter_queue
from dramatiq.middleware import Middleware

from pgqrs_dramatiq.consumer import PgqrsConsumer
from pgqrs_dramatiq.delivery import Leased

if TYPE_CHECKING:
    from dramatiq.broker import Broker

__all__ = ["GiveBack"]


class GiveBack(Middleware):
    """Lets a stopping worker claim nothing more, and give back at once what its threads have not begun.

    Dramatiq itself does so when the last running task is done, which may take minutes.
    """

    @property
    def actor_options(self) -> set[str]:
        """The option that this broker adds: the priority of an actor's messages, as on RabbitMQ."""
        return {"broker_priority"}

    def before_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Give back what this worker holds and does not run."""
        threads = list(worker.consumers.values())
        consumers = [one.consumer for one in threads if isinstance(one.consumer, PgqrsConsumer)]
        for consumer in consumers:
            consumer.stop()
        for item in iter_queue(worker.work_queue):
            # Before 2.2 an item was a tuple with the message last.
            message = item.message if hasattr(item, "message") else item[-1]
            if isinstance(message, Leased):
                message.settle("release")
            worker.work_queue.task_done()
        for consumer in consumers[:1]:
            consumer.requeue(())
