"""One worker process: ``python -m pgqrs_native.demo.worker``, started and ended by `processes`.

It takes messages until SIGTERM, or until whoever started it is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from pgqrs_core.errors import Unavailable
from pgqrs_native import Client, Message, Worker
from pgqrs_native.demo import tables
from pgqrs_native.demo.counting import count_names
from pgqrs_native.demo.setting import ADDRESS, QUEUE, CountNames, Ping, settings_for

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Handlers", "main", "work"]

#: Messages claimed ahead. A killed worker holds these too, and all of them come back.
_AHEAD: Final = 4
#: A replacement may be starting at the very moment when all connections are terminated.
_STARTS: Final = 3


class Handlers:
    """What a worker does with each type of message; rows and acks go through one connection of its own."""

    def __init__(self, client: Client, conninfo: str) -> None:
        self._client = client
        self._conninfo = conninfo
        self._connection: psycopg.Connection | None = None

    def count(self, message: Message[CountNames]) -> None:
        """Count the names in a file; store the result and ack the message, both or neither."""
        count = count_names(message.payload.path)
        with self._transaction() as connection:
            tables.insert_count(connection, count, message.attempt, os.getpid())
            self._client.consumer.dequeue(message, connection=connection)

    def ping(self, message: Message[Ping]) -> None:
        """Store when handling began."""
        started_at = time.time()
        with self._transaction() as connection:
            tables.insert_pickup(connection, message.payload.number, started_at)
            self._client.consumer.dequeue(message, connection=connection)

    def announce(self) -> None:
        """Say that this worker is there, once it can be reached."""
        with self._transaction() as connection:
            tables.insert_worker(connection, os.getpid())

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection]:
        # No retry here: when the connection breaks, the error ends the handler, and the message comes again.
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._conninfo, autocommit=True)
        with self._connection.transaction():
            yield self._connection


def main() -> None:
    """Take messages until told to stop."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    for attempt in range(1, _STARTS + 1):
        try:
            work(os.environ[ADDRESS])
        except (psycopg.OperationalError, Unavailable):
            # Once it runs, a worker outlives broken connections; while it starts, they are an error like any other.
            if attempt == _STARTS:
                raise
            time.sleep(0.1 * attempt)
        else:
            return


def work(conninfo: str) -> None:
    """Run a worker on this thread."""
    with Client(settings_for(conninfo)) as client:
        handlers = Handlers(client, conninfo)
        worker = Worker(client, concurrency=1, prefetch=_AHEAD)
        worker.handler(QUEUE, CountNames)(handlers.count)
        worker.handler(QUEUE, Ping)(handlers.ping)
        handlers.announce()
        worker.run()


def _follow_parent() -> None:
    """Stop when standard input ends: nothing is written to it, so the process at its other end is gone."""
    # Not through sys.stdin: a thread that is blocked in its buffer makes the interpreter abort at exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
