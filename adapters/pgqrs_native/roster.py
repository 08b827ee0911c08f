"""What both workers are told: their settings and their handlers. Nothing here runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pgqrs_core.errors import ConfigurationError, InvalidArgument, PgqrsError
from pgqrs_core.messages import check_number
from pgqrs_native.routing import Routes, Unknown
from pgqrs_native.shared import check_success

if TYPE_CHECKING:
    from pgqrs_core.config import Config
    from pgqrs_core.plugins import Plugins

__all__ = ["Roster", "WorkerStopped"]

F = TypeVar("F", bound=Callable[..., Any])


class WorkerStopped(PgqrsError):
    """``run()`` was called on a worker that was stopped, or that runs already. A worker runs once."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the worker cannot be run: {reason}. Make a new one; its handlers are registered there again."
        )


class Roster:
    """A worker's settings and handlers; the arguments are described at `Worker`."""

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        *,
        concurrency: int,
        most: int,
        prefetch: int | None,
        shutdown_timeout: float,
        on_success: Literal["ack", "archive"],
        on_unknown: Unknown,
        housekeeping: bool,
    ) -> None:
        check_number("concurrency", concurrency, 1, most, whole=True)
        self._prefetch = config.performance.prefetch_count if prefetch is None else prefetch
        check_number("prefetch", self._prefetch, 0, 10_000, whole=True)
        check_number("shutdown_timeout", shutdown_timeout, 0, 86_400)
        check_success(on_success)
        self._concurrency = concurrency
        self._shutdown_timeout = shutdown_timeout
        if on_unknown not in ("retry", "bury"):
            raise InvalidArgument("on_unknown", on_unknown, "'retry' or 'bury'")
        self._on_unknown: Unknown = on_unknown
        self._success: Literal["ack", "archive"] = on_success
        self._housekeeping = housekeeping
        self._max_batch = config.queue.max_batch_size
        self._routes = Routes(plugins)

    def handler(
        self,
        queue: str,
        type: Any = Any,
        *,
        message_type: str | None = None,
    ) -> Callable[[F], F]:
        """Register a function that is called with each `Message` of ``queue``.

        Several handlers may share a queue when they take different types; ``message_type`` in the headers decides.
        A handler that returns acks; one that raises nacks, with the queue's back-off; `Retry` and `Reject` say more.
        One that settled its message itself is left alone. An `AsyncWorker` takes coroutine functions too.
        """
        return self._register(queue, type, message_type, None)

    def batch_handler(
        self,
        queue: str,
        type: Any = Any,
        *,
        count: int = 100,
        message_type: str | None = None,
    ) -> Callable[[F], F]:
        """Register a function that is called with up to ``count`` messages at once.

        It returns None when all went well, or one outcome per message: None, or the exception that it failed with.
        ``count`` is 1 to the configuration's ``queue.max_batch_size``, for a batch is claimed by one statement. The worker
        waits until it has room for a whole batch, and holds two of the largest where that is more than ``concurrency +
        prefetch`` messages; if fewer wait in the queue, or after some seconds without room, a batch is smaller.

        Raises:
            InvalidArgument: ``count`` is out of range.
        """
        most = self._max_batch
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
            raise InvalidArgument(
                "count", count, f"a whole number from 1 to {most:,}, the setting queue.max_batch_size"
            )
        return self._register(queue, type, message_type, count)

    def _served(self) -> list[str]:
        """Return the queues to work on.

        Raises:
            ConfigurationError: there are none; such a worker would idle for ever.
        """
        if not self._routes.queues:
            raise ConfigurationError(
                "the worker has no handlers: register some with @worker.handler(queue) or @worker.batch_handler(queue) "
                "before run()"
            )
        return self._routes.queues

    def _register(self, queue: str, type_: Any, message_type: str | None, batch: int | None) -> Callable[[F], F]:
        def decorate(function: F) -> F:
            self._routes.add(queue, type_, function, message_type=message_type, batch=batch)
            return function

        return decorate
