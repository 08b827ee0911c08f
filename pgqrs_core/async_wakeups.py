"""Waking the consumers of one event loop. The blocking twin is `pgqrs_core.wakeups`, which also holds what both share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from pgqrs_core.drivers import aio
from pgqrs_core.effects import Effect, Execute, Rows, Wait
from pgqrs_core.errors import PgqrsError
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import start_task
from pgqrs_core.waiter import Waiter
from pgqrs_core.wakeups import LONGEST_PAUSE, Shared

if TYPE_CHECKING:
    from pgqrs_core.drivers.aio import AsyncLink
    from pgqrs_core.drivers.statements import Statements
    from pgqrs_core.messages import Queue

__all__ = ["AsyncWakeups"]


class AsyncWakeups(Shared):
    """Wakes the tasks of one event loop. The connection and its task start with the first wait."""

    def __init__(
        self,
        connect: Callable[[], Any],
        statements: Statements,
        channel: str,
        *,
        listen: bool,
        timeout: float,
        target: str,
    ) -> None:
        super().__init__(statements, channel, listen=listen, timeout=timeout, target=target)
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()
        self._news: set[asyncio.Future[None]] = set()
        self._closing = False

    async def wait(self, effect: Wait) -> float:
        """Do as the effect says; return the patience left."""
        if self._has_reason_to_claim(effect):
            return effect.patience
        left, _, generations = await self._outwait((effect.queue,), effect.patience)
        self._learn(effect, generations)
        return left

    async def wait_any(
        self, queues: Sequence[Queue], patience: float, interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, list[Queue]]:
        """Wait for news of any of ``queues``; return the patience left, and where to look."""
        return (await self._outwait(queues, patience, interrupted))[:2]

    async def _outwait(
        self, queues: Sequence[Queue], patience: float, interrupted: Callable[[], bool] = lambda: False
    ) -> tuple[float, list[Queue], list[int]]:
        if self._closing:
            return 0.0, [], []
        if self._task is None or self._task.done():
            self._task = start_task(self._run, name="pgqrs-wakeups")
        deadline = self.watch.clock() + patience
        waiter = Waiter(self.watch, queues)
        generations: list[int] = []
        try:
            if waiter.urgent:
                self._nudged.set()
            while not (self._closing or waiter.is_over() or interrupted()):
                left = deadline - self.watch.clock()
                if left <= 0 or (not await self._hear(self._turn(left)) and self.watch.is_stale()):
                    break
            return max(deadline - self.watch.clock(), 0.0), waiter.where(), generations
        finally:
            generations += waiter.leave()

    def interrupt(self) -> None:
        """Let those who wait ask again whether they should."""
        self._tell()

    async def _hear(self, seconds: float) -> bool:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.add(news)
        try:
            done, _ = await asyncio.wait({news}, timeout=seconds)
            return bool(done)
        finally:
            self._news.discard(news)
            news.cancel()

    async def close(self) -> None:
        """End all waits, and the task and its connection."""
        self._closing = True
        self._tell()
        self._nudged.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=5)
            self._task.cancel()
        OUTAGES.left(self, self._target)

    def _tell(self) -> None:
        for news in self._news:
            if not news.done():
                news.set_result(None)

    async def _run(self) -> None:
        pause = 0.1
        while not self._closing:
            try:
                link = await self._connect()
            except PgqrsError as error:
                pause = await self._rest(error, pause)
                continue
            try:
                await self._prepare(link)
                self._note_connected()
                pause = 0.1
                while not self._closing:
                    await self._step(link)
                await self._farewell(link)
            except (PgqrsError, psycopg.Error, OSError) as error:
                if not self._closing:
                    pause = await self._rest(error, pause)
            finally:
                await link.connection.close()

    async def _rest(self, error: Exception, pause: float) -> float:
        self._report(error)
        self.watch.lost()
        self._tell()
        if not self._closing:
            await asyncio.sleep(pause)
        return min(pause * 2, LONGEST_PAUSE)

    async def _prepare(self, link: AsyncLink) -> None:
        self.watch.listening = self._listen and not link.pooled
        if self.watch.listening:
            link.connection.add_notify_handler(self._note)
            await link.connection.execute(self._listen_text())

    async def _step(self, link: AsyncLink) -> None:
        agenda = self.watch.agenda()
        if agenda.unmark:
            await self._execute(link, self._unmark(agenda.unmark, polled=agenda.polled))
        for number, count in agenda.pass_on.items():
            self.watch.passed_on(number, len(await self._execute(link, self._pass_on(number, count))))
        if agenda.mark:
            self.watch.marked(await self._execute(link, self._mark(agenda.mark)))
        if agenda.probe:
            for queues in self._apart(agenda.probe):
                began = self.watch.clock()
                rows = await self._probe(link, queues)
                self.watch.probed(queues, rows, self._cost(queues, began))
                self._tell()
        self._tell()
        if not agenda.works:
            await self._sleep(link, agenda.sleep)
        self._take(link.connection.pgconn)
        self._tell()

    async def _sleep(self, link: AsyncLink, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        socket = link.connection.pgconn.socket
        loop.add_reader(socket, self._nudged.set)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), seconds)
            self._nudged.clear()
        finally:
            loop.remove_reader(socket)

    async def _probe(self, link: AsyncLink, queues: list[Queue]) -> Rows:
        rows, failed = await aio.drive(self._look(queues), lambda effect: self._execute(link, effect))
        return self._without(queues, rows, failed)

    async def _execute(self, link: AsyncLink, effect: Effect) -> Rows:
        assert isinstance(effect, Execute)
        return await aio.perform(link, self._statements, effect, timeout=self._timeout, target=self._target)

    async def _farewell(self, link: AsyncLink) -> None:
        marks = self.watch.marks()
        if marks:
            await self._execute(link, self._unmark(marks, polled=True))
