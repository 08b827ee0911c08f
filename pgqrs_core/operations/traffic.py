"""Enqueue and receive as every adapter uses them: with the plugins' hooks around, once per batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pgqrs_core.effects import Op
from pgqrs_core.events import ConsumeBatch, Draft, EnqueueBatch, Enqueued
from pgqrs_core.messages import Delivery, Queue
from pgqrs_core.operations.claim import receive
from pgqrs_core.operations.enqueue import enqueue
from pgqrs_core.operations.settle import Failure, ack, nack

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.marks import Marks
    from pgqrs_core.plugins import Plugins

__all__ = ["incoming", "outgoing", "put_back"]


def outgoing(
    queue: Queue,
    drafts: list[Draft],
    *,
    plugins: Plugins,
    adapter: str,
    doorbell: Doorbell | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Op[list[int]]:
    """Enqueue, letting plugins change the drafts before and see the result after the commit.

    Inside the caller's transaction (no ``doorbell``) nothing is observed: it may yet roll back.
    """
    hooks = plugins.hooks
    if hooks.transforms_enqueue:
        batch = EnqueueBatch(queue.name, adapter, drafts)
        hooks.before_enqueue(batch)
        drafts = batch.drafts
    if not hooks.observes_enqueue or doorbell is None:
        return (yield from enqueue(queue, drafts, doorbell))
    began = clock()
    ids = yield from enqueue(queue, drafts, doorbell)
    size = sum(len(draft.body) for draft in drafts)
    hooks.after_enqueue(Enqueued(queue.name, adapter, ids, len(ids), size, clock() - began))
    return ids


def incoming(
    queue: Queue,
    marks: Marks,
    *,
    limit: int,
    lease: float,
    patience: float,
    plugins: Plugins,
    adapter: str,
) -> Op[list[Delivery]]:
    """Claim, letting plugins change what was claimed before anybody decodes it."""
    found = yield from receive(queue, marks, limit=limit, lease=lease, patience=patience)
    hooks = plugins.hooks
    if not found or not hooks.transforms_consume:
        return found
    batch = ConsumeBatch(queue.name, adapter, found)
    try:
        hooks.before_consume(batch)
    except Exception as error:
        # No handler may see what a plugin could not prepare.
        yield from put_back(queue, found, error)
        raise
    if batch.dropped:
        yield from ack(queue, [item.lease for item, _ in batch.dropped])
    if batch.buried:
        yield from nack(queue, [_burial(item, reason) for item, reason in batch.buried])
    return batch.deliveries


def put_back(queue: Queue, found: Sequence[Delivery], error: Exception) -> Op[None]:
    """Give back what a broken plugin kept from its reader; back-off and the limit of attempts apply as to any failure."""
    reason = {"type": type(error).__name__, "message": str(error)}
    yield from nack(queue, [Failure(item.lease, queue.options.backoff(item.attempt), reason) for item in found])


def _burial(item: Delivery, reason: str) -> Failure:
    error: dict[str, Any] = {"type": "Rejected", "message": reason}
    return Failure(item.lease, error=error, bury=True)
