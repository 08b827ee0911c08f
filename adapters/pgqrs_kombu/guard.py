"""What is no task, and no control message, does not end a Celery worker.

Celery's worker expects messages that Celery wrote. Some that it did not write raise an error in the worker's main loop,
which ends the worker; the message is then given to the next one. Here such an error is the message's own: it becomes a dead
letter with the reason, or goes back if the pool of this worker could not take it, and the worker goes on.

==========================  ===========================================================================================
headers of wrong types      dead, before a task is made of it: a time limit that is a text ends the thread that watches
                            all time limits
an error while a task is    dead, with the error as its reason
made of a message
an error while the pool     it is delivered again, up to the limit of deliveries; dead if it had begun
takes a task
what Celery cannot decode   dead, with Celery's reason. Celery acks the one and rejects the other without a word
or does not know
control messages            ignored with a warning; the mailbox stays as it is, and so does a worker that is told to consume
                            from a queue that cannot be
==========================  ===========================================================================================
"""

from __future__ import annotations

import importlib
import math
import sys
import uuid
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Final

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.logs import error_text, get_logger

__all__ = ["guard_worker", "reason_against", "without_odd_numbers"]

_log = get_logger("pgqrs.kombu")

#: What is loaded in a worker, and in no other process.
_WORKER: Final = "celery.worker.consumer.consumer"
_IDS: Final = (str, bytes, int, uuid.UUID)
#: Beyond this a Lamport clock is no count of messages, and each program that sees it would send it on.
_LATEST: Final = 2**53
#: Headers of control messages, replies and events with which Kombu calculates.
_NUMBERS: Final = ("clock", "expires")


def guard_worker() -> None:
    """Guard Celery's worker, and each program that asks workers for something. May be repeated."""
    control = sys.modules.get("celery.app.control")
    if control is not None:
        _wrap(control, "flatten_reply", _mappings)
    if _WORKER not in sys.modules:
        return
    consumer = sys.modules[_WORKER].Consumer
    _wrap(consumer, "create_task_handler", _guarding)
    _wrap(consumer, "on_decode_error", _explaining(lambda message, exc: exc))
    _wrap(consumer, "on_unknown_message", _explaining(lambda body, message: "it is no task", of=1))
    _wrap(consumer, "on_unknown_task", _explaining(lambda body, message, exc: f"no task is registered as {exc}", of=1))
    _wrap(consumer, "on_invalid_task", _explaining(lambda body, message, exc: exc, of=1))
    _wrap(consumer, "add_task_queue", _changing)
    _wrap(consumer, "cancel_task_queue", _changing)
    _wrap(importlib.import_module("celery.worker.strategy"), "create_request_cls", _giving_back)
    _wrap(importlib.import_module("celery.worker.pidbox").Pidbox, "on_message", _obeying)


def reason_against(headers: Any) -> str | None:
    """Return why headers are not those of a task; None if they may be, or if they are not in this form (protocol 2)."""
    if not isinstance(headers, dict) or "task" not in headers:
        return None
    given = headers.get
    if not isinstance(given("task"), str):
        return "its header 'task' is no text"
    if not isinstance(given("id"), _IDS) or isinstance(given("id"), bool):
        return "its header 'id' is no id of a task"
    for name in ("root_id", "parent_id", "group"):
        if given(name) is not None and not isinstance(given(name), _IDS):
            return f"its header {name!r} is no id"
    if given("shadow") is not None and not isinstance(given("shadow"), str):
        return "its header 'shadow' is no text"
    if not _is_count(given("retries")) or not _is_count(given("replaced_task_nesting")):
        return "its header 'retries' or 'replaced_task_nesting' is no number"
    limits = given("timelimit")
    if limits is not None and not (
        isinstance(limits, (list, tuple)) and len(limits) == 2 and all(map(_is_limit, limits))
    ):
        return "its header 'timelimit' is no pair of numbers"
    stamped = given("stamped_headers")
    if stamped is not None and not (
        isinstance(stamped, (list, tuple)) and all(isinstance(name, str) for name in stamped)
    ):
        return "its header 'stamped_headers' is no list of names"
    if not isinstance(given("stamps"), (dict, type(None))):
        return "its header 'stamps' is no mapping"
    return None


def without_odd_numbers(headers: dict[str, Any]) -> None:
    """Remove what is no number from the headers of a message in an ephemeral queue, where a number is expected."""
    for name in _NUMBERS:
        value = headers.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LATEST:
            del headers[name]


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and abs(value) < 2**31)


def _is_limit(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1e9


def _wrap(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    original = getattr(owner, name, None)
    if original is not None and not hasattr(original, "__wrapped__"):
        setattr(owner, name, wrap(original))


def _refuse_of(message: Any) -> Callable[..., None] | None:
    """Return how a message becomes a dead letter; None if it came by another broker, or is not held."""
    channel = message.channel
    refuse: Callable[..., None] | None = getattr(channel, "refuse", None)
    return refuse if refuse is not None and channel.has(message.delivery_tag) else None


def _refuse(message: Any, reason: object) -> bool:
    """Make a dead letter of a message; False if that is not ours to do."""
    refuse = _refuse_of(message)
    if refuse is None or message.acknowledged:
        return False
    kind = type(reason).__name__ if isinstance(reason, BaseException) else "NotATask"
    refuse(message.delivery_tag, {"type": kind, "message": error_text(reason)[:10_000]})
    message._state = "REJECTED"
    return True


def _guarding(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def create_task_handler(self: Any, *args: Any, **options: Any) -> Callable[[Any], None]:
        handle = original(self, *args, **options)
        passing = (*self.connection_errors, MemoryError)

        def on_task_received(message: Any) -> None:
            reason = reason_against(message.headers) if _refuse_of(message) is not None else None
            if reason is not None:
                _log.error(
                    "message %r is no task of Celery's and becomes a dead letter: %s", message.delivery_tag, reason
                )
                _refuse(message, reason)
                return
            try:
                handle(message)
            except passing:
                raise
            except Exception as error:
                if _refuse_of(message) is None and not message.acknowledged:
                    raise
                _log.exception("message %r cannot be taken as a task", message.delivery_tag)
                _refuse(message, error)

        return on_task_received

    return create_task_handler


def _explaining(explain: Callable[..., object], of: int = 0) -> Callable[[Any], Any]:
    """Let a method that acks or rejects a message say why; the message is its argument number ``of``."""

    def wrap(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def call(self: Any, *args: Any) -> None:
            message = args[of]
            if _refuse_of(message) is not None:
                reason = explain(*args)
                message.ack = message.reject = partial(_settle, message, reason)
            original(self, *args)

        return call

    return wrap


def _settle(message: Any, reason: object, *_: Any, **__: Any) -> None:
    _refuse(message, reason)


def _giving_back(original: Callable[..., type]) -> Callable[..., type]:
    @wraps(original)
    def create_request_cls(*args: Any, **options: Any) -> type:
        made: Any = original(*args, **options)

        class Request(made):  # type: ignore[misc]
            def execute_using_pool(self, pool: Any, **kwargs: Any) -> Any:
                try:
                    return super().execute_using_pool(pool, **kwargs)
                except Exception as error:
                    if not _could_not_run(self, error):
                        raise
                    # What Celery's worker expects of a task that is not to run: it frees its place in the pool.
                    raise importlib.import_module("celery.exceptions").TaskRevokedError(self.id) from error

        return Request

    return create_request_cls


def _could_not_run(request: Any, error: Exception) -> bool:
    """Settle the message of a task that the pool did not take, or that broke Celery's own code; False to let it pass."""
    exceptions = importlib.import_module("celery.exceptions")
    message = request.message
    if isinstance(error, (exceptions.TaskRevokedError, MemoryError, *request.connection_errors)):
        return False
    if getattr(message.channel, "refuse", None) is None:
        return False
    _log.exception("task %s cannot be run", request.humaninfo())
    importlib.import_module("celery.worker.state").task_ready(request)
    if request.acknowledged or _refuse_of(message) is None:
        return True
    request.acknowledged = True
    if request.time_start is None and not message.channel.is_last(message.delivery_tag):
        message.channel.give_up(message.delivery_tag)
        message._state = "REQUEUED"
    else:
        _refuse(message, error)
    return True


def _changing(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def change(self: Any, queue: Any, *args: Any, **options: Any) -> None:
        queues = self.app.amqp.queues
        known = set(queues)
        try:
            if not isinstance(queue, str):
                raise InvalidArgument("queue", type(queue), "a name")
            original(self, queue, *args, **options)
        except self.connection_errors:
            raise
        except Exception as error:
            # A control message asked for it. It must not be declared again after each reconnect, either.
            _log.warning("the queues of this worker stay as they are: %s", error_text(error))
            if isinstance(queue, str) and queue not in known:
                queues.deselect(queue)
                queues.pop(queue, None)

    return change


def _mappings(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(original)
    def flatten_reply(reply: Any) -> Any:
        return original([item for item in reply if isinstance(item, dict)])

    return flatten_reply


def _obeying(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def on_message(self: Any, body: Any, message: Any) -> None:
        if getattr(message.channel, "refuse", None) is None:
            original(self, body, message)
            return
        problem = _problem_with(body)
        if problem is not None:
            _log.warning("a control message is ignored: %s", problem)
            return
        self._forward_clock()
        try:
            self.node.handle_message(body, message)
        except KeyError as error:
            _log.error("there is no control command %s", error)
        except self.c.connection_errors:
            self.reset()
        except Exception:
            # The channel is none the worse for it; to open another one would lose the messages that wait.
            _log.exception("a control command failed")

    return on_message


def _problem_with(body: Any) -> str | None:
    """Return why a message is no control message; None if it may be one."""
    if not isinstance(body, dict) or not isinstance(body.get("method"), str):
        return "it names no method"
    arguments, reply_to = body.get("arguments"), body.get("reply_to")
    if not (arguments is None or (isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments))):
        return "its arguments are no mapping"
    if not isinstance(body.get("destination"), (list, tuple, str, type(None))):
        return "its destination is no list of names"
    if not all(isinstance(body.get(name), (str, type(None))) for name in ("ticket", "pattern", "matcher")):
        return "its ticket, pattern or matcher is no text"
    if reply_to and not (
        isinstance(reply_to, dict) and all(isinstance(reply_to.get(name), str) for name in ("exchange", "routing_key"))
    ):
        return "its address for the reply is none"
    return None
