"""Which queues a message goes to: an exchange with its bindings, as it was last read."""

from __future__ import annotations

import re
from typing import NamedTuple

from pgqrs_core.effects import Execute, Op
from pgqrs_kombu.sql import queries

__all__ = ["Route", "Table", "exchange_table", "pattern_of"]


class Route(NamedTuple):
    """A binding of a durable queue."""

    routing_key: str
    pattern: re.Pattern[str] | None
    queue: str
    message_ttl: float | None

    def matches(self, kind: str, routing_key: str) -> bool:
        """Tell whether a message with this routing key goes this way."""
        if kind == "fanout":
            return True
        if self.pattern is not None:
            return self.pattern.fullmatch(routing_key + ".") is not None
        return self.routing_key == routing_key


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
        Route(key, re.compile(pattern.removeprefix("^").removesuffix("$")) if pattern else None, queue, ttl)
        for _, key, pattern, queue, ephemeral, ttl, _ in rows
        if queue is not None and not ephemeral
    ]
    return Table(rows[0][0], tuple(routes), any(row[4] for row in rows))


def pattern_of(routing_key: str) -> str:
    """Return a binding key of a topic exchange as a regular expression on a routing key with a dot behind it.

    ``*`` is one word, ``#`` any number of them, none included. With a dot behind every word each of them translates by
    itself. The expression means the same to Python and to PostgreSQL.
    """
    words = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    return "".join(words.get(word, re.escape(word) + r"\.") for word in routing_key.split("."))
