"""What the tests of the Kombu transport share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pgqrs_kombu  # noqa: F401 - makes the scheme known
import psycopg
from kombu import Connection, Consumer, Exchange, Queue
from pgqrs_kombu.url import masked

T = TypeVar("T")

#: Seconds after which a test gives up.
PATIENCE = 30.0


def url_of(dsn: str, **more: str) -> str:
    """Return a connection string as a broker URL."""

    class Client:
        hostname = psycopg.conninfo.make_conninfo(dsn, **more)

    return masked(Client(), include_password=True, mask="")


class Bench:
    """Connections to one database, and a direct one to look behind them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.url = url_of(dsn)
        self._open: list[Connection] = []
        self._sql: psycopg.Connection[Any] | None = None

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        """Open a connection; ``options`` are transport options."""
        connection = Connection(url or self.url, transport_options=options)
        self._open.append(connection)
        return connection

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run a statement of the test's own."""
        if self._sql is None:
            self._sql = psycopg.connect(self.dsn, autocommit=True, application_name="test")
        cursor = self._sql.execute(statement, params or None)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []

    def rows(self, queue: str) -> int:
        """How many messages a durable queue's table holds, whatever their state."""
        found = self.sql("select table_suffix from pgqrs.queues where name = %s", queue)
        return self.sql(f'select count(*) from pgqrs."q_{found[0][0]}" where lane > -100')[0][0] if found else 0

    def dead(self, queue: str) -> list[Any]:
        """The last errors of a queue's dead letters."""
        suffix = self.sql("select table_suffix from pgqrs.queues where name = %s", queue)[0][0]
        return [row[0] for row in self.sql(f'select last_error from pgqrs."q_{suffix}" where lane = -100')]

    def python(self, script: str, *arguments: str) -> str:
        """Run a script in another process, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", script, self.url, *arguments],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        for connection in self._open:
            connection.release()
        if self._sql is not None:
            self._sql.close()


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


def eventually(ask: Callable[[], T], patience: float = PATIENCE) -> T:
    """Ask until the answer is true, and return it."""
    pause = threading.Event()
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {patience} s"
        pause.wait(0.02)
    return answer


def plain(name: str = "jobs", **options: Any) -> Queue:
    """A queue on an exchange of its own, both by this name."""
    return Queue(name, Exchange(name, "direct"), routing_key=name, **options)
