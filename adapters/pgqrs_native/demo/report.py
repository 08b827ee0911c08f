"""The outcome of a demo, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table
from rich.text import Text

from pgqrs_native.demo.compare import Comparison, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pgqrs_native.demo.counting import FileCount

__all__ = ["Report", "Trouble", "show", "summarise"]


class Trouble(msgspec.Struct):
    """What was done to the workers and their connections on purpose, and when."""

    #: Process ids, and how many files had been handled by then.
    killed: int | None = None
    replacement: int | None = None
    killed_after: int | None = None
    connections_broken: int = 0
    broken_after: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. Everything is right if there are no ``problems``."""

    files: str
    workers: int
    sent: int
    handled: int
    redelivered: int
    lost: int
    doubled: int
    differing: int
    names: int
    distinct_names: int
    most_common: list[tuple[str, int]]
    #: Files that were counted up to an error only.
    unfinished_files: int
    #: Files left out because their names are not valid Unicode.
    skipped_files: int
    #: From the first message sent to the last one handled.
    seconds: float
    messages_per_second: float
    serial_seconds: float
    serial_beside: bool
    trouble: Trouble
    pickups: int
    #: From the call of ``enqueue`` to the start of the handler in an idle worker. None without samples.
    pickup_p50_ms: float | None
    pickup_p99_ms: float | None
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether everything matches."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ``ok`` first, for JSON."""
        return {"ok": self.ok, **msgspec.to_builtins(self)}


def summarise(
    comparison: Comparison,
    serial: Sequence[FileCount],
    *,
    pickups: Sequence[float],
    sent: int,
    seconds: float,
    problems: Sequence[str],
    **facts: Any,
) -> Report:
    """Make a report out of what was seen; ``facts`` are its other fields."""
    p50, p99 = percentile(pickups, 50), percentile(pickups, 99)
    return Report(
        sent=sent,
        handled=comparison.handled,
        redelivered=comparison.redelivered,
        lost=len(comparison.lost),
        doubled=len(comparison.doubled),
        differing=len(comparison.differing),
        names=comparison.names.total(),
        distinct_names=len(comparison.names),
        most_common=comparison.names.most_common(5),
        unfinished_files=sum(count.error is not None for count in serial),
        seconds=round(seconds, 3),
        messages_per_second=round(comparison.handled / seconds, 1) if seconds else 0.0,
        pickups=len(pickups),
        pickup_p50_ms=None if p50 is None else round(p50 * 1000, 2),
        pickup_p99_ms=None if p99 is None else round(p99 * 1000, 2),
        problems=[*comparison.problems(), *problems],
        **facts,
    )


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    table = Table(title=Text(f"{report.sent:,} files of {report.files}"), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(report):
        # As text: names of files and programs are not markup.
        table.add_row(*map(Text, row))
    console.print(table)
    if report.ok:
        console.print("[green]Everything matches:[/] each file counted once, as in the serial run.")
    for problem in report.problems:
        console.print(Text.assemble(("does not match: ", "bold red"), problem))


def _rows(report: Report) -> list[tuple[str, str, str]]:
    trouble = report.trouble
    common = ", ".join(f"{name} {count:,}" for name, count in report.most_common)
    beside = ", beside the workers" if report.serial_beside else ""
    return [
        ("sent", f"{report.sent:,}", "one message per file"),
        ("handled", f"{report.handled:,}", f"by {report.workers} workers and a replacement"),
        (
            "redelivered",
            f"{report.redelivered:,}",
            f"{_after('a worker killed', trouble.killed_after)}, "
            + _after(f"{trouble.connections_broken} connections broken", trouble.broken_after),
        ),
        ("lost", f"{report.lost:,}", "must be 0"),
        ("doubled", f"{report.doubled:,}", "in the result table; must be 0"),
        (
            "messages per second",
            f"{report.messages_per_second:,.0f}",
            f"{report.seconds:.1f} s, trouble included",
        ),
        (
            "serial run",
            f"{report.sent / report.serial_seconds:,.0f}" if report.serial_seconds else "–",
            f"files per second: {report.serial_seconds:.1f} s without a queue{beside}",
        ),
        (
            "pickup latency",
            f"{_ms(report.pickup_p50_ms)} / {_ms(report.pickup_p99_ms)}",
            f"p50 / p99 of {report.pickups} single messages, enqueue() to handler of an idle worker",
        ),
        ("names", f"{report.names:,}", f"{report.distinct_names:,} different: {common}"),
        ("unfinished files", f"{report.unfinished_files:,}", "bad on purpose: counted up to the error"),
        *(
            [("skipped files", f"{report.skipped_files:,}", "their names are not valid Unicode")]
            if report.skipped_files
            else []
        ),
    ]


def _after(what: str, handled: int | None) -> str:
    return f"{what} after {handled:,}" if handled is not None else f"{what} (not reached)"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} ms"
