"""Housekeeping by one elected process: expiry, retention, vacuum."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import ServerError, TimedOut
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.operations.archives import prune_archive
from pgqrs_core.operations.queues import list_queues
from pgqrs_core.sql import queries

__all__ = ["ROLE", "Housekeeping", "Process", "elect", "maintain", "resign"]

_log = get_logger("pgqrs.maintenance")

#: Who expires, prunes and vacuums.
ROLE: Final = "housekeeper"
_PAGE: Final = 1_000
#: Dead tuples beyond which a table is vacuumed here: autovacuum, which starts at 2,000, has not kept up.
_BLOATED: Final = 50_000
#: Queues in a row for which the server does not answer in time: then it is not the queues.
_MOST_TIMEOUTS: Final = 3


class Process(msgspec.Struct, frozen=True):
    """The host's name, at most 255 characters, and the process id there: what a person looks for."""

    host: str
    pid: int


class Housekeeping(msgspec.Struct, frozen=True):
    """What one round removed."""

    expired: int = 0
    dead_pruned: int = 0
    archive_pruned: int = 0
    vacuumed: int = 0
    keys_pruned: int = 0
    #: Queues that could not be cleaned, each with the reason. The others were.
    failed: dict[str, str] = {}


def elect(holder: int, seconds: float, process: Process, *, role: str = ROLE) -> Op[bool]:
    """Become, or stay, the one process that has ``role``, by default maintenance, for the next ``seconds``.

    Args:
        holder: a random number that no other process has.
        seconds: how long the term runs; elect again before its end.
        process: which process that is, for people.
        role: what the process is elected for.
    """
    term = {"role": role, "holder": holder, "host": process.host, "pid": process.pid, "seconds": seconds}
    rows = yield Execute(queries["elect"], term)
    return bool(rows)


def resign(holder: int, *, role: str = ROLE) -> Op[None]:
    """Let another process take over at once."""
    yield Execute(queries["resign"], {"role": role, "holder": holder})


def maintain(schema: str) -> Op[Housekeeping]:
    """Do one round over all queues: remove what expired and what is kept no longer, vacuum what has bloated.

    A queue that cannot be cleaned, because its table is missing or locked for example, does not stop the round: the log
    says why, and ``failed`` of the result.

    Raises:
        TimedOut: the server did not answer in time for three queues in a row.
    """
    yield Execute(queries["forget_waiters"])
    keys = yield from _all_pages("prune_keys", {})
    done: Counter[str] = Counter()
    failed: dict[str, str] = {}
    timeouts = 0
    for queue in (yield from list_queues()):
        try:
            yield from _clean(schema, queue, done)
            timeouts = 0
        except (ServerError, TimedOut) as error:
            timeouts += isinstance(error, TimedOut)
            if timeouts == _MOST_TIMEOUTS:
                raise
            failed[queue.name] = str(error)
            _log.warning("queue %r could not be cleaned, the others are: %s", queue.name, error)
    return Housekeeping(**done, keys_pruned=keys, failed=failed)


def _clean(schema: str, queue: Queue, done: Counter[str]) -> Op[None]:
    """Do what a round does for one queue, and count it."""
    options = queue.options
    done["expired"] += yield from _all_pages("expire", {}, queue)
    if options.dead_retention_seconds is not None:
        done["dead_pruned"] += yield from _all_pages("prune_dead", {"seconds": options.dead_retention_seconds}, queue)
    if options.archive and options.archive_retention_seconds is not None:
        done["archive_pruned"] += yield from prune_archive(queue, options.archive_retention_seconds)
    bloat = yield Execute(queries["dead_tuples"], {"schema": schema, "table": f"q_{queue.suffix}"})
    if bloat and bloat[0][0] > _BLOATED:
        yield Execute(queries["vacuum"], {}, queue)
        done["vacuumed"] += 1


def _all_pages(name: str, params: dict[str, object], queue: Queue | None = None) -> Op[int]:
    removed = 0
    while True:
        rows = yield Execute(queries[name], {**params, "limit": _PAGE}, queue)
        removed += len(rows)
        if len(rows) < _PAGE:
            return removed
