"""What both clients do, as operations: payloads to drafts, deliveries to messages, outcomes to reports."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timezone
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pgqrs_core.effects import Op
from pgqrs_core.errors import DecoderMissing, InvalidArgument, PayloadError, PgqrsError
from pgqrs_core.events import Consumed, Draft, Handling, Outcome, OutcomeKind
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Delivery, Queue
from pgqrs_core.operations.settle import Failure, Fate, ack, archive, nack, postpone, release
from pgqrs_core.operations.traffic import incoming, put_back
from pgqrs_native.message import Message

if TYPE_CHECKING:
    from pgqrs_core.dispatch import Hooks
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.plugins import Plugins

__all__ = ["Mismatch", "compose", "describe_error", "failing", "reading", "settling", "surrounding"]

Mismatch: TypeAlias = Literal["bury", "return"]

ADAPTER: Final = "native"
_log = get_logger("pgqrs.consumer")
#: Characters of a traceback that a dead letter keeps, the innermost part.
_TRACE: Final = 4_000
_KINDS: Final[dict[str, OutcomeKind]] = {
    "ack": "acked",
    "archive": "archived",
    "release": "released",
    "postpone": "released",
}
_NOTHING: Final = nullcontext()


def compose(
    plugins: Plugins,
    queue: str,
    payloads: Iterable[object],
    *,
    priority: int = 0,
    delay: float | None = None,
    at: datetime | None = None,
    ttl: float | None = None,
    headers: dict[str, Any] | None = None,
    content_type: str | None = None,
    idempotency_keys: Iterable[str | None] | None = None,
) -> list[Draft]:
    """Encode payloads. ``message_type`` goes into the headers of those that have a type of their own."""
    if at is not None:
        if delay is not None:
            raise InvalidArgument("at", at, "None when a delay is given")
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise InvalidArgument("at", at, "a datetime with a time zone")
        try:
            at = at.astimezone(timezone.utc)
        except OverflowError as error:
            raise InvalidArgument("at", at, "a datetime with a time zone, within the years 1 to 9999 in UTC") from error
    if headers is not None and not (isinstance(headers, dict) and all(isinstance(key, str) for key in headers)):
        raise InvalidArgument("headers", type(headers), "a dict with text keys")
    encode = plugins.serializers.encode
    if content_type is None:
        content_type = plugins.serializers.default_for(queue)
    drafts: list[Draft] = []
    known: dict[Any, dict[str, Any] | None] = {}
    for payload in payloads:
        kind, body = encode(payload, content_type)
        cls: Any = type(payload)
        if cls not in known:
            name = plugins.serializers.type_name(cls)
            known[cls] = {"message_type": name, **(headers or {})} if name else headers
        shared = known[cls]
        drafts.append(Draft(queue, body, kind, shared, priority, delay, at, ttl))
    if idempotency_keys is not None:
        _give_keys(drafts, idempotency_keys)
    return drafts


def _give_keys(drafts: list[Draft], keys: Iterable[str | None]) -> None:
    # A text is an iterable of texts too, and one letter each is not what its author meant.
    given = None if isinstance(keys, str) else list(keys)
    if given is None or len(given) != len(drafts):
        raise InvalidArgument(
            "idempotency_keys",
            keys if given is None else f"{len(given)} keys",
            f"one for each of {len(drafts)} payloads",
        )
    for draft, key in zip(drafts, given):
        draft.idempotency_key = key


def reading(
    queue: Queue,
    marks: Marks,
    type_: Any,
    *,
    count: int,
    lock_time: float | None,
    wait: float,
    mismatch: Mismatch,
    plugins: Plugins,
) -> Op[list[Message[Any]]]:
    """Claim and decode. Whatever cannot be decoded is buried with the reason, or returned with it.

    What another process may be able to decode is not buried, but postponed.
    """
    lease = queue.options.lease_seconds if lock_time is None else lock_time
    deadline = time.monotonic() + wait
    while True:
        found = yield from incoming(
            queue, marks, limit=count, lease=lease, patience=wait, plugins=plugins, adapter=ADAPTER
        )
        try:
            messages, broken = _decode(queue, found, type_, lease, mismatch, plugins)
        except PgqrsError as error:
            # Not the messages' fault: a serializer is broken. They must not stay leased, for nobody has them.
            yield from put_back(queue, found, error)
            raise
        # A batch of which nothing is left tells nothing about what else is there.
        if not broken:
            return messages
        unknown = [message for message in broken if isinstance(message.error, DecoderMissing)]
        broken = [message for message in broken if not isinstance(message.error, DecoderMissing)]
        if unknown:
            text = "%r and %d more are left to a process that can read them: %s"
            _log.warning(text, unknown[0], len(unknown) - 1, unknown[0].error, extra=unknown[0].log_fields)
            yield from _postponing(queue, unknown, [message.error for message in unknown])
            if plugins.hooks.observes_consume:
                _report(plugins, queue, unknown, ["lost" if one.lease_lost else "released" for one in unknown])
        if broken:
            errors = [message.error for message in broken]
            yield from failing(
                queue, broken, delay=0.0, errors=errors, bury=True, plugins=plugins, doorbell=None, trace=False
            )
        if messages:
            return messages
        wait = max(deadline - time.monotonic(), 0.0)


def _decode(
    queue: Queue, found: Sequence[Delivery], type_: Any, lease: float, mismatch: Mismatch, plugins: Plugins
) -> tuple[list[Message[Any]], list[Message[Any]]]:
    """Return the messages for the reader, and those to be buried."""
    decode = plugins.serializers.decode
    now = time.time()
    messages: list[Message[Any]] = []
    broken: list[Message[Any]] = []
    for delivery in found:
        error: PayloadError | None = None
        payload: Any = None
        try:
            payload = decode(delivery.content_type, delivery.body, type_)
        except PayloadError as failure:
            error = failure
        message = Message(queue, delivery, payload, claimed_at=now, lease_seconds=lease, error=error)
        if error is None:
            message.began_at = now
        (broken if error is not None and mismatch == "bury" else messages).append(message)
    return messages, broken


def _postponing(
    queue: Queue, messages: Sequence[Message[Any]], errors: Sequence[BaseException | str | None]
) -> Op[list[bool]]:
    reasons = [describe_error(error or "it cannot be handled here", trace=False) for error in errors]
    kept = yield from postpone(queue, [message.lease for message in messages], reasons)
    for message, alive in zip(messages, kept):
        message.settled = True
        message.lease_lost = not alive
    return kept


def surrounding(plugins: Plugins, messages: Sequence[Message[Any]]) -> AbstractContextManager[Handling | None]:
    """Return what surrounds a call of a handler: what plugins have for it, and a note of when it began and ended.

    What it yields is where a batch handler's failures are noted; None if no plugin would look.
    """
    hooks = plugins.hooks
    if not messages or not (hooks.surrounds_handler or hooks.observes_consume):
        return _NOTHING
    return _surrounded(hooks, messages)


@contextmanager
def _surrounded(hooks: Hooks, messages: Sequence[Message[Any]]) -> Iterator[Handling | None]:
    began = time.time()
    for message in messages:
        message.began_at = began
    try:
        if hooks.surrounds_handler:
            handled = [message.handled for message in messages]
            handling = Handling(messages[0].queue, ADAPTER, handled)
            with hooks.around_handler(handling):
                yield handling
        else:
            yield None
    finally:
        ended = time.time()
        for message in messages:
            message.ended_at = ended


def settling(
    queue: Queue,
    action: Literal["ack", "archive", "release", "postpone"],
    messages: Sequence[Message[Any]],
    *,
    errors: Sequence[BaseException | str | None] = (),
    plugins: Plugins,
    doorbell: Doorbell | None,
) -> Op[list[bool]]:
    """Ack, archive, release or postpone messages of one queue; True where the lease still held.

    ``errors`` say why they are postponed, one for each. Without a ``doorbell`` it is done inside the caller's transaction.
    """
    leases = [message.lease for message in messages]
    if action == "postpone":
        kept = yield from _postponing(queue, messages, errors)
    elif action == "release":
        kept = yield from release(queue, leases, doorbell)
    else:
        kept = yield from (ack if action == "ack" else archive)(queue, leases)
    for message, alive in zip(messages, kept):
        message.settled = True
        message.provisional = doorbell is None
        message.lease_lost = not alive
    # In the caller's transaction nothing has happened yet.
    if plugins.hooks.observes_consume and doorbell is not None:
        kind = _KINDS[action]
        _report(
            plugins, queue, messages, [kind] * len(kept) if all(kept) else [kind if alive else "lost" for alive in kept]
        )
    return kept


def failing(
    queue: Queue,
    messages: Sequence[Message[Any]],
    *,
    delay: float | None,
    errors: Sequence[BaseException | str | None],
    bury: bool,
    plugins: Plugins,
    doorbell: Doorbell | None,
    trace: bool = True,
    draw: Callable[[], float] = random.random,
) -> Op[list[Fate]]:
    """Nack messages of one queue: retry after ``delay`` or the queue's back-off, or bury.

    With ``trace`` their last errors keep the end of the traceback.
    """
    failures = [
        Failure(
            message.lease,
            _backoff(queue, message.attempt, draw) if delay is None else delay,
            describe_error(error, trace=trace) if error is not None else None,
            bury,
            message.attempt,
        )
        for message, error in zip(messages, errors)
    ]
    fates = yield from nack(queue, failures, doorbell)
    for message, fate in zip(messages, fates):
        message.settled = True
        message.lease_lost = fate == "lost"
    if plugins.hooks.observes_consume:
        texts = [None if error is None else error_text(error).split("\n")[0][:200] for error in errors]
        _report(plugins, queue, messages, fates, texts)
    return fates


def _backoff(queue: Queue, attempt: int, draw: Callable[[], float]) -> float:
    return queue.options.backoff(attempt) * (1 - queue.options.backoff_jitter * draw())


def _report(
    plugins: Plugins,
    queue: Queue,
    messages: Sequence[Message[Any]],
    kinds: Sequence[OutcomeKind],
    errors: Sequence[str | None] | None = None,
) -> None:
    now = time.time()
    spent = [
        None if (began_at := message.began_at) is None or kind == "released" else (message.ended_at or now) - began_at
        for message, kind in zip(messages, kinds)
    ]

    def outcomes() -> list[Outcome]:
        return [
            Outcome(
                (delivery := message._delivery).id,
                kind,
                delivery.attempt,
                # Two clocks are compared.
                max(message.claimed_at - delivery.enqueued_at.timestamp(), 0.0),
                seconds,
                error,
            )
            for message, kind, seconds, error in zip(messages, kinds, spent, errors or repeat(None))
        ]

    plugins.hooks.after_consume(Consumed(queue.name, ADAPTER, kinds, spent, outcomes))


def describe_error(error: BaseException | str, *, trace: bool = True) -> dict[str, Any]:
    """Return what a dead letter keeps of an error: its type, message, fields and the end of its traceback."""
    if isinstance(error, str):
        return {"type": "Rejected", "message": error_text(error)[:2_000]}
    described: dict[str, Any] = {"type": type(error).__name__, "message": error_text(error)[:2_000]}
    if isinstance(error, PayloadError):
        described.update({key: error_text(value) for key, value in vars(error).items() if not key.startswith("_")})
    if trace and error.__traceback__ is not None:
        described["traceback"] = error_text("".join(traceback.format_exception(error)))[-_TRACE:]
    return described
