"""A worker on asyncio: handlers are coroutines, run as tasks. The threaded twin is :mod:`pgqrs_native.worker`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import secrets
import signal
import time
from collections import deque
from typing import Any, Literal

from pgqrs_core.errors import PgqrsError, QueueNotFound, Unavailable
from pgqrs_core.operations.claim import is_last
from pgqrs_core.operations.maintenance import elect, maintain, resign
from pgqrs_core.operations.traffic import incoming
from pgqrs_native.async_client import AsyncClient
from pgqrs_native.roster import CLAIM, LATE, PAUSE, TICK, Roster
from pgqrs_native.routing import Outcome, Task, note_failed, note_refused, note_returned, outcomes_of, sort_out
from pgqrs_native.settler import portions
from pgqrs_native.shared import check_archives, marker
from pgqrs_native.traffic import ADAPTER, surrounding

__all__ = ["AsyncWorker"]

_log = logging.getLogger("pgqrs.worker")


class AsyncWorker(Roster):
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
        housekeeping: bool = True,
    ) -> None:
        super().__init__(
            client.config,
            client.engine.plugins,
            _log,
            concurrency=concurrency,
            most=100_000,
            prefetch=prefetch,
            shutdown_timeout=shutdown_timeout,
            on_success=on_success,
            housekeeping=housekeeping,
        )
        self._client = client
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiting: deque[Task] = deque()
        self._running: dict[asyncio.Task[None], Task] = {}
        self._pending: list[Outcome] = []
        self._news = asyncio.Event()
        self._held = 0
        #: Whether a message on its last attempt is among them: whoever dies with it must not take others along.
        self._alone = False
        #: Whether a signal came, and whether a second one did.
        self._signalled = False
        self._hurried = False

    async def run(self, *, signals: bool = True) -> None:
        """Work until `stop` is called or a signal comes; see `Worker.run`. Cancelling it stops gracefully, too.

        Raises:
            QueueNotFound: a queue with a handler does not exist.
            ConfigurationError: there are no handlers.
        """
        known = [await self._client.engine.queue(name) for name in self._served()]
        check_archives(known, self._success)
        settler = asyncio.create_task(self._settle(), name="pgqrs-settler")
        housekeeper = asyncio.create_task(self._keep_house(), name="pgqrs-housekeeper") if self._housekeeping else None
        before = self._catch_signals() if signals else []
        try:
            await self._claim(self._routes.queues)
        finally:
            try:
                if not self._hurried:
                    await self._wind_up(settler)
            finally:
                self._abandon(settler)
                if housekeeper is not None:
                    housekeeper.cancel()
                    await asyncio.wait({housekeeper}, timeout=TICK)
                for one in before:
                    asyncio.get_running_loop().remove_signal_handler(one)

    def stop(self) -> None:
        """Stop gracefully; `run` returns when all is settled. To be called in the event loop's thread."""
        self._stopping.set()
        self._changed.set()
        self._client.engine.wakeups.interrupt()

    async def _claim(self, names: list[str]) -> None:
        pause = 0.1
        hungry = list(names)
        while not self._stopping.is_set():
            if not await self._room():
                continue
            try:
                hungry = [name for name in hungry if await self._look_into(name)]
                pause = 0.1
                if not hungry:
                    hungry = await self._wait(names)
            except PgqrsError as error:
                _log.warning("cannot claim, next try in %.1f s: %s", pause, error)
                await self._doze(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, TICK)
                hungry = list(names)

    async def _look_into(self, name: str) -> bool:
        try:
            return await self._claim_from(name)
        except Unavailable:
            raise
        except PgqrsError as error:
            self._aside.put(name, error, TICK if isinstance(error, QueueNotFound) else PAUSE)
            return False

    async def _doze(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _room(self) -> int:
        most = self._concurrency + self._prefetch
        while not self._stopping.is_set() and self._held > self._bearable(most):
            self._changed.clear()
            await self._changed.wait()
        self._alone = False
        return 0 if self._stopping.is_set() else max(most - self._held, 0)

    def _bearable(self, most: int) -> int:
        """Return with how many messages in hand to claim more: with none while one of them is on its last attempt."""
        return 0 if self._alone else most - max(most // 4, 1)

    async def _claim_from(self, name: str) -> bool:
        room = await self._room()
        if not room:
            return True
        engine = self._client.engine
        limit = min(room, CLAIM)
        queue = await engine.queue(name)
        lease = queue.options.lease_seconds
        marks = self._marks.take(queue.id)
        try:
            found = await engine.on(
                name,
                incoming,
                marks,
                limit=limit,
                lease=lease,
                patience=0.0,
                plugins=engine.plugins,
                adapter=ADAPTER,
                managed=True,
            )
        finally:
            self._marks.give(queue.id, marks)
        if not found:
            return False
        tasks, refused = sort_out(
            self._routes, queue, found, plugins=engine.plugins, claimed_at=time.time(), lease_seconds=lease
        )
        self._held += len(found)
        self._alone = self._alone or is_last(queue, found)
        messages = [message for task in tasks for message in task.messages]
        self._client.keeper.hold(queue, [message.lease for message in messages], lease, marker(messages))
        self._waiting.extend(tasks)
        self._start_some()
        if refused:
            note_refused(refused, _log)
            self._report(refused)
        return len(found) == limit or self._alone

    async def _wait(self, names: list[str]) -> list[str]:
        engine = self._client.engine
        queues = []
        for name in self._aside.others(names):
            try:
                queues.append(engine.known(name) or await engine.queue(name))
            except QueueNotFound as error:
                self._aside.put(name, error, TICK)
        _, where = await engine.wakeups.wait_any(queues, self._aside.patience(TICK), self._stopping.is_set)
        if not where and engine.wakeups.watch.is_stale():
            # The wake-up connection is silent: nobody will say where there is something.
            where = queues
        return [*(queue.name for queue in where), *self._aside.due()]

    def _start_some(self) -> None:
        while self._waiting and len(self._running) < self._concurrency and not self._stopping.is_set():
            task = self._waiting.popleft()
            running = asyncio.create_task(self._handle(task))
            self._running[running] = task
            running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.pop(running, None)
        self._start_some()
        self._changed.set()

    async def _handle(self, task: Task) -> None:
        result: Any = None
        failure: BaseException | None = None
        argument = task.messages if task.route.batch is not None else task.messages[0]
        try:
            with surrounding(self._client.engine.plugins, task.messages) as handling:
                if inspect.iscoroutinefunction(task.route.function):
                    result = await task.route.function(argument)
                else:
                    result = await asyncio.to_thread(task.route.function, argument)
                    if inspect.isawaitable(result):
                        result = await result
                note_returned(handling, task, result)
        except asyncio.CancelledError as error:
            failure = TimeoutError(LATE) if self._stopping.is_set() else error
        except BaseException as error:
            failure = error
            note_failed(task, error, _log)
        self._report(outcomes_of(task, result, failure, success=self._success))

    def _report(self, outcomes: list[Outcome]) -> None:
        self._pending.extend(outcomes)
        self._changed.set()
        self._news.set()

    async def _settle(self) -> None:
        pause = 0.05
        while not (self._stopping.is_set() and not self._held):
            await self._news.wait()
            self._news.clear()
            outcomes, self._pending = self._pending, []
            failed = await self._write(outcomes)
            if failed:
                self._pending = failed + self._pending
                self._news.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
            else:
                pause = 0.05

    async def _write(self, outcomes: list[Outcome]) -> list[Outcome]:
        engine = self._client.engine
        done = sum(outcome.action == "none" for outcome in outcomes)
        self._client.keeper.drop(outcome.message.lease for outcome in outcomes if outcome.action == "none")
        failed: list[Outcome] = []
        for portion in portions(outcomes):
            try:
                await engine.run(portion.write, engine.plugins, engine.doorbell)
            except Unavailable as error:
                _log.warning("%d outcomes could not be written yet: %s", len(portion.outcomes), error)
                failed += portion.outcomes
                continue
            except Exception:
                # Trying again would not help; without an outcome the messages come back when their leases end.
                _log.exception("%d outcomes (%s) cannot be written", len(portion.outcomes), portion.action)
            else:
                portion.note_lost(_log)
            self._client.keeper.drop(outcome.message.lease for outcome in portion.outcomes)
            done += len(portion.outcomes)
        self._held -= done
        self._changed.set()
        return failed

    async def _wind_up(self, settler: asyncio.Task[None]) -> None:
        self._stopping.set()
        while self._waiting:
            self._report([Outcome(message, "release") for message in self._waiting.popleft().messages])
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=self._shutdown_timeout)
            if late:
                _log.warning("%d handlers did not finish in time and are cancelled", len(late))
                for running in late:
                    running.cancel()
                await asyncio.wait(late, timeout=TICK)
        self._news.set()
        await asyncio.wait({settler}, timeout=TICK)

    def _abandon(self, settler: asyncio.Task[None]) -> None:
        """Let go of what is left: nothing runs on, and the leases of what could not be written end by themselves."""
        settler.cancel()
        for running in self._running:
            running.cancel()
        left = [message for task in (*self._running.values(), *self._waiting) for message in task.messages]
        self._client.keeper.drop(message.lease for message in left)
        self._client.keeper.drop(outcome.message.lease for outcome in self._pending)

    def _catch_signals(self) -> list[signal.Signals]:
        loop = asyncio.get_running_loop()
        caught: list[signal.Signals] = []
        current = asyncio.current_task()

        def on_signal() -> None:
            if self._signalled and current is not None:
                self._hurried = True
                current.cancel()
            self._signalled = True
            self.stop()

        # Only the main thread's loop may.
        with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
            for one in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(one, on_signal)
                caught.append(one)
        return caught

    async def _keep_house(self) -> None:
        engine = self._client.engine
        me = secrets.randbits(62)
        interval = self._client.config.queue.cleanup_interval_seconds
        try:
            while True:
                await asyncio.sleep(interval * random.uniform(0.8, 1.0))
                try:
                    if await engine.run(elect, me, 3 * interval):
                        await engine.run(maintain, engine.schema)
                except PgqrsError as error:
                    _log.warning("housekeeping is put off: %s", error)
        finally:
            with contextlib.suppress(PgqrsError):
                await engine.run(resign, me)
