"""The archive: messages that were handled and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import ArchiveDisabled
from pgqrs_core.messages import MAX_SECONDS, ArchivedMessage, Queue, check_number, show_headers
from pgqrs_core.operations.enqueue import ring
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell

__all__ = ["list_archive", "prune_archive", "replay_archive"]

_PAGE: Final = 5_000


def list_archive(queue: Queue, limit: int, before: int | None = None) -> Op[list[ArchivedMessage]]:
    """Return up to ``limit`` archived messages, the newest id first; ``before`` (an id) continues an earlier list."""
    _must_archive(queue)
    check_number("limit", limit, 1, 100_000, whole=True)
    rows = yield Execute(queries["list_archive"], {"limit": limit, "before": before}, queue)
    return [ArchivedMessage(*(*row[:5], show_headers(row[5]), row[6])) for row in rows]


def replay_archive(queue: Queue, ids: Sequence[int], doorbell: Doorbell | None = None) -> Op[int]:
    """Move archived messages back into the queue, as new messages with new ids; return how many."""
    _must_archive(queue)
    rows = yield Execute(queries["replay_archive"], {"ids": numbers(sorted(set(ids)))}, queue)
    if rows:
        yield from ring(queue, doorbell, len(rows))
    return len(rows)


def prune_archive(queue: Queue, seconds: float) -> Op[int]:
    """Remove what was archived more than ``seconds`` ago, page by page; return how many."""
    _must_archive(queue)
    check_number("older_than", seconds, 0, MAX_SECONDS)
    removed = 0
    while True:
        rows = yield Execute(queries["prune_archive"], {"seconds": float(seconds), "limit": _PAGE}, queue)
        removed += len(rows)
        if len(rows) < _PAGE:
            return removed


def _must_archive(queue: Queue) -> None:
    if not queue.options.archive:
        raise ArchiveDisabled(queue.name)
