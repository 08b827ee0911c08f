"""What the tests of the Kombu transport share."""

from __future__ import annotations

import time
from typing import Any

import pgqrs_kombu  # noqa: F401 - makes the scheme known
import psycopg
from kombu import Connection, Consumer, Exchange, Queue
from pgqrs_kombu.url import masked

from pgqrs_core.testing import PATIENCE
from tests.support import processes
from tests.support.database import Database


def url_of(dsn: str, **more: str) -> str:
    """Return a connection string as a broker URL."""

    class Client:
        hostname = psycopg.conninfo.make_conninfo(dsn, **more)

    return masked(Client(), include_password=True, mask="")


class Bench(Database):
    """Connections to one database, and a direct one to look behind them."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.url = url_of(dsn)
        self._open: list[Connection] = []

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        """Open a connection; ``options`` are transport options."""
        connection = Connection(url or self.url, transport_options=options)
        self._open.append(connection)
        return connection

    def python(self, script: str, *arguments: str) -> str:
        """Run a script in another process, with this database's address, and return what it prints."""
        return processes.python(script, self.url, *arguments)

    def close(self) -> None:
        for connection in self._open:
            connection.release()
        super().close()


class Inbox:
    """A consumer that keeps what it gets."""

    def __init__(self, connection: Connection, *queues: Queue, prefetch: int = 0, no_ack: bool = False) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self.channel = connection.channel()
        if prefetch:
            self.channel.basic_qos(0, prefetch, False)
        self.consumer = Consumer(self.channel, queues, on_message=self.messages.append, accept=None, no_ack=no_ack)
        self.consumer.consume()

    def wait(self, count: int, patience: float = PATIENCE) -> list[Any]:
        """Wait until there are ``count`` messages."""
        deadline = time.monotonic() + patience
        while len(self.messages) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.messages)} messages came, not {count}"
            drain(self.connection, min(left, 0.5))
        return self.messages

    def bodies(self, count: int) -> list[Any]:
        return [message.payload for message in self.wait(count)]

    def nothing(self, seconds: float = 0.3) -> bool:
        """Tell whether nothing comes for a while."""
        before = len(self.messages)
        drain(self.connection, seconds)
        return len(self.messages) == before


def drain(connection: Connection, timeout: float) -> bool:
    """Deliver one message; False when there was none."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    return True


def plain(name: str = "jobs", **options: Any) -> Queue:
    """A queue on an exchange of its own, both by this name."""
    return Queue(name, Exchange(name, "direct"), routing_key=name, **options)
