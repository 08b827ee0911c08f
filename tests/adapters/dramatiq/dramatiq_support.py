"""What the tests of the Dramatiq adapter share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dramatiq import Message, Worker
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend

from pgqrs_core.testing import PATIENCE, eventually
from tests.support.database import Database
from tests.support.processes import Crew, Process, import_path

T = TypeVar("T")

HERE = Path(__file__).parent


class Station(Database):
    """Brokers, backends and workers on one database, and a connection to look behind them."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._open: list[Any] = []

    def broker(self, **options: Any) -> PgqrsBroker:
        return self._keep(PgqrsBroker(options.pop("url", self.dsn), **options))

    def results(self, **options: Any) -> PgqrsResultBackend:
        return self._keep(PgqrsResultBackend(self.dsn, **options))

    def limits(self, **options: Any) -> PgqrsRateLimiterBackend:
        return self._keep(PgqrsRateLimiterBackend(self.dsn, **options))

    @contextmanager
    def worker(self, broker: PgqrsBroker, threads: int = 4, **options: Any) -> Iterator[Worker]:
        """Run a worker for the time of a block."""
        worker = Worker(broker, worker_threads=threads, worker_timeout=options.pop("timeout", 100), **options)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    def rows(self, queue: str = "default") -> int:
        return super().rows(queue)

    def dead(self, queue: str = "default") -> list[Any]:
        return super().dead(queue)

    def let_leases_end(self, queue: str = "default") -> None:
        super().let_leases_end(queue)

    def connections(self) -> int:
        """How many connections others have to this database."""
        statement = (
            "select count(*) from pg_stat_activity where datname = current_database() and application_name <> %s"
        )
        return self.sql(statement + " and backend_type = 'client backend'", "test")[0][0]

    def terminate(self) -> int:
        """Break off all connections but the test's own; return how many there were."""
        return len(
            self.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name <> 'test'"
            )
        )

    def close(self) -> None:
        for one in reversed(self._open):
            one.close()
        super().close()

    def _keep(self, made: T) -> T:
        self._open.append(made)
        return made


def noting(note: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return a function in Python for a method in C, whose module Dramatiq 1 would ask for in vain."""

    def act(value: Any) -> None:
        note(value)

    return act


def send(broker: PgqrsBroker, *numbers: int, queue: str = "default") -> list[Any]:
    """Enqueue a message for each number, to an actor that need not be there."""
    broker.declare_queue(queue)
    return broker.enqueue_many([Message(queue, "act", (number,), {}, {}) for number in numbers])


def take(consumer: Any, patience: float = PATIENCE) -> Any:
    """Return the next message of a consumer."""
    return eventually(lambda: next(consumer), patience)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracebacks of failing actors out of the tests' output."""
    logger = logging.getLogger("dramatiq")
    before = logger.level
    # Not by the attribute: its children remember what they found enabled.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


class Workers(Crew[Process]):
    """Real worker processes on one database, and what their actors noted."""

    def __init__(self, dsn: str, directory: Path) -> None:
        super().__init__(Process, directory, PYTHONPATH=import_path(HERE), TEST_DSN=dsn)
        self.station = Station(dsn)
        self.broker = self.station.broker()
        self.command = "dramatiq"

    def start(self, *arguments: str, processes: int = 1, threads: int = 4, name: str = "one", **env: str) -> Process:
        """Start workers and wait until they are ready."""
        options = [f"--processes={processes}", f"--threads={threads}", "--verbose", *arguments]
        environment = {f"TEST_{key.upper()}": value for key, value in env.items()}
        command = ["-m", self.command, "dramatiq_app", *options]
        return self.run(name, command, "Worker process is ready for action", **environment)

    def send(self, actor: str, *args: Any, queue: str = "default", **options: Any) -> Any:
        """Enqueue a message for an actor that is known to the workers only."""
        delay = options.pop("delay", None)
        self.broker.declare_queue(queue)
        return self.broker.enqueue(Message(queue, actor, args, {}, options), delay=delay)

    def close(self) -> None:
        super().close()
        self.station.close()
