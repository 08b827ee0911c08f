"""Celery's groups are published in one transaction: a group is stored whole, or not at all, and costs one commit.

Celery publishes the members of a group one after the other, and has no door for a broker that can do better. So the one
method that does it is wrapped in a `batch`.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

from kombu.utils.functional import retry_over_time

from pgqrs_core.errors import Unavailable
from pgqrs_kombu.outbox import batch, current_batch

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
    def apply_tasks(self: Any, *args: Any, **options: Any) -> Any:
        is_outermost = current_batch() is None
        with batch() as gathering:
            # All of them now: an open batch must not gather what is published besides.
            results = list(original(self, *args, **options))
            if is_outermost:
                _flush(gathering, self.app.conf, options)
        return iter(results)

    group._apply_tasks = apply_tasks


def _flush(gathering: Gathering, conf: Any, options: dict[str, Any]) -> None:
    """Write it, with the retries that each member would have had alone; none when it may have been stored."""
    if not options.get("retry", conf.task_publish_retry):
        gathering.flush()
        return
    policy = {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
    known = ("max_retries", "interval_start", "interval_step", "interval_max")
    retry_over_time(gathering.flush, (Unavailable,), **{name: policy[name] for name in known if name in policy})
