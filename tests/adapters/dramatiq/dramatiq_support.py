"""What the tests of the Dramatiq adapter share."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from dramatiq import Message, Worker
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend

T = TypeVar("T")

HERE = Path(__file__).parent

#: Seconds after which a test gives up.
PATIENCE = 30.0


def eventually(ask: Callable[[], T], patience: float = PATIENCE) -> T:
    """Ask until the answer is true, and return it."""
    pause = threading.Event()
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {patience} s"
        pause.wait(0.01)
    return answer


class Station:
    """Brokers, backends and workers on one database, and a connection to look behind them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._open: list[Any] = []
        self._sql: psycopg.Connection[Any] | None = None

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

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run a statement of the test's own."""
        if self._sql is None or self._sql.closed:
            self._sql = psycopg.connect(self.dsn, autocommit=True, application_name="test")
        cursor = self._sql.execute(statement, params or None)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []

    def rows(self, queue: str = "default") -> int:
        """How many messages a queue's table holds, dead letters apart."""
        return self.sql(f'select count(*) from pgqrs."q_{queue}" where lane > -100')[0][0]

    def dead(self, queue: str = "default") -> list[Any]:
        """The reasons of a queue's dead letters."""
        return [
            row[0] for row in self.sql(f'select last_error from pgqrs."q_{queue}" where lane = -100 order by due_at')
        ]

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

    def let_leases_end(self, queue: str = "default") -> None:
        """Let the server think that all leases have run out."""
        self.sql(f"update pgqrs.\"q_{queue}\" set lease_until = 'epoch' where lane > -100")

    def close(self) -> None:
        for one in reversed(self._open):
            one.close()
        if self._sql is not None:
            self._sql.close()

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
    before, logger.level = logger.level, logging.CRITICAL + 1
    try:
        yield
    finally:
        logger.level = before


class Process:
    """One ``dramatiq`` command with its processes."""

    def __init__(self, crew: Crew, name: str, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self.log_file = crew.directory / f"{name}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", crew.command, "dramatiq_app", *arguments],
                stdout=log,
                stderr=log,
                env={**crew.environment, **env},
                cwd=crew.directory,
                # The children of a killed worker must not outlive the test.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def ready(self) -> Process:
        """Wait until it consumes."""
        eventually(lambda: "Worker process is ready for action" in self.log or self._must_live(), 2 * PATIENCE)
        return self

    def stop(self) -> float:
        """Stop it gracefully; it must end by itself. Return how many seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it with all its children, without a word."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)

    def _must_live(self) -> bool:
        assert self.process.poll() is None, self.log
        return False


class Crew:
    """Real worker processes on one database, and what their actors noted."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.station = Station(dsn)
        self.directory = directory
        self.command = "dramatiq"
        self._notes = directory / "notes"
        self._processes: list[Process] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
            "TEST_DSN": dsn,
            "TEST_NOTES": str(self._notes),
        }
        self.broker = self.station.broker()

    def start(self, *arguments: str, processes: int = 1, threads: int = 4, name: str = "one", **env: str) -> Process:
        """Start workers and wait until they are ready."""
        options = (f"--processes={processes}", f"--threads={threads}", "--verbose", *arguments)
        environment = {f"TEST_{key.upper()}": value for key, value in env.items()}
        self._processes.append(Process(self, name, options, environment))
        return self._processes[-1].ready()

    def send(self, actor: str, *args: Any, queue: str = "default", **options: Any) -> Any:
        """Enqueue a message for an actor that is known to the workers only."""
        delay = options.pop("delay", None)
        self.broker.declare_queue(queue)
        return self.broker.enqueue(Message(queue, actor, args, {}, options), delay=delay)

    def notes(self) -> Counter[str]:
        """What actors noted, and how often."""
        return Counter(self._notes.read_text().splitlines()) if self._notes.exists() else Counter()

    def wait_for(self, *lines: str, patience: float = PATIENCE) -> Counter[str]:
        """Wait until these were noted."""
        try:
            eventually(lambda: set(lines) <= self.notes().keys(), patience)
        except AssertionError:
            print(*(process.log for process in self._processes), sep="\n")
            raise
        return self.notes()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        self.station.close()
