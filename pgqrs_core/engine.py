"""An engine: one database, one schema, the connections, plugins and wake-ups of one process.

Adapters build on this. It runs operations, in three ways: each statement committed by itself (`run`), all in one
transaction (`transact`), or inside the caller's own (`run_in`). `AsyncEngine` is the same on asyncio.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, Final, TypeVar

from typing_extensions import ParamSpec, Self

from pgqrs_core.async_wakeups import AsyncWakeups
from pgqrs_core.config import Config
from pgqrs_core.doorbell import Doorbell
from pgqrs_core.drivers import aio, async_pool, borrowed, pool, sync
from pgqrs_core.drivers.commits import Errands
from pgqrs_core.drivers.missing import is_missing
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Effect, Execute, Op, Transact, Wait
from pgqrs_core.errors import NotPermitted, PgqrsError, SchemaUnavailable, ServerError, WrongEventLoop
from pgqrs_core.figures import EngineFigures, figures_of, note_engine
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.installations import Installation
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.operations.claim import give_back
from pgqrs_core.operations.enqueue import ring_all
from pgqrs_core.operations.queues import find_queue
from pgqrs_core.operations.schema import prepare
from pgqrs_core.plugins import Plugins, default_plugins
from pgqrs_core.requirements import require
from pgqrs_core.secret import hidden
from pgqrs_core.servers import start_if_asked
from pgqrs_core.wakeups import Wakeups

__all__ = ["AsyncEngine", "Engine"]

T = TypeVar("T")
P = ParamSpec("P")

_log = get_logger("pgqrs.connections")

#: Seconds for which a cancelled caller waits until what it had claimed is given back; after that it goes on by itself.
_GIVE_BACK: Final = 1.0
#: Seconds for which what is known of a queue is used before it is read again.
_FRESH = 5.0


class _Base:
    """What both engines know: the configuration, the plugins, and the queues seen lately."""

    connections: pool.Connections | async_pool.Connections
    _wakeups: Wakeups | AsyncWakeups | None = None

    def __init__(self, config: str | Config | None = None, *, plugins: Plugins | None = None) -> None:
        require("psycopg")
        config = hidden(config)
        self.config, self._server = start_if_asked(Config.from_value(config))
        self.schema: str = self.config.database.schema
        chosen = self.config.plugins
        self.plugins = plugins or default_plugins(frozenset(chosen.blocked), chosen.settings, chosen.content_types)
        self.plugins.check()
        self.statements = Statements(self.schema)
        #: What this process knows of the tables.
        self.installation = Installation(self.config.target, self.schema)
        #: Whether it is this process's, and not one that a fork inherited and nobody here has used yet.
        self.is_ours = True
        self._begin()
        self._number = note_engine(self)  # type: ignore[arg-type]
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: put aside what is the parent's. Its connections stay open there, and are not used here."""
        self._begin()
        self.is_ours = False

    def _begin(self) -> None:
        """Start with nothing."""
        self.doorbell = Doorbell(self.schema)
        self._queues: dict[str, tuple[float, Queue]] = {}
        self._checked = False

    def figures(self) -> EngineFigures:
        """Return what the engine is doing, without asking the server."""
        watch = self._wakeups.watch if self._wakeups is not None else None
        return figures_of(self._number, self.connections.usage, watch)

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()

    def _pool_options(self) -> dict[str, Any]:
        database, performance = self.config.database, self.config.performance
        return {
            "conninfo": self.config.conninfo(),
            "target": self.config.target,
            "schema": database.schema,
            # One more is the wake-up connection's.
            "limit": max(database.max_connections - 1, 1),
            "keep": performance.connection_pool_size,
            "patience": database.connection_timeout_seconds,
            "query_timeout": performance.query_timeout_seconds,
            "longest_idle": performance.connection_idle_seconds,
            "claims": _claims_of(self),
        }

    def _wakeup_options(self) -> dict[str, Any]:
        return {
            "listen": self.config.queue.enable_listen_notify,
            "timeout": self.config.performance.query_timeout_seconds,
            "target": self.config.target,
        }

    def known(self, name: str) -> Queue | None:
        """Return what was last known of a queue, however long ago, without asking."""
        known = self._queues.get(name)
        return known[1] if known is not None else None

    def _fresh(self, name: str) -> Queue | None:
        known = self._queues.get(name)
        return known[1] if known is not None and time.monotonic() - known[0] < _FRESH else None

    def _learn(self, queue: Queue) -> Queue:
        self._queues[queue.name] = time.monotonic(), queue
        return queue

    def forget(self, name: str) -> None:
        """Read a queue anew at its next use."""
        self._queues.pop(name, None)

    def checked(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> Op[T]:
        """Check the schema before the first operation that needs it, so that what is missing is said once and well."""
        if not self._checked or self.installation.is_awaited:
            yield from prepare(self.installation, self.plugins, create=False)
            self._checked = True
        return (yield from make(*args, **kwargs))


def _claims_of(engine: _Base) -> Callable[[], bool]:
    """Return what tells whether an engine waits for messages; it does not keep the engine alive."""
    found = weakref.ref(engine)

    def claims() -> bool:
        wakeups = getattr(found(), "_wakeups", None)
        return wakeups is not None and wakeups.watch.watched > 0

    return claims


class Engine(_Base):
    """Runs operations on blocking connections. Thread-safe; survives a fork.

    Args:
        config: a URL or libpq connection string, a `Config`, or None to read the environment and ``pgqrs.yaml``.
        plugins: the plugins to use; by default those that are installed.

    Nothing is connected until the first operation. With an ``embedded://`` URL the server is started here, and stopped by
    `close`.
    """

    def _begin(self) -> None:
        super()._begin()
        self.connections: pool.Connections = pool.Connections(**self._pool_options())
        self._wakeups: Wakeups | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Harmless to repeat."""
        if self._wakeups is not None:
            self._wakeups.close()
        self.connections.close()
        self._stop_server()

    def run(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation, each statement committed by itself, and each transaction that it asks for."""
        return sync.drive(make(*args, **kwargs), self._perform, self._give_back)

    def transact(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation in one transaction, once more after a conflict with another one."""
        self.is_ours = True
        return self.connections.transact(lambda: make(*args, **kwargs), self.statements)

    def transaction(self) -> AbstractContextManager[object]:
        """Lend a connection of ours for one transaction: ``with engine.transaction() as connection``, then `run_in`.

        It commits when the block ends and rolls back when it raises.

        Raises:
            Unavailable: the server cannot be reached, or was lost; at the commit its outcome may be unknown.
        """
        self.is_ours = True
        return self.connections.transaction()

    def run_in(self, connection: object, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on the caller's connection, in his transaction, and ring after the commit if that is told."""
        loan = borrowed.borrow(connection)
        perform, statements, target = sync.perform_borrowed, self.statements, self.config.target
        try:
            result = sync.drive(make(*args, **kwargs), lambda effect: perform(loan, statements, effect, target))
        except NotPermitted as error:
            raise self.connections.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise self.connections.explained(error, statements) from error.__cause__
            raise
        loan.when_committed(lambda queues: self.run(ring_all, queues, self.doorbell))
        return result

    def queue(self, name: str) -> Queue:
        """Return a queue by its name, as known for a few seconds.

        Raises:
            QueueNotFound: with the nearest existing names.
            SchemaError: the schema is missing, or does not fit this code.
        """
        return self._fresh(name) or self._learn(self.run(self.checked, find_queue, name))

    def on(self, name: str, make: Callable[Concatenate[Queue, P], Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on a queue by its name; if its tables have gone, look once whether it was created anew."""
        try:
            return self.run(make, self.queue(name), *args, **kwargs)
        except SchemaUnavailable:
            # Restored, a queue may have another number; and it is not used before all of them are back.
            self._queues.clear()
            raise
        except ServerError as error:
            if not error.is_missing_table:
                raise
        self.forget(name)
        self._checked = False
        return self.run(make, self.queue(name), *args, **kwargs)

    @property
    def wakeups(self) -> Wakeups:
        """The one connection on which this process is woken."""
        if self._wakeups is None:
            self._wakeups = Wakeups(
                lambda: self.connections.open(relaxed=True),
                self.statements,
                self.doorbell.channel,
                **self._wakeup_options(),
            )
        return self._wakeups

    def _perform(self, effect: Effect) -> Any:
        self.is_ours = True
        if isinstance(effect, Execute):
            return self.connections.run(effect, self.statements)
        if isinstance(effect, Transact):
            return self.connections.transact(effect.make, self.statements)
        return self.wakeups.wait(effect)

    def _give_back(self, claims: list[Execute]) -> None:
        """Release what an interrupted operation had claimed, for nobody has it."""
        try:
            given = sync.drive(give_back(claims, self.doorbell), self._perform)
        except PgqrsError as error:
            _log.warning("what an interrupted read had claimed comes again when its lease ends: %s", error)
        else:
            if given:
                _log.info("%d messages that an interrupted read had claimed were given back", given)


class AsyncEngine(_Base):
    """Runs operations on asynchronous connections, within one event loop. See `Engine`."""

    def _begin(self) -> None:
        super()._begin()
        self.connections: async_pool.Connections = async_pool.Connections(**self._pool_options())
        self._errands = Errands()
        self._wakeups: AsyncWakeups | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Harmless to repeat."""
        # In another loop than its own, nothing of it runs any more: only the connections are left to close.
        if self._loop is None or self._loop is asyncio.get_running_loop():
            if self._wakeups is not None:
                await self._wakeups.close()
            await self._errands.finish()
        await self.connections.close()
        self._stop_server()

    async def run(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation, each statement committed by itself, and each transaction that it asks for."""
        self._check_loop()
        return await aio.drive(make(*args, **kwargs), self._perform, self._give_back)

    async def transact(self, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation in one transaction, once more after a conflict with another one."""
        self._check_loop()
        return await self.connections.transact(lambda: make(*args, **kwargs), self.statements)

    async def run_in(self, connection: object, make: Callable[P, Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on the caller's connection, in his transaction, and ring after the commit if that is told."""
        self._check_loop()
        loan = await borrowed.borrow_async(connection)
        perform, statements, target = aio.perform_borrowed, self.statements, self.config.target
        try:
            result = await aio.drive(make(*args, **kwargs), lambda effect: perform(loan, statements, effect, target))
        except NotPermitted as error:
            raise await self.connections.named(error, statements) from error.__cause__
        except ServerError as error:
            if is_missing(error):
                raise await self.connections.explained(error, statements) from error.__cause__
            raise
        loan.when_committed(lambda queues: self._errands.start(self.run(ring_all, queues, self.doorbell)))
        return result

    async def queue(self, name: str) -> Queue:
        """Return a queue by its name, as known for a few seconds. Raises as `Engine.queue` does."""
        return self._fresh(name) or self._learn(await self.run(self.checked, find_queue, name))

    async def on(self, name: str, make: Callable[Concatenate[Queue, P], Op[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on a queue by its name; if its tables have gone, look once whether it was created anew."""
        try:
            return await self.run(make, await self.queue(name), *args, **kwargs)
        except SchemaUnavailable:
            # Restored, a queue may have another number; and it is not used before all of them are back.
            self._queues.clear()
            raise
        except ServerError as error:
            if not error.is_missing_table:
                raise
        self.forget(name)
        self._checked = False
        return await self.run(make, await self.queue(name), *args, **kwargs)

    @property
    def wakeups(self) -> AsyncWakeups:
        """The one connection on which this event loop is woken."""
        if self._wakeups is None:
            self._wakeups = AsyncWakeups(
                lambda: self.connections.open(relaxed=True),
                self.statements,
                self.doorbell.channel,
                **self._wakeup_options(),
            )
        return self._wakeups

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Wait):
            return await self.wakeups.wait(effect)
        if isinstance(effect, Transact):
            return await self.connections.transact(effect.make, self.statements)
        return await self.connections.run(effect, self.statements)

    async def _give_back(self, claims: list[Execute]) -> None:
        """Release what a cancelled operation had claimed, for nobody has it."""
        if any(claimed.hand for claimed in claims):
            task = self._errands.start(self._release(claims))
            await asyncio.wait({task}, timeout=_GIVE_BACK)

    async def _release(self, claims: list[Execute]) -> None:
        try:
            given = await aio.drive(give_back(claims, self.doorbell), self._perform)
        except PgqrsError as error:
            _log.warning("what a cancelled read had claimed comes again when its lease ends: %s", error)
        else:
            _log.info("%d messages that a cancelled read had claimed were given back", given)

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self.is_ours = True
        elif self._loop is not loop:
            raise WrongEventLoop
