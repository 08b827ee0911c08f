"""What the tests of the native adapter share: one face for both clients, workers that run beside a test, waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pgqrs_native import AsyncClient, AsyncWorker, Client, Worker

from pgqrs_core.config import Config
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import PATIENCE

T = TypeVar("T")


class Loop:
    """An event loop that runs on a thread of its own, so that tests of asynchronous code read like any others."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # Handlers of asynchronous workers block on threads here; the default has a handful only.
        self._loop.set_default_executor(ThreadPoolExecutor(64))
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[T]) -> T:
        async def outcome() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(outcome(), self._loop).result(2 * PATIENCE)

    def spawn(self, awaitable: Awaitable[T]) -> Any:
        async def outcome() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(outcome(), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        async def rest() -> None:
            await self._loop.shutdown_default_executor()

        self.run(rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class Blocking:
    """An asynchronous object whose methods block: what they return is awaited on the loop, and entered there."""

    def __init__(self, inner: Any, loop: Loop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("admin", "producer", "consumer", "engine"):
            return Blocking(found, self._loop)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            async def outcome() -> Any:
                result = found(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            result = self._loop.run(outcome())
            return self._entered(result) if hasattr(result, "__aenter__") else result

        return call

    @contextlib.contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        value = self._loop.run(manager.__aenter__())
        try:
            yield value
        except BaseException as error:
            if not self._loop.run(_leave(manager, error)):
                raise
        else:
            self._loop.run(manager.__aexit__(None, None, None))


async def _leave(manager: Any, error: BaseException) -> bool:
    # An interrupt that is raised on the loop would stop the loop itself: it is carried across by hand.
    try:
        return bool(await manager.__aexit__(type(error), error, error.__traceback__))
    except BaseException as raised:
        if raised is error:
            return False
        raise


class Native:
    """Makes clients and workers of one kind, blocking or asynchronous, on one database."""

    def __init__(self, kind: str, dsn: str) -> None:
        self.kind = kind
        self.dsn = dsn
        self.loop = Loop() if kind == "async" else None
        self._clients: list[Any] = []

    def client(self, dsn: str | None = None, *, plugins: Plugins | None = None, **settings: Any) -> Any:
        """Return a client, to be called as if it blocked; settings are those of the configuration."""
        config = Config.load(url=dsn or self.dsn, env={}, **settings)
        if self.loop is None:
            client: Any = Client(config, plugins=plugins)
        else:
            client = Blocking(AsyncClient(config, plugins=plugins), self.loop)
        self._clients.append(client)
        return client

    def worker(self, client: Any, **options: Any) -> Any:
        """Return a worker of the same kind; its handlers may be plain functions, they get their own threads."""
        if self.loop is None:
            return Worker(client, **options)
        return _WrappedWorker(AsyncWorker(client._inner, **options))

    @contextlib.contextmanager
    def working(self, worker: Any) -> Iterator[Any]:
        """Run a worker beside the block, and stop it at the end."""
        if self.loop is None:
            failures: list[BaseException] = []

            def run() -> None:
                try:
                    worker.run(signals=False)
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=run, name="test-worker", daemon=True)
            thread.start()
            try:
                yield worker
            finally:
                worker.stop()
                thread.join(2 * PATIENCE)
            assert not thread.is_alive()
            if failures:
                raise failures[0]
        else:
            begun = threading.Event()

            async def run_inner() -> None:
                begun.set()
                await worker.inner.run(signals=False)

            running = self.loop.spawn(run_inner())
            # Stopped before it runs, it would refuse to.
            assert begun.wait(PATIENCE)
            try:
                yield worker
            finally:
                self.loop.call(worker.inner.stop)
                running.result(2 * PATIENCE)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.loop is not None:
            self.loop.close()


class _WrappedWorker:
    """An asynchronous worker whose handlers are coroutines around plain functions."""

    def __init__(self, inner: AsyncWorker) -> None:
        self.inner = inner

    def handler(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapping(self.inner.handler(*args, **kwargs))

    def batch_handler(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapping(self.inner.batch_handler(*args, **kwargs))

    def stop(self) -> None:
        self.inner.stop()

    @staticmethod
    def _wrapping(register: Any) -> Any:
        def decorate(function: Any) -> Any:
            async def handle(argument: Any) -> Any:
                return await asyncio.to_thread(function, argument)

            register(handle)
            return function

        return decorate


class Seen:
    """What handlers have seen, from any thread."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Any]:
        """Wait until there are ``count`` items; return all."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self._items) >= count, PATIENCE)
            assert enough, f"saw only {self._items}, not {count}"
            return list(self._items)

    @property
    def items(self) -> list[Any]:
        with self._changed:
            return list(self._items)
