"""The application of the scenario ``celery``: tasks that do nothing but note when they ran."""

from __future__ import annotations

import json
import os
import struct
import time
from typing import Any, Final

from celery import Celery

__all__ = ["TICK", "make_app"]

#: What a task notes: seconds of the monotonic clock, which all processes share.
TICK: Final = struct.Struct("d")


def make_app(url: str, options: dict[str, Any]) -> Celery:
    """Return an application with everything as Celery has it by default."""
    app = Celery("benchmarks.celery_app", broker=url, set_as_current=False)
    app.conf.update(broker_transport_options=options, task_ignore_result=True, broker_connection_retry_on_startup=True)
    # Short writes that append do not mix; one file descriptor serves all processes of the pool.
    notes = os.open(os.environ["BENCH_TICKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @app.task(name="noop", shared=False)
    def noop() -> None:
        os.write(notes, TICK.pack(time.monotonic()))

    @app.task(name="pickup", shared=False)
    def pickup(sent: float) -> None:
        os.write(notes, TICK.pack(time.monotonic() - sent))

    return app


def __getattr__(name: str) -> Any:
    """Make the worker's application when Celery looks for it."""
    if name == "app":
        return make_app(os.environ["BENCH_BROKER"], json.loads(os.environ["BENCH_OPTIONS"]))
    raise AttributeError(name)
