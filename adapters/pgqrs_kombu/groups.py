"""Celery's groups are published in one transaction: a group is stored whole, or not at all, and costs one commit.

Celery publishes the members of a group one after the other, and has no door for a broker that can do better. So the one
method that does it is wrapped in a batch. It takes the group's members only: what signal handlers and others publish
meanwhile goes out by itself.

A group that a generator makes is left to Celery, which publishes each member before it asks for the next but one: the
generator may wait for what a member does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from kombu.utils.functional import retry_over_time

from pgqrs_core.errors import Unavailable
from pgqrs_kombu.outbox import current_scope, gather

if TYPE_CHECKING:
    from pgqrs_kombu.gathering import Gathering

__all__ = ["publish_groups_together"]


def publish_groups_together() -> None:
    """Wrap Celery's groups. Without effect while Celery is not loaded, on other brokers, and when repeated."""
    group = getattr(sys.modules.get("celery.canvas"), "group", None)
    original = getattr(group, "_apply_tasks", None)
    if group is None or original is None or hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def apply_tasks(self: Any, tasks: Iterable[Any], *args: Any, **options: Any) -> Any:
        # One within a batch of the caller's, or a header within a group, goes with that.
        scope = current_scope(next(_first_ids(self), None))
        if (scope is not None and scope.batch is not None) or not _is_complete(self):
            return original(self, tasks, *args, **options)
        members: set[str] = set()
        with gather(members=members) as gathering:
            results = list(original(self, _noted(tasks, members), *args, **options))
        _flush(gathering, self.app.conf, options)
        return iter(results)

    group._apply_tasks = apply_tasks


def _is_complete(group: Mapping[str, Any]) -> bool:
    """Tell whether all members of a group are there, so that nobody else's code runs when they are asked for."""
    tasks = group["kwargs"]["tasks"]
    # Celery keeps those of a generator in a kind of list that is filled as it is read.
    return type(tasks) in (list, tuple) and all(
        _is_complete(task) for task in tasks if task.get("subtask_type") == "group"
    )


def _noted(tasks: Iterable[Any], members: set[str]) -> Iterator[Any]:
    """Yield what Celery is about to publish, with the ids of its first tasks noted."""
    for item in tasks:
        members.update(_first_ids(item[0]))
        yield item


def _first_ids(signature: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of the tasks that are published when a signature is applied: of a chain, those of its head."""
    kind = signature.get("subtask_type")
    if kind not in ("chain", "group", "chord"):
        if "task_id" in signature["options"]:
            yield signature["options"]["task_id"]
        return
    inner = signature["kwargs"]["header" if kind == "chord" else "tasks"]
    if isinstance(inner, Mapping):
        yield from _first_ids(inner)
    elif type(inner) in (list, tuple):
        for task in inner[:1] if kind == "chain" else inner:
            yield from _first_ids(task)


def _flush(gathering: Gathering, conf: Any, options: dict[str, Any]) -> None:
    """Write it, with the retries that each member would have had alone; none when it may have been stored."""
    if not options.get("retry", conf.task_publish_retry):
        gathering.flush()
        return
    policy = {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
    known = ("max_retries", "interval_start", "interval_step", "interval_max")
    retry_over_time(gathering.flush, (Unavailable,), **{name: policy[name] for name in known if name in policy})
