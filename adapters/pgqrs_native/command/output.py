"""How results look: tables for people, one JSON document for programs."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import inf, isfinite
from typing import Any, Final, Literal, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pgqrs_core.messages import Metrics
from pgqrs_core.operations.findings import span

__all__ = [
    "Column",
    "Output",
    "ago",
    "as_json",
    "count",
    "due",
    "make_console",
    "make_table",
    "moment",
    "plural",
    "safe",
    "show",
    "wrapped",
]

#: Columns of the output when nobody looks at it: nothing is wrapped or cut short.
_UNLIMITED: Final = 100_000


Kind = Literal["name", "number", "text", "fold", "body"]

#: Kinds of columns that give way when there is too little room; the others are never cut.
_FLEXIBLE: Final = ("name", "fold", "body")
_GAP: Final = 2
_NARROWEST: Final = 8


@dataclass(frozen=True)
class Column:
    """One column of a table. Names and ``fold`` go on in the next line, a ``body`` ends with an ellipsis."""

    title: str
    kind: Kind = "text"


def make_console() -> Console:
    """Return the console for standard output, as wide as the terminal."""
    watched = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(
        file=sys.stdout,
        width=None if watched else _UNLIMITED,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def make_table(columns: Sequence[Column], rows: Iterable[Sequence[str | Text]], *, width: int | None = None) -> Table:
    """Build a table for ``width`` characters. Texts are shown as they are; nothing in them is markup."""
    cells = [[Text(safe(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    natural = [
        max(
            cell_len(line) for text in (column.title, *(row[place].plain for row in cells)) for line in text.split("\n")
        )
        for place, column in enumerate(columns)
    ]
    widths = _fit([column.kind for column in columns], natural, make_console().width if width is None else width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, room in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.title),
            justify="right" if column.kind == "number" else "left",
            width=room,
            no_wrap=column.kind == "body",
            overflow="ellipsis" if column.kind == "body" else "fold",
        )
    for row in cells:
        table.add_row(*row)
    return table


def _fit(kinds: Sequence[Kind], natural: Sequence[int], width: int) -> list[int]:
    """Give the flexible columns what the others leave, in equal shares as far as they need them."""
    widths = list(natural)
    flexible = sorted(
        (place for place, kind in enumerate(kinds) if kind in _FLEXIBLE), key=lambda place: natural[place]
    )
    room = width - _GAP * (len(kinds) - 1) - sum(natural[place] for place in range(len(kinds)) if place not in flexible)
    for done, place in enumerate(flexible):
        widths[place] = max(min(natural[place], room // (len(flexible) - done)), _NARROWEST)
        room -= widths[place]
    return widths


def show(picture: RenderableType) -> None:
    """Draw on standard output. Where nobody looks, in a file or a pipe, lines do not end in blanks."""
    console = make_console()
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


class Output:
    """Where a command writes to. With ``json`` exactly one document goes to standard output, and nothing else."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def document(self, value: object) -> None:
        """Write ``value`` as JSON."""
        text = as_json(value)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            # A terminal that is not UTF-8: then every character beyond ASCII is escaped.
            text = as_json(value, ascii_only=True)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str | Text]], *, empty: str) -> None:
        """Write a table, or the sentence ``empty`` if it has no rows."""
        table = make_table(columns, rows)
        if table.row_count:
            show(table)
        else:
            self.say(empty)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write names and values, one a line."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(Text(name), Text(safe(value, lines=True)))
        show(table)

    def say(self, text: str) -> None:
        """Write a sentence about what was done."""
        sys.stdout.write(wrapped(text, sys.stdout) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Write a remark to standard error, where it is in no program's way."""
        sys.stderr.write(wrapped(text, sys.stderr) + "\n")
        sys.stderr.flush()


def as_json(value: object, *, ascii_only: bool = False) -> str:
    """Return a document as JSON, and nothing but JSON: a number without end, which headers may hold, becomes a text.

    Characters that a terminal would act on are escaped: control characters, and those that turn the direction of a text.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=ascii_only, allow_nan=False, default=_plain)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text).replace(
        "\x7f", "\\u007f"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return {inf: "Infinity", -inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def safe(text: str, *, lines: bool = False) -> str:
    """Escape what a terminal would act on: data may hold control characters. With ``lines`` line ends stay."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def wrapped(text: str, stream: TextIO) -> str:
    """Break a sentence between words at the width of the terminal; where nobody looks it stays one line."""
    text = safe(text)
    if not stream.isatty():
        return text
    # A terminal that nobody has sized says 0, and Python 3.10 passes that on.
    width = shutil.get_terminal_size().columns or 80
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def count(metrics: Metrics, name: str) -> str:
    """Show a figure; ``~`` marks an estimate."""
    return f"{'~' if name in metrics.estimated else ''}{getattr(metrics, name):,}"


def plural(number: int, noun: str) -> str:
    """Return ``1 message``, ``2 messages``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(when: datetime | None) -> str:
    """Show a time in UTC, to the millisecond."""
    if when is None:
        return "–"
    return when.astimezone(timezone.utc).isoformat(" ", "milliseconds").replace("+00:00", " UTC")


def ago(when: datetime) -> str:
    """Show how long ago something happened, by this machine's clock."""
    seconds = (datetime.now(timezone.utc) - when).total_seconds()
    return f"{span(max(seconds, 0.0))} ago"


def due(when: datetime) -> str:
    """Show how far off a time is, by this machine's clock: ``in 5 min``, or ``5 min ago``."""
    seconds = (when - datetime.now(timezone.utc)).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"


def _plain(value: Any) -> object:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a document")
