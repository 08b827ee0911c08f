"""The client for asyncio. Its blocking twin is :mod:`pgqrs_native.client`.

Methods here are thin: what they do is decided by operations, which both clients run.
"""

from __future__ import annotations

from typing_extensions import Self

from pgqrs_core.config import Config
from pgqrs_core.engine import AsyncEngine
from pgqrs_core.leases import AsyncLeaseKeeper
from pgqrs_core.plugins import Plugins
from pgqrs_core.secret import hidden
from pgqrs_native.async_admin import AsyncAdmin
from pgqrs_native.async_consumer import AsyncConsumer
from pgqrs_native.async_producer import AsyncProducer

__all__ = ["AsyncClient"]


class AsyncClient:
    """A connection to the queues of one database schema.

    Args:
        config: a URL (``postgresql://user:password@host/database``), a `Config`, or None to read ``DATABASE_URL``,
            ``PGQRS_*`` and ``pgqrs.yaml``.
        plugins: the plugins to use; by default those that are installed.

    Connects at the first use; use it as a context manager, or call `close`. Belongs to one event loop.
    """

    def __init__(self, config: str | Config | None = None, *, plugins: Plugins | None = None) -> None:
        config = hidden(config)
        self.engine = AsyncEngine(config, plugins=plugins)
        self.keeper = AsyncLeaseKeeper(self.engine)
        #: Queues: creating, changing, watching and removing them.
        self.admin = AsyncAdmin(self.engine)
        #: Putting messages in.
        self.producer = AsyncProducer(self.engine)
        #: Taking messages out.
        self.consumer = AsyncConsumer(self.engine, self.keeper)

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self.engine.config

    async def close(self) -> None:
        """Close all connections. Messages that are still leased return when their leases end."""
        await self.keeper.close()
        await self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
