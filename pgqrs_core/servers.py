"""Servers that are started on request: what stands behind ``embedded://``.

The core knows no such server. A distribution that brings one names, in the entry-point group ``pgqrs.servers``, a function
that takes the URL, starts the server or finds it running, and returns an object with ``dsn`` and ``stop()``. Nothing is
ever started unless a URL asks for it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Protocol

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command

__all__ = ["Server", "start_if_asked"]

GROUP = "pgqrs.servers"


class Server(Protocol):
    """A server that runs for us."""

    @property
    def dsn(self) -> str:
        """Where it is, password included."""

    def stop(self) -> None:
        """Stop it, if it was started here."""


def start_if_asked(config: Config) -> tuple[Config, Server | None]:
    """Start the server that ``config`` asks for, if it does; return the configuration to connect with, and the server.

    Raises:
        ConfigurationError: nothing that is installed knows this kind of server.
        Unavailable: it does not start.
    """
    url = config.database.url
    if not config.embedded or url is None:
        return config, None
    scheme = url.partition(":")[0]
    for entry in entry_points(group=GROUP, name=scheme):
        server: Server = entry.load()(url)
        return replace(config, database=replace(config.database, url=server.dsn)), server
    raise ConfigurationError(
        f"nothing installed can start {config.target}: {install_command('embedded')}", key="database.url"
    )
