"""The stages of a demo, one after another, with a bar for each."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pgqrs_core.errors import Unavailable
from pgqrs_native.demo import pickup, tables
from pgqrs_native.demo.report import Trouble
from pgqrs_native.demo.setting import QUEUE, CountNames
from pgqrs_native.demo.tables import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from pgqrs_native import Client
    from pgqrs_native.demo.processes import Workers
    from pgqrs_native.demo.serial import SerialRun

__all__ = ["Stages", "bars"]

T = TypeVar("T")

#: Messages in one statement, so that the bar moves.
_BATCH: Final = 500
#: Seconds between two looks at the result table.
_PAUSE: Final = 0.05
#: Seconds for the workers to come up.
_START_PATIENCE: Final = 60.0
#: Seconds without a new result after which the rest is given up; several leases long.
_STALL_PATIENCE: Final = 30.0
#: Seconds without a new result after which it is worth asking whether anything is left to wait for.
_STALL_SUSPICION: Final = 1.0


def bars(console_progress: Progress, workers: int, *, files: int, pings: int) -> dict[str, TaskID]:
    """Add a bar for each stage."""
    add = console_progress.add_task
    return {
        "sent": add("messages sent", total=files),
        "handled": add(f"handled by {workers} workers", total=files),
        "serial": add("serial run, to compare", total=files),
        "pickup": add("pickup latency", total=pings),
    }


class Stages:
    """Does the work of `run.run_demo`, and notes what happened.

    Attributes:
        trouble: what was done on purpose.
        seconds: from the first message sent to the last one handled.
        problems: what went wrong, apart from what the result table shows.
        pickups: the latencies of single messages.
        serial_beside: whether the serial run went on beside the workers, and took time from them.
    """

    def __init__(
        self,
        client: Client,
        control: psycopg.Connection,
        workers: Workers,
        serial: SerialRun,
        progress: Progress,
        tasks: dict[str, TaskID],
    ) -> None:
        self.trouble = Trouble()
        self.seconds = 0.0
        self.problems: list[str] = []
        self.pickups: list[float] = []
        self.serial_beside = False
        self._client = client
        self._control = control
        self._workers = workers
        self._serial = serial
        self._progress = progress
        self._tasks = tasks

    def run(self, paths: Sequence[str], *, workers: int, pings: int) -> None:
        """Do all stages."""
        self._await_workers(workers)
        # With processors to spare the serial run disturbs nobody.
        self.serial_beside = (os.cpu_count() or 1) > workers + 1
        if self.serial_beside:
            self._serial.start()
        began = time.perf_counter()
        self._send(paths)
        self._supervise(len(paths))
        self.seconds = time.perf_counter() - began
        self._serial.start()
        self._await_serial()
        # Only now are the processors idle.
        self._measure_pickup(pings)
        self._await_empty_queue()
        self._workers.stop()
        self.problems += self._workers.problems

    def _await_workers(self, count: int) -> None:
        deadline = time.monotonic() + _START_PATIENCE
        while tables.count_workers(self._control) < count:
            self._workers.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the workers did not come up within {_START_PATIENCE:g} s. Their last words:\n"
                    f"{self._workers.last_words()}"
                )
            time.sleep(_PAUSE)

    def _send(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _BATCH):
            part = paths[start : start + _BATCH]
            self._client.producer.batch_enqueue(QUEUE, [CountNames(path) for path in part])
            self._progress.advance(self._tasks["sent"], len(part))

    def _supervise(self, total: int) -> None:
        """Watch the results come in; make trouble half-way; end when all are there, or none come any more."""
        handled, changed = 0, time.monotonic()
        while handled < total or self.trouble.broken_after is None:
            before, handled = handled, tables.count_handled(self._control)
            self._show(handled)
            self._workers.check()
            self._make_trouble(handled, total)
            quiet = time.monotonic() - changed
            if handled != before:
                changed = time.monotonic()
            elif quiet > _STALL_PATIENCE or (quiet > _STALL_SUSPICION and not self._outstanding()):
                self.problems.append(f"gave up waiting after {handled:,} of {total:,} results")
                break
            time.sleep(_PAUSE)

    def _make_trouble(self, handled: int, total: int) -> None:
        trouble, say = self.trouble, self._progress.console.print
        if trouble.killed is None and handled >= total // 2:
            trouble.killed_after = handled
            trouble.killed, trouble.replacement = self._workers.kill_one()
            say(f"after {handled:,}: worker {trouble.killed} killed, {trouble.replacement} takes its place")
        elif trouble.broken_after is None and handled >= total * 3 // 5:
            trouble.broken_after = handled
            trouble.connections_broken = tables.break_connections(self._control)
            say(f"after {handled:,}: all {trouble.connections_broken} connections of the demo terminated")

    def _await_serial(self) -> None:
        while self._serial.running:
            self._show()
            time.sleep(_PAUSE)
        self._show()
        self._serial.check()

    def _measure_pickup(self, count: int) -> None:
        task = self._tasks["pickup"]
        found = pickup.measure(
            self._client, self._control, count, lambda done: self._progress.update(task, completed=done)
        )
        self.pickups = found.latencies
        self.problems += found.problems

    def _await_empty_queue(self) -> None:
        """See that nothing is left, waiting or dead: it might yet be delivered, and counted again."""
        deadline = time.monotonic() + _STALL_PATIENCE
        while self._outstanding() and time.monotonic() < deadline:
            self._workers.check()
            time.sleep(_PAUSE)
        if left := self._outstanding():
            self.problems.append(f"{left:,} messages are still in the queue")
        metrics = self._retried(lambda: self._client.admin.queue_metrics(QUEUE))
        if metrics.dead:
            dead = self._retried(lambda: self._client.admin.list_dead(QUEUE, 1))
            reason = f", the last with {dead[0].error.get('message')}" if dead else ""
            self.problems.append(f"{metrics.dead:,} messages are dead{reason}")

    def _outstanding(self) -> int:
        metrics = self._retried(lambda: self._client.admin.queue_metrics(QUEUE))
        return metrics.ready + metrics.delayed + metrics.in_flight

    @staticmethod
    def _retried(ask: Callable[[], T]) -> T:
        """Ask once more if the connection was among those that were broken."""
        try:
            return ask()
        except Unavailable:
            return ask()

    def _show(self, handled: int | None = None) -> None:
        if handled is not None:
            self._progress.update(self._tasks["handled"], completed=handled)
        self._progress.update(self._tasks["serial"], completed=len(self._serial.counts))


def columns() -> tuple[TextColumn, BarColumn, MofNCompleteColumn, TimeElapsedColumn]:
    """Return what a bar consists of."""
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
