"""Measuring: time, CPU of this process and of the server, WAL; and running the sides of a comparison in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil
import psycopg
from typing_extensions import Self

__all__ = ["Cost", "Meter", "Reading", "Stopwatch", "Timed", "cpu_of", "interleave"]

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What handling ``messages`` messages took. Seconds and bytes; None where it cannot be seen from here."""

    messages: int
    wall: float
    wal: int
    #: CPU of the client's Python processes.
    python: float | None = None
    #: CPU of the backends that served them.
    backend: float | None = None
    #: CPU of the whole server: backends, WAL writer, checkpointer, autovacuum …
    server: float | None = None

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.wall

    def micros(self, what: str) -> float | None:
        """Microseconds of ``what`` (wall, python, backend, server) per message."""
        seconds = getattr(self, what)
        return None if seconds is None else seconds / self.messages * 1e6

    @property
    def wal_bytes(self) -> float:
        """Bytes of WAL per message."""
        return self.wal / self.messages

    def __add__(self, other: Cost) -> Cost:
        """Add another step that the same messages went through."""
        return Cost(
            self.messages,
            self.wall + other.wall,
            self.wal + other.wal,
            _sum(self.python, other.python),
            _sum(self.backend, other.backend),
            _sum(self.server, other.server),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True)
class Timed:
    """What one process reports of its work; times are of the monotonic clock, which all processes share."""

    began: float
    ended: float
    python: float
    messages: int
    #: Whatever else a scenario wants to know.
    more: Any = None


class Stopwatch:
    """Times the work of one process."""

    def __enter__(self) -> Self:
        self._cpu = time.process_time()
        self.began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended = time.monotonic()
        self._cpu = time.process_time() - self._cpu

    def timed(self, messages: int, more: Any = None, *, ended: float | None = None) -> Timed:
        """Return the report; ``ended`` when the last message was done before the work ended."""
        return Timed(self.began, self.ended if ended is None else ended, self._cpu, messages, more)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process with a single thread, as exactly as the system tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


class Reading:
    """What the meters said at some moment."""

    def __init__(self, meter: Meter, pids: Sequence[int]) -> None:
        self._meter, self._pids = meter, pids
        self._wal, self._server, self._backend = meter.wal(), meter.server_cpu(), meter.backend_cpu(pids)
        self._python, self._began = time.process_time(), time.perf_counter()

    def cost(self, messages: int) -> Cost:
        """Return what ``messages`` messages have cost since."""
        wall, python = time.perf_counter() - self._began, time.process_time() - self._python
        backend, server = self._meter.backend_cpu(self._pids), self._meter.server_cpu()
        return Cost(
            messages,
            wall,
            self._meter.wal() - self._wal,
            python,
            _less(backend, self._backend),
            _less(server, self._server),
        )


class Meter:
    """Reads the meters of a server. Those of its processes only if they run on this machine."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self._server: psutil.Process | None = None
        # Elsewhere the number may belong to nobody, or to somebody else.
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._one("select pg_backend_pid()"))
            parent = process.parent()
            if process.name().startswith("postgres") and parent is not None:
                self._server = parent

    @property
    def sees_processes(self) -> bool:
        """Whether the server's CPU can be measured."""
        return self._server is not None

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def wal(self) -> int:
        """Return how many bytes of WAL the server has written."""
        return int(self._one("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))

    def server_cpu(self) -> float | None:
        """Return the CPU seconds of all processes of the server, those that have ended included."""
        if self._server is None:
            return None
        times = self._server.cpu_times()
        total = float(times.user + times.system + times.children_user + times.children_system)
        for child in self._server.children():
            try:
                total += cpu_of(child.pid)
            except psutil.Error:
                continue
        return total

    def backend_cpu(self, pids: Sequence[int]) -> float | None:
        """Return the CPU seconds of some backends."""
        return sum(map(cpu_of, pids)) if pids and self._server is not None else None

    def read(self, pids: Sequence[int] = ()) -> Reading:
        """Begin to measure what happens from now on, on the backends ``pids``."""
        return Reading(self, pids)

    def run(self, work: Callable[[], int], pids: Sequence[int] = ()) -> Cost:
        """Measure ``work``, which returns how many messages it handled."""
        reading = self.read(pids)
        return reading.cost(work())

    def checkpoint(self) -> None:
        """Write a checkpoint, so that none falls into what is measured next; if we may."""
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self.connection.execute("checkpoint")

    def _one(self, query: str) -> Any:
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def interleave(repeats: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run every side once per repeat, beginning with another one each time, so that a drift meets all of them."""
    names = list(sides)
    found: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(sides[name]())
    return found
