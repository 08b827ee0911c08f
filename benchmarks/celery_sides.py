"""Brokers for Celery, and workers on them: what the scenario ``celery`` compares."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import psutil
from celery import Celery, group
from psycopg.conninfo import conninfo_to_dict

from benchmarks.celery_app import TICK, make_app
from benchmarks.measure import Meter
from benchmarks.rivals import tree_cpu

__all__ = ["Side", "Worker", "server_side"]

#: Seconds in which a worker must get done what it was given.
_PATIENCE: Final = 300


@dataclass
class Side:
    """A broker, as Celery addresses it."""

    url: str
    #: CPU seconds that the broker's server has used.
    cpu: Callable[[], float]
    directory: Path
    options: dict[str, Any] = field(default_factory=dict)
    #: A broker this slow gets fewer messages, so that its turn does not take minutes.
    slow: bool = False

    @property
    def ticks(self) -> Path:
        """Where tasks note when they ran."""
        return self.directory / "ticks"

    @cached_property
    def app(self) -> Celery:
        """The producer's application."""
        os.environ["BENCH_TICKS"] = str(self.ticks)
        return make_app(self.url, self.options)

    def prepare(self) -> None:
        """Declare the queue, and connect."""
        with self.app.connection_for_write() as connection:
            self.app.amqp.queues["celery"](connection.default_channel).declare()

    def purge(self) -> None:
        """Remove what was published."""
        self.app.control.purge()

    def close(self) -> None:
        """Close the producer's connections."""
        self.app.pool.force_close_all()
        self.app.close()

    def publish(self, count: int, **options: Any) -> float:
        """Publish tasks one by one, and return the seconds that it took."""
        task = self.app.tasks["noop"]
        began = time.perf_counter()
        for _ in range(count):
            task.apply_async(**options)
        return time.perf_counter() - began

    def publish_group(self, count: int, **options: Any) -> float:
        """Publish tasks as one group, and return the seconds that it took."""
        task = self.app.tasks["noop"]
        members = group([task.s() for _ in range(count)], app=self.app)
        began = time.perf_counter()
        members.apply_async(**options)
        return time.perf_counter() - began

    @contextlib.contextmanager
    def worker(self, pool: str, *arguments: str) -> Iterator[Worker]:
        """Run a worker until the end of the block."""
        self.ticks.write_bytes(b"")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONWARNINGS": "ignore",
            "C_FORCE_ROOT": "1",
            "BENCH_BROKER": self.url,
            "BENCH_OPTIONS": json.dumps(self.options),
            "BENCH_TICKS": str(self.ticks),
        }
        command = [*f"-m celery -A benchmarks.celery_app worker -l INFO -P {pool}".split(), *arguments]
        log = self.directory / "worker.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            yield Worker(self, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Worker:
    """A ``celery worker`` that is running."""

    def __init__(self, side: Side, process: subprocess.Popen[bytes], log: Path) -> None:
        self._side, self._process, self._log = side, process, log

    @property
    def cpu(self) -> float:
        """CPU seconds of all its processes."""
        return tree_cpu(self._process.pid)

    @property
    def memory(self) -> float:
        """Resident MiB of all its processes."""
        process = psutil.Process(self._process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20

    def ready(self) -> None:
        """Wait until it consumes."""
        self._wait(lambda: b" ready." in self._log.read_bytes())

    def wait_for(self, count: int) -> None:
        """Wait until that many tasks have run."""
        self._wait(lambda: self._side.ticks.stat().st_size >= count * TICK.size)

    def notes(self) -> list[float]:
        """Return what the tasks noted, in ascending order."""
        return sorted(value for (value,) in TICK.iter_unpack(self._side.ticks.read_bytes()))

    def _wait(self, happened: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE
        while not happened():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the worker is stuck or gone:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.005)


def server_side(scheme: str, dsn: str, meter: Meter, directory: Path, options: dict[str, Any], *, slow: bool) -> Side:
    """Return the side of a transport on PostgreSQL."""
    return Side(_address(scheme, dsn), lambda: meter.server_cpu() or 0.0, directory, options, slow)


def _address(scheme: str, dsn: str) -> str:
    """Spell a connection string as a URL of ``scheme``.

    Raises:
        SystemExit: it names the folder of a socket.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    account = quote(parts.pop("user", "postgres"), safe="")
    if "password" in parts:
        account += ":" + quote(parts.pop("password"), safe="")
    host, port, database = (
        parts.pop(*one) for one in (("host", "localhost"), ("port", "5432"), ("dbname", "postgres"))
    )
    if host.startswith("/"):
        raise SystemExit(f"pgmq:// reaches a server by TCP only, not by the socket in {host}")
    query = f"?{urlencode(parts)}" if parts else ""
    return f"{scheme}://{account}@{host}:{port}/{quote(database, safe='')}{query}"
