"""Statements about many queues: bounded, and not all in vain because of one.

A statement holds locks on each table that it names and their indexes, four a queue. All of them come from the lock table of
the whole server, which has room for 6,400 at its default settings. So one statement names `TOGETHER` queues at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.errors import ServerError
from pgqrs_core.messages import Queue
from pgqrs_core.sql import Query

__all__ = ["TOGETHER", "ask_all"]

#: The most queues in one statement: 200 locks.
TOGETHER: Final = 50


def ask_all(
    query: Query,
    params: Mapping[str, object],
    queues: Sequence[Queue],
    *,
    special: Mapping[int, Query] | None = None,
) -> Op[tuple[list[tuple[Any, ...]], dict[int, ServerError]]]:
    """Run a statement of one queue for each of ``queues``, many at a time; return its rows, and errors by queue number.

    ``special`` puts another statement in its place for some queues, by number. Where a queue fails the others with it, they
    are asked again without it. Not for use within a transaction, which an error ends.
    """
    rows: list[tuple[Any, ...]] = []
    failed: dict[int, ServerError] = {}
    # A plan of fifty queues takes 10 MB of the server's memory: it is kept for one set of queues, not for a hundred.
    once = len(queues) > TOGETHER
    for start in range(0, len(queues), TOGETHER):
        parts = [tuple(queues[start : start + TOGETHER])]
        while parts:
            part = parts.pop()
            effect = Execute(query, params, queues=part, special=special or {}, once=once)
            try:
                found: Rows = yield effect
            except ServerError as error:
                if len(part) == 1:
                    failed[part[0].id] = error
                else:
                    once = True
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                rows += found
    return rows, failed
