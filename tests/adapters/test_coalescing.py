"""Enqueues that are written together fail together, and each is told what it can do about it."""

from __future__ import annotations

import asyncio

import pytest
from pgqrs_native.coalescing import Coalescer

from pgqrs_core.errors import EnqueueUnknown
from pgqrs_core.events import Draft


def test_whoever_has_a_key_is_told_that_a_retry_is_safe_and_the_others_that_it_is_not() -> None:
    async def work() -> list[BaseException | list[int]]:
        gate = asyncio.Event()

        async def write(drafts: list[Draft]) -> list[int]:
            await gate.wait()
            if len(drafts) == 1:
                return [1]
            raise EnqueueUnknown("jobs", "gone", target="db") from OSError("cut")

        coalescer = Coalescer(write)
        keys = [None, "k", None]
        tasks = [asyncio.create_task(coalescer.send([Draft("jobs", b"x", "", idempotency_key=key)])) for key in keys]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    alone, keyed, bare = asyncio.run(work())

    assert alone == [1]
    assert isinstance(keyed, EnqueueUnknown)
    assert isinstance(bare, EnqueueUnknown)
    assert (keyed.keyed, bare.keyed) == (True, False)
    with pytest.raises(EnqueueUnknown, match=r"gone\. Enqueue again with the same idempotency_key"):
        raise keyed
    assert isinstance(keyed.__cause__, OSError)


def test_large_messages_are_not_written_together() -> None:
    """Together they would be more than the server takes, and all of them would fail."""
    written: list[list[int]] = []

    async def work() -> None:
        gate = asyncio.Event()

        async def write(drafts: list[Draft]) -> list[int]:
            await gate.wait()
            written.append([len(draft.body) for draft in drafts])
            return [1] * len(drafts)

        coalescer = Coalescer(write)
        sizes = [1, 3, 3_000_000, 3_000_000, 2, 40_000_000, 5]
        tasks = [asyncio.create_task(coalescer.send([Draft("jobs", bytes(size), "")])) for size in sizes]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(work())

    assert written == [[1], [3, 3_000_000], [3_000_000, 2], [40_000_000], [5]]
