"""Celery: a producer that calls tasks, and the command ``celery worker``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import kombu
import pgqrs_kombu
from celery import Celery as Application
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from pgqrs_kombu.compat import BatchPublishError

from actors.handling import Failed, Handler
from actors.kombu import url_of
from actors.options import Notes, Options
from pgqrs_core.errors import PgqrsError

__all__ = ["Celery", "work"]


def _nobody(key: str, attempt: int) -> None:
    """What handles messages in a process that only sends them."""


def _application(dsn: str, options: Options, handle: Callable[[str, int], None] = _nobody) -> tuple[Application, Any]:
    app = Application("crowd", broker=url_of(dsn))
    app.conf.update(
        broker_transport_options={"lease": options.held_for, "query_timeout": options.timeout},
        broker_connection_retry_on_startup=True,
        task_queues=[kombu.Queue(options.meets_at)],
        task_default_queue=options.meets_at,
        task_ignore_result=True,
        # A producer here has to know what became of each try.
        task_publish_retry=False,
        worker_prefetch_multiplier=max(options.batch // options.concurrency, 1),
    )

    @app.task(name="handle", bind=True, shared=False, acks_late=True, reject_on_worker_lost=True)
    def task(self: Any, key: str) -> None:
        _, _, attempt = self.request.properties["delivery_info"]["pgqrs"]
        try:
            handle(key, attempt)
        except Failed as error:
            raise Reject(error, requeue=True) from error

    return app, task


class Celery:
    """Calls tasks."""

    errors = (PgqrsError, OSError, OperationalError, BatchPublishError)
    doubts = (BatchPublishError,)
    sizes = (1, 1, 1, 5)

    def __init__(self, dsn: str, options: Options) -> None:
        self._app, self._task = _application(dsn, options)

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        """Call a task for each key; several are stored at once or not at all."""
        with pgqrs_kombu.batch() if len(keys) > 1 else nullcontext():
            for key in keys:
                self._task.apply_async((key,), priority=priority, countdown=delay)
        return [0] * len(keys)

    def send_within(self, connection: Any, keys: list[str]) -> list[int]:
        """Call tasks in the caller's transaction."""
        with pgqrs_kombu.in_transaction(connection):
            return self.send(keys, 0, None)

    def close(self) -> None:
        self._app.pool.force_close_all()
        self._app.close()


def work(name: str, dsn: str, options: Options, notes: Notes) -> None:
    """Be a Celery worker until it is stopped."""
    app, _ = _application(dsn, options, Handler(notes, options))
    # That it is root is of no concern here.
    warnings.simplefilter("ignore")
    command = f"-q worker -l WARNING -P {options.pool} -c {options.concurrency} -n {name}@crowd"
    app.worker_main(command.split())
