"""The figures of all queues, looked up when somebody asks and kept for a while: for whoever is scraped."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pgqrs_core.effects import Op
from pgqrs_core.errors import PgqrsError
from pgqrs_core.forks import Lock
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Metrics
from pgqrs_core.operations.metrics import measure
from pgqrs_core.operations.queues import list_queues

if TYPE_CHECKING:
    from pgqrs_core.engine import Engine

__all__ = ["Depths"]

_log = get_logger("pgqrs.depths")


class Depths:
    """Looks at all queues, archives excepted, with one statement for their names and one for the figures of each fifty.

    At most once in ``seconds``, however many ask. Thread-safe.

    Args:
        engine: where the queues are; it stays the caller's to close.
        seconds: for how long an answer is used again.
    """

    def __init__(self, engine: Engine, *, seconds: float = 5.0) -> None:
        self._engine = engine
        self._seconds = seconds
        self._lock = Lock()
        self._looked_at = float("-inf")
        self._found: Sequence[Metrics] | None = None
        self._unreadable: Collection[str] = ()

    def look(self) -> Sequence[Metrics] | None:
        """Return the figures of every queue; None, and a line in the log, if the database is away.

        Those of a queue that cannot be read are zero and have an ``error``; the log says so when that begins.
        """
        with self._lock:
            # Whoever comes during a look waits for it, and gets its answer.
            if time.monotonic() - self._looked_at >= self._seconds:
                self._found = self._ask()
                self._tell(self._found or ())
                self._looked_at = time.monotonic()
            return self._found

    def _ask(self) -> Sequence[Metrics] | None:
        try:
            return self._engine.run(self._engine.checked, _measure_all)
        except PgqrsError as error:
            _log.warning("the queues cannot be looked at: %s", error)
            return None

    def _tell(self, found: Sequence[Metrics]) -> None:
        errors = {one.queue: one.error for one in found if one.error is not None}
        for queue, error in errors.items():
            if queue not in self._unreadable:
                _log.warning("queue %r cannot be measured, the others are: %s", queue, error)
        self._unreadable = errors.keys()


def _measure_all() -> Op[list[Metrics]]:
    known = yield from list_queues()
    return (yield from measure(known, with_archives=False))
