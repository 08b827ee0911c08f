"""Which handler gets a message, and what its result means. Pure: shared by both workers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from pgqrs_core.errors import (
    DecodeError,
    DecoderMissing,
    InvalidArgument,
    PayloadError,
    PayloadMismatch,
    PgqrsError,
)
from pgqrs_core.events import Handling
from pgqrs_core.logs import Logger, describe, error_text, worker_name
from pgqrs_core.messages import MAX_SECONDS, Delivery, Queue, check_name, check_number
from pgqrs_core.plugins import Plugins
from pgqrs_native.message import Message

__all__ = [
    "Outcome",
    "Reject",
    "Retry",
    "Route",
    "Routes",
    "Task",
    "Unknown",
    "conclude",
    "note_refused",
    "note_returned",
    "outcomes_of",
    "sort_out",
]


#: Reasons that are remembered as logged.
_MOST_SAID: Final = 1_000


class Retry(PgqrsError):
    """Raise this in a handler to have the message back after ``delay`` seconds; None means the queue's back-off."""

    delay: float | None

    def __init__(self, reason: str = "retry requested", *, delay: float | None = None) -> None:
        if delay is not None:
            check_number("delay", delay, 0, MAX_SECONDS)
        super().__init__(reason, delay=delay)


class Reject(PgqrsError):
    """Raise this in a handler to dead-letter the message at once, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Route:
    """One handler and what it takes: a queue, or a queue's messages of one type."""

    queue: str
    type: Any
    message_type: str | None
    function: Callable[..., Any]
    #: The most messages per call for a batch handler, None for a handler of single messages.
    batch: int | None = None


@dataclass(slots=True)
class Routes:
    """The handlers of a worker, which decodes with ``plugins``."""

    plugins: Plugins
    _by_queue: dict[str, list[Route]] = field(default_factory=dict)

    def add(
        self, queue: str, type_: Any, function: Callable[..., Any], *, message_type: str | None, batch: int | None
    ) -> None:
        """Register a handler.

        Raises:
            InvalidArgument: nothing can be decoded as this type, or another handler takes the same messages.
        """
        check_name(queue)
        self.plugins.serializers.check_type(type_)
        if message_type is None and isinstance(type_, type):
            message_type = self.plugins.serializers.type_name(type_)
        known = self._by_queue.setdefault(queue, [])
        for route in known:
            if route.message_type == message_type:
                what = f"messages of type {message_type!r}" if message_type else "messages of any type"
                raise InvalidArgument("handler", function, f"the only one for {what} in queue {queue!r}")
            if (route.batch is None) != (batch is None):
                raise InvalidArgument("handler", function, f"of one kind with the others of queue {queue!r}: all batch")
        known.append(Route(queue, type_, message_type, function, batch))

    @property
    def queues(self) -> list[str]:
        """The queues that have handlers."""
        return list(self._by_queue)

    def batch_of(self, queue: str) -> int | None:
        """Return the largest batch that a handler of a queue takes; None if its messages are handled one by one."""
        return max((route.batch for route in self._by_queue[queue] if route.batch is not None), default=None)

    @property
    def largest_batch(self) -> int:
        """The most messages that one call of a handler takes."""
        return max((self.batch_of(queue) or 1 for queue in self.queues), default=1)

    def find(self, queue: str, delivery: Delivery) -> Route | None:
        """Return the handler for a delivery. A queue's only handler takes all; several are told apart by type."""
        known = self._by_queue[queue]
        if len(known) == 1:
            return known[0]
        wanted = delivery.headers.get("message_type")
        anything = None
        for route in known:
            if route.message_type == wanted:
                return route
            if route.message_type is None:
                anything = route
        return anything


@dataclass(slots=True)
class Task:
    """What one call of a handler gets."""

    route: Route
    queue: Queue
    messages: list[Message[Any]]


Action: TypeAlias = Literal["ack", "archive", "release", "postpone", "nack", "bury", "none"]
#: What becomes of messages of types that a worker does not know.
Unknown: TypeAlias = Literal["retry", "bury"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to become of one message."""

    message: Message[Any]
    action: Action
    error: BaseException | str | None = None
    delay: float | None = None


def sort_out(
    routes: Routes,
    queue: Queue,
    deliveries: Iterable[Delivery],
    *,
    plugins: Plugins,
    claimed_at: float,
    lease_seconds: float,
    on_unknown: Unknown = "retry",
) -> tuple[list[Task], list[Outcome]]:
    """Turn deliveries into calls of handlers.

    What cannot be decoded is to be buried; what a broken serializer failed on is to be retried. What is of a message type
    or a content type that this worker does not know is left to another one, which may be newer, or buried.
    """
    unknown: Action = "postpone" if on_unknown == "retry" else "bury"
    tasks: list[Task] = []
    refused: list[Outcome] = []
    batches: dict[int, Task] = {}
    for delivery in deliveries:
        route: Route | None = None
        error: PayloadError | None = None
        broken: PgqrsError | None = None
        payload: Any = None
        try:
            route = _route(routes, queue, delivery)
            if route is not None:
                payload = plugins.serializers.decode(delivery.content_type, delivery.body, route.type)
        except PayloadError as failure:
            error = failure
        except PgqrsError as failure:
            broken = failure
        message = Message(queue, delivery, payload, claimed_at=claimed_at, lease_seconds=lease_seconds, error=error)
        if broken is not None:
            refused.append(Outcome(message, "nack", broken))
        elif route is None and error is None:
            kind = delivery.headers.get("message_type")
            refused.append(Outcome(message, unknown, f"no handler takes messages of type {kind!r}"))
        elif route is None or error is not None:
            refused.append(Outcome(message, unknown if _is_unknown(route, delivery, error) else "bury", error))
        elif route.batch is None:
            tasks.append(Task(route, queue, [message]))
        else:
            task = batches.get(id(route))
            if task is None or len(task.messages) >= route.batch:
                task = batches[id(route)] = Task(route, queue, [])
                tasks.append(task)
            task.messages.append(message)
    return tasks, refused


def _is_unknown(route: Route | None, delivery: Delivery, error: PayloadError | None) -> bool:
    """Tell whether a payload could not be read because it is of a type that only others know."""
    if isinstance(error, DecoderMissing):
        return True
    if route is None or route.message_type is None or not isinstance(error, PayloadMismatch):
        return False
    # The queue's only handler was given what says that it is of another type.
    return delivery.headers.get("message_type") not in (None, route.message_type)


def _route(routes: Routes, queue: Queue, delivery: Delivery) -> Route | None:
    """Find the handler of a delivery, whose headers may be anything if they were written by other means than pgqrs."""
    try:
        return routes.find(queue.name, delivery)
    except PayloadError:
        raise
    except Exception as error:
        raise DecodeError("headers", f"they are no JSON object: {error}") from error


def note_refused(outcomes: Iterable[Outcome], log: Logger, said: set[tuple[str, str]]) -> None:
    """Log which messages no handler sees now, and why; those that die are logged when they do.

    What is postponed comes again and again: each reason is logged once, and noted in ``said``.
    """
    for outcome in outcomes:
        if outcome.action == "postpone":
            message, reason = outcome.message, error_text(outcome.error)
            if (message.queue, reason) not in said and len(said) < _MOST_SAID:
                said.add((message.queue, reason))
                text = "%r is left to a worker that knows it, as others like it will be: %s"
                log.warning(text, message, reason, extra=message.log_fields)
        elif outcome.action != "bury":
            text = "%r cannot be decoded now and is tried again: %s"
            log.warning(text, outcome.message, error_text(outcome.error), extra=outcome.message.log_fields)


def note_failed(task: Task, error: BaseException, log: Logger) -> None:
    """Log that a handler failed, unless it asked for what is done now."""
    if isinstance(error, (Retry, Reject)):
        return
    first, *more = task.messages
    if not more:
        note_message_failed(first, error, log)
        return
    # Which message of a batch it was is not known.
    fields = {"queue": task.queue.name, "messages": len(task.messages), "worker": worker_name()}
    text = "handler of queue %r failed on %d messages (ids %s): %s"
    log.warning(text, task.queue.name, len(task.messages), _ids(task), describe(error), exc_info=error, extra=fields)


def note_message_failed(message: Message[Any], error: BaseException, log: Logger) -> None:
    """Log that a handler failed on one message."""
    if not isinstance(error, (Retry, Reject)):
        text = "handler of queue %r failed on message %d, attempt %d: %s"
        fields = message.log_fields
        log.warning(text, message.queue, message.id, message.attempt, describe(error), exc_info=error, extra=fields)


def _ids(task: Task) -> str:
    ids = [str(message.id) for message in task.messages]
    return ", ".join(ids) if len(ids) <= 10 else f"{', '.join(ids[:10])}, …"


def conclude(task: Task, result: Any, error: BaseException | None, *, success: Action, log: Logger) -> list[Outcome]:
    """Log a failure, and return what a call means for each of its messages; see `outcomes_of`. It never raises."""
    try:
        if error is not None:
            note_failed(task, error, log)
        outcomes = outcomes_of(task, result, error, success=success)
        if error is None:
            for outcome in outcomes:
                if isinstance(outcome.error, BaseException):
                    note_message_failed(outcome.message, outcome.error, log)
    except BaseException as failure:
        # A result that cannot be looked at is a failure of the handler: no message may stay leased because of it.
        return [outcome_of(message, failure, success=success) for message in task.messages]
    return outcomes


def outcome_of(message: Message[Any], error: BaseException | None, *, success: Action) -> Outcome:
    """Return what a handler's end means for a message: settled already, success, retry, reject or failure."""
    if error is None:
        return Outcome(message, "none" if message.settled else success)
    if not message.open:
        return Outcome(message, "none")
    if isinstance(error, Reject):
        return Outcome(message, "bury", error)
    return Outcome(message, "nack", error, error.delay if isinstance(error, Retry) else None)


def outcomes_of(task: Task, result: Any, error: BaseException | None, *, success: Action) -> list[Outcome]:
    """Return what a call means for each of its messages.

    A batch handler returns None when all is well, or one entry per message: None or True for success, an exception
    (or an instance of `Retry` or `Reject`) for failure.
    """
    messages = task.messages
    if error is None and inspect.iscoroutine(result):
        result.close()
        error = TypeError("the handler returned a coroutine, which was not run: AsyncWorker runs coroutines")
    if error is None and task.route.batch is not None and result is not None:
        if not isinstance(result, Sequence) or isinstance(result, (str, bytes)) or len(result) != len(messages):
            error = TypeError(
                f"a batch handler must return None or one outcome for each of its {len(messages)} messages"
            )
        else:
            return [outcome_of(message, _as_error(entry), success=success) for message, entry in zip(messages, result)]
    return [outcome_of(message, error, success=success) for message in messages]


def note_returned(handling: Handling | None, task: Task, result: Any) -> None:
    """Let the plugins around a batch handler see what it returned as failed."""
    if handling is not None and task.route.batch is not None and result is not None:
        for outcome in outcomes_of(task, result, None, success="ack"):
            if isinstance(outcome.error, BaseException):
                handling.failures.append((outcome.message.id, outcome.error))


def _as_error(entry: object) -> BaseException | None:
    if entry is None or entry is True:
        return None
    if isinstance(entry, BaseException):
        return entry
    return TypeError(f"an outcome must be None, True or an exception, not {type(entry).__name__}")
