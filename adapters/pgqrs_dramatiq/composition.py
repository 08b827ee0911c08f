"""Groups in one statement.

`dramatiq.group.run` enqueues its children one by one. Each is a transaction of its own here, so a large group would wait
for the disk as often as it has children. It is therefore wrapped: on this broker its children are gathered, and stored
together, all or none; what middleware enqueues meanwhile goes out by itself. Groups on other brokers run as before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from dramatiq.composition import group, pipeline

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
        with self.broker._gather(set(_first_ids(self))):
            return run(self, delay=delay)

    group.run = run_together  # type: ignore[method-assign]


def _first_ids(composed: Any) -> Iterator[str]:
    """Yield the ids of the messages that are enqueued when something is run: of a pipeline, those of its head."""
    if isinstance(composed, group):
        for child in composed.children:
            yield from _first_ids(child)
    elif isinstance(composed, pipeline):
        yield from _first_ids(composed.messages[0])
    else:
        yield composed.message_id
