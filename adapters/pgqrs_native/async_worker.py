"""A worker on asyncio: handlers are coroutines, run as tasks.

What it does is in :mod:`pgqrs_native.duties`; the threaded twin is :mod:`pgqrs_native.worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from pgqrs_core.logs import get_logger
from pgqrs_core.supervision import start_task
from pgqrs_native.async_client import AsyncClient
from pgqrs_native.courses import follow_async
from pgqrs_native.duties import LATE, TICK, Duties
from pgqrs_native.load import Load
from pgqrs_native.routing import Task, conclude, note_returned, outcomes_of
from pgqrs_native.signals import HardStop, Signals
from pgqrs_native.traffic import surrounding

__all__ = ["AsyncWorker"]

_log = get_logger("pgqrs.worker")


def _call(function: Callable[..., Any], argument: Any) -> tuple[Any, BaseException | None]:
    """Call a handler on a thread. A future cannot carry each error: of a ``StopIteration`` its awaiter never hears."""
    try:
        return function(argument), None
    except BaseException as error:
        return None, error


class AsyncWorker(Duties):
    """Runs coroutines for the messages of some queues until it is stopped. Arguments as for `Worker`.

    A handler that is not a coroutine function runs on a thread.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        concurrency: int = 100,
        prefetch: int | None = None,
        shutdown_timeout: float = 30.0,
        on_success: Literal["ack", "archive"] = "ack",
        on_unknown: Literal["retry", "bury"] = "retry",
        housekeeping: bool = True,
    ) -> None:
        super().__init__(
            client,
            concurrency=concurrency,
            most=100_000,
            prefetch=prefetch,
            shutdown_timeout=shutdown_timeout,
            on_success=on_success,
            on_unknown=on_unknown,
            housekeeping=housekeeping,
        )
        self._changed = asyncio.Event()
        self._waiting: deque[Task] = deque()
        self._running: dict[asyncio.Task[None], Task] = {}
        #: The signal that told it to stop at once.
        self._hurried: int | None = None

    async def run(self, *, signals: bool = True) -> None:
        """Work until `stop` is called or a signal comes; see `Worker.run`. Cancelling it stops gracefully, too.

        Raises:
            WorkerStopped: the worker was stopped, or runs already; each runs once.
            QueueNotFound: a queue with a handler does not exist.
            ConfigurationError: there are no handlers.
        """
        self._start_running()
        names = await follow_async(self._opening())
        try:
            with self._signals() if signals else contextlib.nullcontext():
                await self._run(names)
        except asyncio.CancelledError:
            if self._hurried is not None:
                raise HardStop(self._hurried) from None
            raise

    async def _run(self, names: list[str]) -> None:
        settler = start_task(lambda: follow_async(self._settling()), name="pgqrs-settler")
        housekeeper = (
            start_task(lambda: follow_async(self._keeping_house()), name="pgqrs-housekeeper")
            if self._housekeeping
            else None
        )
        try:
            await follow_async(self._claiming(names))
        finally:
            with self._changing() as load:
                load.stopping, load.claiming = True, False
            try:
                if self._hurried is None:
                    await self._wind_up(settler, housekeeper)
            finally:
                await self._abandon(settler, housekeeper)

    def stop(self) -> None:
        """Stop gracefully; `run` returns when all is settled. To be called in the event loop's thread."""
        with self._changing() as load:
            load.stopping = True
        self._engine.wakeups.interrupt()

    # One thread needs no guard, only a bell

    async def _until(self, so: Callable[[], bool], seconds: float | None = None) -> None:
        over = False

        def end() -> None:
            nonlocal over
            over = True
            self._changed.set()

        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, end)
        try:
            while not (so() or over):
                # Whoever waits is woken by the bell, however soon another clears it again.
                self._changed.clear()
                await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Load]:
        yield self._load
        self._changed.set()

    # Handling, in tasks

    def _begin(self, tasks: list[Task]) -> None:
        self._waiting.extend(tasks)
        self._start_some()

    def _start_some(self) -> None:
        while self._waiting and len(self._running) < self._concurrency and not self._load.stopping:
            task = self._waiting.popleft()
            running = start_task(partial(self._handle, task), name="pgqrs-handler", restart=False)
            self._running[running] = task
            running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.pop(running, None)
        self._start_some()

    async def _handle(self, task: Task) -> None:
        result: Any = None
        failure: BaseException | None = None
        argument = task.messages if task.route.batch is not None else task.messages[0]
        try:
            with surrounding(self._engine.plugins, task.messages) as handling:
                if inspect.iscoroutinefunction(task.route.function):
                    result = await task.route.function(argument)
                else:
                    result, error = await asyncio.to_thread(_call, task.route.function, argument)
                    if error is not None:
                        raise error
                    if inspect.isawaitable(result):
                        result = await result
                note_returned(handling, task, result)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._load.stopping:
                self._report(outcomes_of(task, result, TimeoutError(LATE), success=self._success))
                return
            failure = error
        self._report(conclude(task, result, failure, success=self._success, log=_log))

    # Stopping

    async def _wind_up(self, settler: asyncio.Task[None], housekeeper: asyncio.Task[None] | None) -> None:
        with self._changing() as load:
            while self._waiting:
                load.give_back(self._waiting.popleft())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shutdown_timeout
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=self._shutdown_timeout)
            if late:
                _log.warning("%d handlers did not finish in time and are cancelled", len(late))
                for running in late:
                    running.cancel()
                await asyncio.wait(late, timeout=TICK)
        # What the server refuses for a while is tried again as long as handlers would have been waited for.
        await asyncio.wait({settler}, timeout=max(deadline - loop.time(), TICK))
        if housekeeper is not None:
            await asyncio.wait({housekeeper}, timeout=TICK)

    async def _abandon(self, settler: asyncio.Task[None], housekeeper: asyncio.Task[None] | None) -> None:
        """Let go of what is left: nothing runs on, and the leases of what could not be written end by themselves."""
        settler.cancel()
        for running in self._running:
            running.cancel()
        left = [message for task in (*self._running.values(), *self._waiting) for message in task.messages]
        self._keeper.drop(message.lease for message in left)
        self._keeper.drop(outcome.message.lease for outcome in self._load.pending)
        if housekeeper is not None and not housekeeper.done():
            housekeeper.cancel()
            await asyncio.wait({housekeeper}, timeout=TICK)

    def _signals(self) -> Signals:
        # Not `add_signal_handler` of the loop: what the host has set there could not be given back.
        loop = asyncio.get_running_loop()
        current = asyncio.current_task()

        def hurry(number: int) -> None:
            self._hurried = number
            if current is not None:
                current.cancel()

        return Signals(
            lambda number: loop.call_soon_threadsafe(self._stop_at, number),
            lambda number: loop.call_soon_threadsafe(hurry, number),
        )

    def _stop_at(self, number: int) -> None:
        _log.info("signal %d: finishing what runs", number)
        self.stop()
