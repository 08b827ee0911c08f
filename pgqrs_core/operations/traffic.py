"""Enqueue and receive as every adapter uses them: with the plugins' hooks around, once per batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Literal

from pgqrs_core.effects import Op
from pgqrs_core.errors import PgqrsError
from pgqrs_core.events import Claimed, ConsumeBatch, Consumed, Draft, EnqueueBatch, Enqueued, Outcome, OutcomeKind
from pgqrs_core.interrupts import FAILURES
from pgqrs_core.logs import error_text
from pgqrs_core.messages import Delivery, Queue
from pgqrs_core.operations.claim import is_last, receive
from pgqrs_core.operations.enqueue import enqueue
from pgqrs_core.operations.settle import Failure, ack, nack, postpone, release

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.marks import Marks
    from pgqrs_core.plugins import Plugins

__all__ = ["announce", "incoming", "outgoing", "prepared", "put_back", "written"]

#: Claims in a row that are made in place of messages that no handler is to see.
_MOST_CLAIMS: Final = 20


def outgoing(
    queue: Queue,
    drafts: list[Draft],
    *,
    plugins: Plugins,
    adapter: str,
    doorbell: Doorbell | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Op[list[int]]:
    """Return the operation that enqueues, letting plugins change the drafts before and see the result after the commit.

    Inside the caller's transaction (no ``doorbell``) nothing is observed: it may yet roll back.
    """
    # An operation within an operation takes a microsecond more at each step: a layer with nothing to do is left out.
    if plugins.hooks.surrounds_enqueue:
        return _surrounded(queue, drafts, plugins, adapter, doorbell, clock)
    return written(queue, drafts, plugins, adapter, doorbell, clock)


def _surrounded(
    queue: Queue,
    drafts: list[Draft],
    plugins: Plugins,
    adapter: str,
    doorbell: Doorbell | None,
    clock: Callable[[], float],
) -> Op[list[int]]:
    batch = EnqueueBatch(queue.name, adapter, drafts)
    with plugins.hooks.around_enqueue(batch):
        batch.ids = yield from written(queue, drafts, plugins, adapter, doorbell, clock)
    return list(batch.ids)


def written(
    queue: Queue,
    drafts: list[Draft],
    plugins: Plugins,
    adapter: str,
    doorbell: Doorbell | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Op[list[int]]:
    """Return the operation of `outgoing`, for whoever has surrounded it already."""
    drafts = prepared(queue.name, drafts, plugins=plugins, adapter=adapter)
    if not plugins.hooks.observes_enqueue or doorbell is None:
        return enqueue(queue, drafts, doorbell)
    return _observed(queue, drafts, plugins, adapter, doorbell, clock)


def _observed(
    queue: Queue, drafts: list[Draft], plugins: Plugins, adapter: str, doorbell: Doorbell, clock: Callable[[], float]
) -> Op[list[int]]:
    # Counted while they are in the processor's caches: afterwards each would cost as much as all of them do now.
    size = _size(drafts)
    began = clock()
    ids = yield from enqueue(queue, drafts, doorbell)
    plugins.hooks.after_enqueue(Enqueued(queue.name, adapter, ids, len(ids), size, clock() - began))
    return ids


def prepared(queue: str, drafts: list[Draft], *, plugins: Plugins, adapter: str, encode: bool = True) -> list[Draft]:
    """Return what plugins make of drafts before they are stored.

    Without ``encode`` codecs are left out: the caller applies them once it knows where each message goes.
    """
    hooks = plugins.hooks
    if not (hooks.concern_enqueue(queue, drafts) if encode else hooks.transforms_enqueue):
        return drafts
    # Plugins change them in place, and the caller may come with the same ones again when a queue was made anew.
    batch = EnqueueBatch(queue, adapter, [_own(draft) for draft in drafts])
    hooks.before_enqueue(batch, encode=encode)
    return batch.drafts


def _own(draft: Draft) -> Draft:
    own = copy(draft)
    if own.headers is not None:
        own.headers = dict(own.headers)
    return own


def announce(
    queue: str, drafts: Sequence[Draft], ids: list[int], seconds: float, *, plugins: Plugins, adapter: str
) -> None:
    """Tell plugins what was stored and committed."""
    if plugins.hooks.observes_enqueue:
        plugins.hooks.after_enqueue(Enqueued(queue, adapter, ids, len(ids), _size(drafts), seconds))


def _size(drafts: Sequence[Draft]) -> int:
    return len(drafts[0].body) if len(drafts) == 1 else sum([len(draft.body) for draft in drafts])


def incoming(
    queue: Queue,
    marks: Marks,
    *,
    limit: int,
    lease: float,
    patience: float,
    plugins: Plugins,
    adapter: str,
    managed: bool = False,
    bury: bool = True,
    on_unknown: Literal["retry", "bury"] = "retry",
    clock: Callable[[], float] = time.time,
) -> Op[list[Delivery]]:
    """Claim, letting plugins see and change what was claimed before anybody decodes it.

    ``managed`` says that the adapter calls handlers, surrounded by plugins, for what was claimed. Without ``bury`` it
    is also the adapter that dead-letters what has used up its attempts. ``on_unknown`` says what becomes of messages that
    need what is not loaded in this process.

    Others are claimed in place of those that no handler is to see: a claim that brings less than it asked for means that
    there is no more.
    """
    watch = plugins.hooks.observes_claim
    deadline = clock() + patience
    kept: list[Delivery] = []
    looks: list[float] = []
    for _ in range(_MOST_CLAIMS):
        # Without patience there is one look, at once.
        if watch:
            looks.append(clock())
        try:
            found = yield from receive(
                queue,
                marks,
                limit=limit - len(kept),
                lease=lease,
                patience=patience,
                bury=bury,
                on_look=(lambda: looks.append(clock())) if watch and patience > 0 else None,
            )
            if not found:
                break
            try:
                batch = _seen(queue, found, plugins, adapter, managed, looks, clock)
            except FAILURES as error:
                # No handler may see what a plugin could not prepare.
                yield from put_back(queue, found, error)
                raise
            if batch is not None:
                yield from _discard(queue, batch, plugins, on_unknown, clock())
        except PgqrsError:
            if kept:
                return kept
            raise
        if kept and is_last(queue, found):
            # It may kill this process, and must not take others with it.
            yield from release(queue, [found[0].lease])
            return kept
        kept += found if batch is None else batch.deliveries
        if batch is None or batch.count == len(batch.deliveries) or len(kept) >= limit or is_last(queue, kept):
            break
        patience = 0.0 if kept else max(deadline - clock(), 0.0)
    return kept


def _seen(
    queue: Queue,
    found: list[Delivery],
    plugins: Plugins,
    adapter: str,
    managed: bool,
    looks: Sequence[float],
    clock: Callable[[], float],
) -> ConsumeBatch | None:
    """Show plugins what a claim has found; return what they made of it, None if none of them wanted to."""
    hooks = plugins.hooks
    if hooks.observes_claim:
        now = clock()
        hooks.after_claim(Claimed(queue.name, adapter, found, now, max(now - looks[-1], 0.0), managed))
    if not hooks.concern_consume(queue.name, found):
        return None
    batch = ConsumeBatch(queue.name, adapter, found)
    hooks.before_consume(batch)
    return batch


def _discard(
    queue: Queue, batch: ConsumeBatch, plugins: Plugins, on_unknown: Literal["retry", "bury"], now: float
) -> Op[None]:
    """Settle what no handler is to see, and say so."""
    if batch.count == len(batch.deliveries):
        return
    if on_unknown == "bury":
        batch.buried, batch.postponed = [*batch.buried, *batch.postponed], []
    held = yield from ack(queue, [item.lease for item, _ in batch.dropped])
    fates = yield from nack(queue, [_burial(item, reason) for item, reason in batch.buried])
    reasons = [_reason(reason) for _, reason in batch.postponed]
    left = yield from postpone(queue, [item.lease for item, _ in batch.postponed], reasons)
    if plugins.hooks.observes_consume:
        outcomes = [_outcome(item, "acked" if kept else "lost", now) for (item, _), kept in zip(batch.dropped, held)]
        outcomes += [_outcome(item, fate, now, reason) for (item, reason), fate in zip(batch.buried, fates)]
        outcomes += [_outcome(item, "released" if ok else "lost", now) for (item, _), ok in zip(batch.postponed, left)]
        plugins.hooks.after_consume(Consumed.of(queue.name, batch.adapter, outcomes))


def _outcome(item: Delivery, kind: OutcomeKind, now: float, error: str | None = None) -> Outcome:
    return Outcome(item.id, kind, item.attempt, max(now - item.enqueued_at.timestamp(), 0.0), None, error)


def put_back(queue: Queue, found: Sequence[Delivery], error: BaseException) -> Op[None]:
    """Give back what a broken plugin kept from its reader; back-off and the limit of attempts apply as to any failure."""
    reason = {"type": type(error).__name__, "message": error_text(error)}
    delay = queue.options.backoff
    yield from nack(queue, [Failure(item.lease, delay(item.attempt), reason, attempt=item.attempt) for item in found])


def _burial(item: Delivery, reason: str) -> Failure:
    return Failure(item.lease, error=_reason(reason), bury=True, attempt=item.attempt)


def _reason(text: str) -> dict[str, Any]:
    return {"type": "Rejected", "message": text}
