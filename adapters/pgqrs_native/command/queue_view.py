"""How queues look: their options and their figures, as rows and as documents."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from pgqrs_core.messages import Metrics, Queue
from pgqrs_core.operations.findings import span
from pgqrs_core.wording import show_number
from pgqrs_native.command.bodies import size
from pgqrs_native.command.output import Column, count, make_console, moment, plural

__all__ = ["FIGURES", "OPTIONS", "figures", "figures_document", "options_row", "queue_document", "summary", "that_fit"]

OPTIONS: Final = [
    Column("queue", "name"),
    Column("state"),
    Column("lease", "number"),
    Column("attempts", "number"),
    Column("back-off", "fold"),
    Column("archive"),
    Column("max. body", "number"),
]

FIGURES: Final = [
    Column("queue", "name"),
    Column("ready", "number"),
    Column("delayed", "number"),
    Column("in flight", "number"),
    Column("expired", "number"),
    Column("dead", "number"),
    Column("archived", "number"),
    Column("oldest", "number"),
    Column("next due", "number"),
    Column("state"),
]

_EXPIRED: Final = next(place for place, column in enumerate(FIGURES) if column.title == "expired")


def that_fit(rows: list[list[str]]) -> tuple[list[Column], list[list[str]]]:
    """Leave out when the next message is due, in a narrow terminal, and what has expired, where nothing has."""
    spared = {"next due"} if make_console().width < 100 else set()
    if not any(row[_EXPIRED] not in ("0", "–") for row in rows):
        spared.add("expired")
    kept = [place for place, column in enumerate(FIGURES) if column.title not in spared]
    return [FIGURES[place] for place in kept], [[row[place] for place in kept] for row in rows]


def figures(one: Metrics) -> list[str]:
    """Return the figures of a queue as texts."""
    if one.error is not None:
        return [one.queue, *["–"] * (len(FIGURES) - 2), "UNREADABLE"]
    return [
        one.queue,
        count(one, "ready"),
        count(one, "delayed"),
        count(one, "in_flight"),
        count(one, "expired"),
        count(one, "dead"),
        count(one, "archived"),
        "–" if one.oldest_ready_seconds is None else span(one.oldest_ready_seconds),
        "–" if one.next_due_seconds is None else f"in {span(one.next_due_seconds)}",
        "paused" if one.paused else "open",
    ]


def options_row(queue: Queue) -> list[str]:
    """Return the options of a queue as texts."""
    options = queue.options
    kept = options.archive_retention_seconds
    return [
        queue.name,
        "paused" if queue.paused_at else "open",
        span(options.lease_seconds),
        f"{options.max_attempts:,}",
        f"{span(options.backoff_base)} ×{show_number(options.backoff_factor)} to {span(options.backoff_cap)}",
        ("for ever" if kept is None else span(kept)) if options.archive else "none",
        size(options.max_body_bytes),
    ]


def queue_document(queue: Queue) -> dict[str, Any]:
    """Return how a document shows a queue."""
    return {
        "queue": queue.name,
        "table": f"q_{queue.suffix}",
        "paused": queue.paused_at is not None,
        "created_at": queue.created_at,
        "options": msgspec.structs.asdict(queue.options),
    }


def figures_document(one: Metrics) -> dict[str, Any]:
    """Return how a document shows a queue's figures."""
    return {**msgspec.structs.asdict(one), "estimated": list(one.estimated)}


def summary(queue: Queue) -> Iterator[str]:
    """Yield what people want to know of a new queue."""
    options = queue.options
    yield f"lease {span(options.lease_seconds)}"
    yield plural(options.max_attempts, "attempt")
    yield "with an archive" if options.archive else "without an archive"
    if queue.paused_at:
        yield f"paused since {moment(queue.paused_at)}"
