"""Results and groups, as operations: which statements, in which order. See `pgqrs_core.effects`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pgqrs_celery.sql import queries
from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Rows

__all__ = [
    "await_no_more",
    "await_results",
    "delete_group",
    "forget_result",
    "prune",
    "read_group",
    "read_results",
    "save_group",
    "store_result",
]

#: Rows removed by one statement of the clean-up, so that none of them holds many locks or lasts long.
PAGE: Final = 1_000


def store_result(row: Mapping[str, object]) -> Op[None]:
    """Store the state of one task, and notify those who wait for it."""
    yield Execute(queries["store_result"], row)


def read_results(task_ids: Collection[str]) -> Op[Rows]:
    """Return the rows that there are for some tasks."""
    if not task_ids:
        return ()
    rows: Rows = yield Execute(queries["read_results"], {"ids": texts(task_ids)})
    return rows


def forget_result(task_id: str) -> Op[None]:
    """Remove the result of a task."""
    yield Execute(queries["forget_result"], {"task_id": task_id})


def save_group(group_id: str, result: bytes, content_type: str, expires: float | None) -> Op[None]:
    """Store the structure of a group's results. To change it afterwards takes the rights of a consumer."""
    params = {"group_id": group_id, "result": result, "content_type": content_type, "expires": expires}
    if (yield Execute(queries["save_group"], params)):
        return
    found = yield Execute(queries["read_group"], {"group_id": group_id})
    if not found or tuple(found[0][:2]) != (result, content_type):
        yield Execute(queries["replace_group"], params)


def read_group(group_id: str) -> Op[tuple[Any, ...] | None]:
    """Return a group's structure, its content type, and when it was saved; None when there is none."""
    rows = yield Execute(queries["read_group"], {"group_id": group_id})
    return rows[0] if rows else None


def delete_group(group_id: str) -> Op[None]:
    """Remove a group's structure; the results of its tasks stay."""
    yield Execute(queries["delete_group"], {"group_id": group_id})


def await_results(task_ids: Collection[str], channel: str, seconds: float) -> Op[None]:
    """Ask to be told of some results on ``channel`` for the next ``seconds``."""
    yield Execute(queries["await_results"], {"ids": texts(task_ids), "channel": channel, "seconds": seconds})


def await_no_more(task_ids: Collection[str], channel: str) -> Op[None]:
    """Take back what `await_results` asked for."""
    yield Execute(queries["await_no_more"], {"ids": texts(task_ids), "channel": channel})


def prune() -> Op[int]:
    """Remove what has expired, in small steps; return how many results, groups and chords that were."""
    removed = 0
    for name in ("prune_waiters", "prune_results", "prune_groups", "prune_chords"):
        while True:
            rows = yield Execute(queries[name], {"limit": PAGE})
            removed += len(rows) if name != "prune_waiters" else 0
            if len(rows) < PAGE:
                break
    return removed
