"""A scope counts for the code that entered it, until it ends, and for nothing else that inherits its context."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

from pgqrs_core.scopes import Scope, Scopes

SCOPES = Scopes("test_scopes")


def enter(batch: object = "batch", **more: Any) -> AbstractContextManager[Scope]:
    return SCOPES.enter("key", batch=batch, **more)


def found(member: str | None = None) -> Any:
    """What the running code would publish into."""
    scope = SCOPES.find("key", member)
    return None if scope is None else scope.batch or scope.connection


def test_a_scope_counts_in_its_block_only() -> None:
    assert found() is None
    with enter():
        assert found() == "batch"
    assert found() is None


def test_the_innermost_counts_and_the_outer_one_again_after_it() -> None:
    with enter("outer"):
        with SCOPES.enter("key", connection="inner"):
            assert found() == "inner"
        assert found() == "outer"


def test_scopes_of_others_are_looked_through() -> None:
    with enter("mine"), SCOPES.enter("other", batch="theirs"):
        assert found() == "mine"


def test_a_scope_with_members_takes_nothing_else() -> None:
    with enter("outer"), enter("members", members={"a"}):
        assert [found("a"), found("b"), found()] == ["members", "outer", "outer"]


def test_a_block_that_raises_ends_its_scope() -> None:
    with pytest.raises(ZeroDivisionError), enter():
        raise ZeroDivisionError
    assert found() is None


def test_what_is_started_in_a_block_is_no_part_of_it_while_it_lasts_and_after_it() -> None:
    seen: dict[str, list[Any]] = {"task": [], "callback": [], "thread": [], "executor": []}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        async def look() -> None:
            seen["task"].append(found())
            await ended.wait()
            seen["task"].append(found())

        with enter():
            task = asyncio.create_task(look())
            loop.call_soon(lambda: seen["callback"].append(found()))
            seen["thread"].append(await asyncio.to_thread(found))
            context = contextvars.copy_context()
            with ThreadPoolExecutor(1) as executor:
                seen["executor"].append(executor.submit(context.run, found).result())
            await asyncio.sleep(0)
            assert found() == "batch"
            loop.call_later(0.001, lambda: seen["callback"].append(found()))
        ended.set()
        await task
        seen["executor"].append(context.run(found))
        seen["thread"].append(await asyncio.to_thread(context.run, found))
        while len(seen["callback"]) < 2:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert seen == {name: [None, None] for name in seen}


def test_what_a_block_awaits_is_part_of_it() -> None:
    async def inner() -> Any:
        await asyncio.sleep(0)
        return found()

    async def main() -> Any:
        with enter():
            return await inner()

    assert asyncio.run(main()) == "batch"


def test_tasks_have_scopes_of_their_own_side_by_side() -> None:
    async def look(name: str) -> list[Any]:
        before = found()
        with enter(name):
            await asyncio.sleep(0.001)
            return [before, found()]

    async def main() -> list[Any]:
        with enter("outer"):
            return await asyncio.gather(*(look(name) for name in "abc"))

    assert asyncio.run(main()) == [[None, "a"], [None, "b"], [None, "c"]]


def test_an_event_loop_that_the_block_runs_is_part_of_it() -> None:
    async def main() -> Any:
        return found()

    with enter():
        assert asyncio.run(main()) == "batch"


def test_a_thread_that_inherits_the_context_is_no_part_of_the_block() -> None:
    seen: list[Any] = []
    with enter():
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(found)))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_greenlet_that_inherits_the_context_is_no_part_of_the_block() -> None:
    greenlet = pytest.importorskip("greenlet").greenlet
    seen: list[Any] = []
    with enter():
        other = greenlet(lambda: seen.append(found()))
        other.gr_context = contextvars.copy_context()
        other.switch()
        assert found() == "batch"
    assert seen == [None]


def test_a_task_of_trio_that_is_started_in_a_block_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # As trio answers: with the task that runs, and with an error where none does.
    tasks: list[object] = [object(), object()]
    lowlevel = SimpleNamespace(current_task=lambda: tasks[0])
    monkeypatch.setitem(sys.modules, "trio", SimpleNamespace(lowlevel=lowlevel))
    with enter():
        assert found() == "batch"
        tasks.reverse()
        assert found() is None
        tasks.reverse()
        assert found() == "batch"


def test_greenlets_of_sqlalchemys_kind_are_part_of_the_task_that_waits_for_them() -> None:
    greenlet = pytest.importorskip("greenlet").greenlet

    async def main() -> Any:
        with enter():
            inner = greenlet(found)
            inner.gr_context = contextvars.copy_context()
            return inner.switch()

    assert asyncio.run(main()) == "batch"


def test_generators_may_end_in_any_order_and_wherever() -> None:
    def numbers(name: str) -> Iterator[int]:
        with enter(name):
            yield 1
            yield 2

    with enter("outer"):
        first, second = numbers("first"), numbers("second")
        next(first)
        next(second)
        first.close()
        assert found() == "second"
        contextvars.copy_context().run(second.close)
        assert found() == "outer"
    assert found() is None


def test_an_asynchronous_generator_may_be_closed_by_another_task() -> None:
    async def numbers() -> AsyncIterator[int]:
        with enter():
            yield 1

    async def close(opened: Any) -> None:
        await opened.aclose()

    async def main() -> Any:
        opened = numbers()
        await opened.__anext__()
        await asyncio.create_task(close(opened))
        return found()

    assert asyncio.run(main()) is None


def test_an_ended_scope_keeps_nothing_alive() -> None:
    class Thing:
        pass

    def start() -> tuple[contextvars.Context, Callable[[], object]]:
        thing = Thing()
        with enter(thing):
            context = contextvars.copy_context()
        return context, weakref.ref(thing)

    context, alive = start()
    gc.collect()
    assert alive() is None
    assert context.run(found) is None


def test_a_stack_of_contexts_works_too() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(enter("one"))
        stack.enter_context(enter("two"))
        assert found() == "two"
    assert found() is None
