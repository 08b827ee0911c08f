"""One picture of all queues: what is asked for it, and how it is drawn."""

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgqrs_core.effects import Op
from pgqrs_core.messages import Metrics, Queue
from pgqrs_core.operations import metrics, queues, vitals
from pgqrs_core.operations.findings import span
from pgqrs_native.command.output import Column, count, make_table, plural, safe
from pgqrs_native.command.queue_view import figures_document
from pgqrs_native.command.rates import Rate, Rates

__all__ = ["Frame", "observe"]

#: Seconds after which a transaction that keeps dead rows is shown.
_PIN_SECONDS = 30.0


@dataclass(frozen=True)
class Frame:
    """What is known at one moment."""

    at: datetime
    queues: list[tuple[Queue, Metrics, Rate | None]]
    pin: vitals.Pin | None

    def document(self) -> dict[str, Any]:
        """Return how a document shows it."""
        return {
            "at": self.at,
            "queues": [
                {
                    **figures_document(one),
                    "enqueued_per_second": rate.enqueued if rate else None,
                    "settled_per_second": rate.settled if rate else None,
                }
                for _, one, rate in self.queues
            ],
            "oldest_pin": None if self.pin is None else self.pin.describe(),
            "oldest_pin_seconds": None if self.pin is None else self.pin.seconds,
        }

    def draw(self, target: str, *, width: int, height: int | None, hint: str = "") -> RenderableType:
        """Draw it; what does not fit into ``height`` lines is left out, the quietest queues first."""
        room = len(self.queues) if height is None else max(height - 7, 3)
        shown = self.queues
        if len(shown) > room:
            busiest = sorted(shown, key=lambda row: -(row[1].ready + row[1].in_flight + row[1].delayed))[:room]
            names = {one.queue for _, one, _ in busiest}
            shown = [row for row in shown if row[1].queue in names]
        parts: list[RenderableType] = [self._head(target, width), Text()]
        if shown:
            parts.append(_table([(one, rate) for _, one, rate in shown], width))
        else:
            parts.append(Text("no queues; make one: pgqrs queue create NAME"))
        if len(shown) < len(self.queues):
            parts.append(Text(f"… and {plural(len(self.queues) - len(shown), 'quieter queue')}", style="dim"))
        if self.pin is not None:
            age = f" for {span(self.pin.seconds)}" if self.pin.seconds is not None else ""
            parts.append(Text(f"dead rows cannot be removed{age}: {safe(self.pin.describe())}", style="bold yellow"))
        if hint:
            parts.append(Text(hint, style="dim"))
        return Group(*parts)

    def _head(self, target: str, width: int) -> Table:
        ready, flying = (sum(getattr(one, name) for _, one, _ in self.queues) for name in ("ready", "in_flight"))
        right = Text(f"{ready:,} ready, {flying:,} in flight   {self.at.astimezone():%H:%M:%S}")
        width = min(width, 100)
        left = Text.assemble(("pgqrs ", "bold"), safe(target))
        # Where both do not fit, a long address gives way to the figures.
        left.truncate(max(width - right.cell_len - 2, 6), overflow="ellipsis")
        line = Table.grid(expand=True)
        line.add_column(no_wrap=True)
        line.add_column(justify="right", no_wrap=True)
        line.add_row(left, right)
        line.width = width
        return line


def _table(rows: list[tuple[Metrics, Rate | None]], width: int) -> Table:
    wide = width >= 100
    expired = any(one.expired for one, _ in rows)
    columns = [
        Column("queue", "name"),
        Column("ready", "number"),
        Column("delayed", "number"),
        Column("in flight", "number"),
        *([Column("expired", "number")] if expired else []),
        Column("dead", "number"),
        *([Column("archived", "number")] if wide else []),
        Column("in/s", "number"),
        Column("out/s", "number"),
        Column("oldest", "number"),
    ]
    return make_table(columns, [_row(one, rate, wide, expired) for one, rate in rows], width=width)


def _row(one: Metrics, rate: Rate | None, wide: bool, expired: bool) -> list[str | Text]:
    age = one.oldest_ready_seconds
    name = Text(safe(one.queue))
    if one.error is not None:
        name.append(" unreadable", style="bold red")
        return [name, *["–"] * (7 + wide + expired)]
    if one.paused:
        name.append(" paused", style="yellow")
    return [
        name,
        count(one, "ready"),
        count(one, "delayed"),
        count(one, "in_flight"),
        *([count(one, "expired")] if expired else []),
        Text(count(one, "dead"), style="red" if one.dead else ""),
        *([count(one, "archived")] if wide else []),
        "–" if rate is None else _speed(rate.enqueued),
        "–" if rate is None else _speed(rate.settled),
        "–" if age is None else Text(span(age), style="yellow" if age > 60 else ""),
    ]


def _speed(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.1f}"


def observe(schema: str, rates: Rates) -> Op[Frame]:
    """Look at everything once, and let ``rates`` learn from it."""
    known = yield from queues.list_queues()
    measured = yield from metrics.measure(known)
    facts = yield from vitals.table_facts(schema)
    rates.add(time.monotonic(), facts)
    pins = [pin for pin in (yield from vitals.find_pins()) if _keeps(pin)]
    rows = [(queue, one, rates.of(f"q_{queue.suffix}")) for queue, one in zip(known, measured, strict=True)]
    return Frame(datetime.now(timezone.utc), rows, pins[0] if pins else None)


def _keeps(pin: vitals.Pin) -> bool:
    return (pin.seconds or 0) >= _PIN_SECONDS or pin.state == "inactive"
