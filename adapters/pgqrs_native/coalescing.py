"""Concurrent enqueues of one event loop, written together.

While one statement is on its way, what other tasks want to enqueue gathers, and goes with the next. Nobody waits for
company: an enqueue that finds nothing under way is written at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pgqrs_core.errors import EnqueueUnknown, PgqrsError, Unavailable
from pgqrs_core.events import Draft
from pgqrs_core.supervision import start_task
from pgqrs_core.weights import COALESCED_BYTES, weight

__all__ = ["Coalescer"]

#: Messages written by one statement at most, and bytes, see `COALESCED_BYTES`; more wait for the next.
_MOST: Final = 1_000


class _Share:
    __slots__ = ("bytes", "done", "drafts")

    def __init__(self, drafts: list[Draft], done: asyncio.Future[list[int]]) -> None:
        self.drafts = drafts
        self.done = done
        self.bytes = weight(drafts)


class Coalescer:
    """Gathers the enqueues of one queue.

    Args:
        write: stores messages, all or none, and returns their ids.
    """

    def __init__(self, write: Callable[[list[Draft]], Awaitable[list[int]]]) -> None:
        self._write = write
        self._shares: list[_Share] = []
        self._task: asyncio.Task[None] | None = None

    async def send(self, drafts: list[Draft]) -> list[int]:
        """Store messages with whatever else is being enqueued, and return their ids."""
        if self._task is None:
            # Alone: no detour through another task, for the next to come may be far off.
            self._task = asyncio.current_task()
            try:
                return await self._write(drafts)
            finally:
                self._task = start_task(self._drain, name="pgqrs-enqueue", restart=False) if self._shares else None
        share = _Share(drafts, asyncio.get_running_loop().create_future())
        self._shares.append(share)
        return await share.done

    async def _drain(self) -> None:
        try:
            while self._shares:
                await self._write_some()
        finally:
            self._task = None

    async def _write_some(self) -> None:
        taken: list[_Share] = []
        count = size = 0
        while self._shares:
            share = self._shares[0]
            if taken and (count + len(share.drafts) > _MOST or size + share.bytes > COALESCED_BYTES):
                break
            del self._shares[0]
            # Whoever gave up waiting before anything was sent does not want it sent.
            if not share.done.done():
                taken.append(share)
                count += len(share.drafts)
                size += share.bytes
        if not taken:
            return
        try:
            ids = await self._write([draft for share in taken for draft in share.drafts])
        except Unavailable as error:
            # The outcome is the same for all, known or not; writing again could double what was stored.
            for share in taken:
                _fail(share, _said_to(share, error))
        except PgqrsError as error:
            if len(taken) == 1:
                _fail(taken[0], error)
            else:
                await self._one_by_one(taken)
        except BaseException as error:
            for share in taken:
                _fail(share, error)
            raise
        else:
            for share in taken:
                part, ids = ids[: len(share.drafts)], ids[len(share.drafts) :]
                if not share.done.done():
                    share.done.set_result(part)

    async def _one_by_one(self, shares: list[_Share]) -> None:
        """Nothing was stored because of one of them: let each answer for itself."""
        for share in shares:
            try:
                ids = await self._write(share.drafts)
            except PgqrsError as error:
                _fail(share, error)
            else:
                if not share.done.done():
                    share.done.set_result(ids)


def _said_to(share: _Share, error: Unavailable) -> Unavailable:
    """Return the error with the remedy for the messages of this share: whether they had keys, whatever the others had."""
    if not isinstance(error, EnqueueUnknown):
        return error
    keyed = all(draft.idempotency_key is not None for draft in share.drafts)
    said = EnqueueUnknown(error.queue, error.reason, target=error.target, keyed=keyed)
    said.__cause__ = error.__cause__
    return said


def _fail(share: _Share, error: BaseException) -> None:
    if not share.done.done():
        share.done.set_exception(error)
