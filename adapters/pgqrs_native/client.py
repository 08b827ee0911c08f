"""The blocking client: admin, producer and consumer. Its asynchronous twin is :mod:`pgqrs_native.async_client`.

Methods here are thin: what they do is decided by operations, which both clients run.
"""

from __future__ import annotations

from typing_extensions import Self

from pgqrs_core.config import Config
from pgqrs_core.engine import Engine
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.plugins import Plugins
from pgqrs_core.secret import hidden
from pgqrs_native.admin import Admin
from pgqrs_native.consumer import Consumer
from pgqrs_native.producer import Producer

__all__ = ["Client"]


class Client:
    """A connection to the queues of one database schema.

    Args:
        config: a URL (``postgresql://user:password@host/database``), a `Config`, or None to read ``DATABASE_URL``,
            ``PGQRS_*`` and ``pgqrs.yaml``.
        plugins: the plugins to use; by default those that are installed.

    Thread-safe; connects at the first use; use it as a context manager, or call `close`.
    """

    def __init__(self, config: str | Config | None = None, *, plugins: Plugins | None = None) -> None:
        config = hidden(config)
        self.engine = Engine(config, plugins=plugins)
        self.keeper = LeaseKeeper(self.engine)
        #: Queues: creating, changing, watching and removing them.
        self.admin = Admin(self.engine)
        #: Putting messages in.
        self.producer = Producer(self.engine)
        #: Taking messages out.
        self.consumer = Consumer(self.engine, self.keeper)

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self.engine.config

    def close(self) -> None:
        """Close all connections. Messages that are still leased return when their leases end."""
        self.keeper.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
