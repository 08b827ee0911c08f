"""A whole demo: set up, run, compare, tidy up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
from rich.console import Console
from rich.progress import Progress

from pgqrs_core.drivers.faults import cannot_connect, translate
from pgqrs_core.errors import InvalidArgument
from pgqrs_core.messages import check_number
from pgqrs_native import Client
from pgqrs_native.demo import tables
from pgqrs_native.demo.compare import compare
from pgqrs_native.demo.counting import find_files, standard_library
from pgqrs_native.demo.processes import Workers
from pgqrs_native.demo.report import Report, summarise
from pgqrs_native.demo.serial import SerialRun
from pgqrs_native.demo.setting import QUEUE, conninfo_for, settings_for
from pgqrs_native.demo.stages import Stages, bars, columns

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_demo"]

#: Seconds. Short, so that what the killed worker held comes back soon; live workers renew their leases.
_LEASE: Final = 3.0
#: Seconds before a message is tried again whose handler lost its connection.
_BACKOFF: Final = 0.1
PINGS: Final = 100


def run_demo(
    dsn: str,
    *,
    workers: int = 2,
    files: Path | None = None,
    limit: int | None = None,
    keep: bool = False,
    console: Console | None = None,
) -> Report:
    """Count the names in Python files in several worker processes, while one is killed and connections break.

    Args:
        dsn: the database. The demo makes a schema ``pgqrs_demo`` of its own there, and drops it.
        workers: how many processes, 2 to 64.
        files: a directory of ``.py`` files; by default the standard library.
        limit: take this many of the files only.
        keep: leave the schema there, until the next demo.
        console: where progress is shown; by default standard error.

    Raises:
        InvalidArgument: there are no files, or a number is out of range.
        DemoError: another demo is running, or the schema is somebody else's.
        Unavailable: the server cannot be reached.
    """
    check_number("workers", workers, 2, 64, whole=True)
    if limit is not None:
        check_number("limit", limit, 1, 1_000_000, whole=True)
    root = standard_library() if files is None else files
    paths, skipped = find_files(root, limit)
    if not paths:
        raise InvalidArgument("files", str(root), "a directory with .py files in it")
    conninfo = conninfo_for(dsn)
    target = settings_for(conninfo).target
    try:
        control = psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        raise cannot_connect(error, target=target) from error
    demo = _Demo(conninfo, paths, root, skipped, workers, console or Console(stderr=True))
    try:
        with control, tables.reserved(control):
            return demo.run(control, keep=keep)
    except psycopg.Error as error:
        raise translate(error, target=target, broken=control.broken) from error


class _Demo:
    def __init__(
        self,
        conninfo: str,
        paths: list[str],
        root: Path,
        skipped: int,
        workers: int,
        console: Console,
    ) -> None:
        self._conninfo = conninfo
        self._paths = paths
        self._root = root
        self._skipped = skipped
        self._workers = workers
        self._console = console

    def run(self, control: psycopg.Connection, *, keep: bool) -> Report:
        tables.drop(control)
        try:
            tables.create(control)
            with Client(settings_for(self._conninfo)) as client:
                client.admin.install()
                client.admin.create_queue(QUEUE, lease_seconds=_LEASE, backoff_base=_BACKOFF, archive=False)
                return self._stages(client, control)
        finally:
            if not keep and not control.broken:
                tables.drop(control)

    def _stages(self, client: Client, control: psycopg.Connection) -> Report:
        progress = Progress(*columns(), console=self._console, disable=not self._console.is_terminal)
        with (
            SerialRun(self._paths) as serial,
            Workers(self._conninfo, self._workers) as workers,
            progress,
        ):
            tasks = bars(progress, self._workers, files=len(self._paths), pings=PINGS)
            stages = Stages(client, control, workers, serial, progress, tasks)
            stages.run(self._paths, workers=self._workers, pings=PINGS)
        comparison = compare(self._paths, serial.counts, tables.fetch_rows(control))
        return summarise(
            comparison,
            list(serial.counts.values()),
            pickups=stages.pickups,
            sent=len(self._paths),
            seconds=stages.seconds,
            problems=stages.problems,
            files=str(self._root),
            workers=self._workers,
            skipped_files=self._skipped,
            serial_seconds=round(serial.seconds, 3),
            serial_beside=stages.serial_beside,
            trouble=stages.trouble,
        )
