"""Groups in one statement.

`dramatiq.group.run` enqueues its children one by one. Each is a transaction of its own here, so a large group would wait
for the disk as often as it has children. It is therefore wrapped: on this broker its children are gathered, and stored
together, all or none. Groups on other brokers run as before.
"""

from __future__ import annotations

import functools
from typing import Any

from dramatiq.composition import group

__all__ = ["install"]


def install() -> None:
    """Wrap `group.run`, once."""
    run = group.run
    if hasattr(run, "__wrapped__"):
        return

    @functools.wraps(run)
    def run_together(self: group, *, delay: int | None = None) -> Any:
        from pgqrs_dramatiq.broker import PgqrsBroker

        if not isinstance(self.broker, PgqrsBroker):
            return run(self, delay=delay)
        with self.broker.batch():
            return run(self, delay=delay)

    group.run = run_together  # type: ignore[method-assign]
