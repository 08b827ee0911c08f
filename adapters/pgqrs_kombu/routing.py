"""Which queues a message goes to: an exchange with its bindings, as it was last read."""

from __future__ import annotations

from typing import NamedTuple

from pgqrs_core.effects import Execute, Op
from pgqrs_kombu.patterns import matches
from pgqrs_kombu.sql import queries

__all__ = ["Route", "Table", "exchange_table"]


class Route(NamedTuple):
    """A binding of a durable queue."""

    routing_key: str
    is_pattern: bool
    queue: str
    message_ttl: float | None

    def matches(self, kind: str, routing_key: str) -> bool:
        """Tell whether a message with this routing key goes this way."""
        if kind == "fanout":
            return True
        return matches(self.routing_key, routing_key) if self.is_pattern else self.routing_key == routing_key


class Table(NamedTuple):
    """An exchange: its type, its bindings to durable queues, and whether there are others."""

    kind: str
    routes: tuple[Route, ...]
    has_mailboxes: bool


def exchange_table(name: str) -> Op[Table | None]:
    """Return an exchange with its bindings, or None."""
    rows = yield Execute(queries["exchange_table"], {"name": name})
    if not rows:
        return None
    routes = [
        Route(key, pattern is not None, queue, ttl)
        for _, key, pattern, queue, ephemeral, ttl, _ in rows
        if queue is not None and not ephemeral
    ]
    return Table(rows[0][0], tuple(routes), any(row[4] for row in rows))
