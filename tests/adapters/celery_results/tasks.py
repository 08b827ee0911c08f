"""The tasks that the worker processes of these tests run. What each process is to do comes from its environment."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery, chord, group

__all__ = ["app", "register"]


def register(app: Celery) -> Celery:
    """Add the tasks to an application."""

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="total", shared=False)
    def total(values: list[Any]) -> Any:
        return sum(values)

    @app.task(name="collect", shared=False)
    def collect(*values: Any) -> list[Any]:
        return list(values)

    @app.task(name="mul", shared=False)
    def mul(x: int, y: int) -> int:
        return x * y

    @app.task(name="fail", shared=False)
    def fail(text: str = "broken") -> None:
        raise ValueError(text)

    @app.task(name="nap", shared=False)
    def nap(seconds: float, value: Any = None) -> Any:
        time.sleep(seconds)
        return value

    @app.task(name="silent", shared=False, ignore_result=True)
    def silent() -> int:
        return 1

    @app.task(name="progress", shared=False, bind=True)
    def progress(self: Any) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1})
        time.sleep(0.5)
        return "done"

    @app.task(name="again", shared=False, bind=True, max_retries=3, default_retry_delay=0)
    def again(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(name="replaced", shared=False, bind=True)
    def replaced(self: Any, x: int) -> Any:
        return self.replace(add.s(x, 100))

    @app.task(name="replaced_by_group", shared=False, bind=True)
    def replaced_by_group(self: Any, count: int) -> Any:
        return self.replace(group(add.s(i, 1) for i in range(count)))

    @app.task(name="replaced_by_chord", shared=False, bind=True)
    def replaced_by_chord(self: Any, count: int) -> Any:
        return self.replace(chord([add.s(i, 1) for i in range(count)], total.s()))

    @app.task(name="grows", shared=False, bind=True)
    def grows(self: Any, x: int) -> int:
        self.add_to_chord(add.s(x, 1000))
        return x

    @app.task(name="waits_inside", shared=False, bind=True)
    def waits_inside(self: Any) -> int:
        return int(add.delay(20, 2).get(timeout=20, disable_sync_subtasks=False))

    @app.task(name="note_error", shared=False)
    def note_error(task_id: str) -> str:
        note({"error": task_id})
        return task_id

    @app.task(name="note_value", shared=False)
    def note_value(value: Any) -> Any:
        note({"value": value})
        return value

    @app.task(name="connections", shared=False)
    def connections() -> tuple[int, int]:
        return os.getpid(), app.backend.store.engine.connections.total

    @app.task(name="die", shared=False, bind=True, acks_late=True, reject_on_worker_lost=True)
    def die(self: Any, marker: str) -> str:
        if not os.path.exists(marker):
            with open(marker, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    return app


def note(entry: dict[str, Any]) -> None:
    """Write down that something happened, for the test to count."""
    with open(os.environ["TEST_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(json.dumps(entry) + "\n")


if "TEST_SETTINGS" in os.environ:
    # Here this folder is on the path.
    import files  # noqa: F401 - makes files:// known

    app = Celery("tasks")
    app.conf.update(json.loads(os.environ["TEST_SETTINGS"]))
    register(app)
