"""What the tests of the result backend share: applications, worker processes, and a look into the database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from celery import Celery
from psycopg.rows import dict_row

from . import files  # noqa: F401 - makes files:// known
from .tasks import register

__all__ = ["Broker", "Workers", "ask", "eventually", "make_app", "notes_in", "request_of"]


class Broker(NamedTuple):
    """Where messages go."""

    url: str
    options: dict[str, Any]


def settings_of(url: str, broker: Broker, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "broker_url": broker.url,
        "broker_transport_options": broker.options,
        "result_backend": url,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "worker_send_task_events": False,
        **settings,
    }


def make_app(url: str, broker: Broker, settings: dict[str, Any]) -> Celery:
    app = Celery("tests", set_as_current=False)
    app.conf.update(settings_of(url, broker, settings))
    return register(app)


def ask(dsn: str, statement: str, *params: Any) -> list[dict[str, Any]]:
    """Run a statement on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait for a condition, and fail if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def request_of(**fields: Any) -> Any:
    """What a worker knows of a task that it runs."""
    from celery.app.task import Context

    return Context({"delivery_info": {"routing_key": "celery"}, "children": [], **fields})


def notes_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Workers:
    """Worker processes of one test."""

    def __init__(self, url: str, broker: Broker, folder: Path) -> None:
        self._url = url
        self._broker = broker
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.notes = folder / "notes"

    def start(self, *, pool: str = "prefork", concurrency: int = 2, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker and return when it is ready."""
        log = self._folder / f"worker{len(self._processes)}.log"
        environment = {
            **os.environ,
            "TEST_SETTINGS": json.dumps(settings_of(self._url, self._broker, settings)),
            "TEST_NOTES": str(self.notes),
            # Or a worker of root's refuses pickle.
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        }
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "-c", str(concurrency)]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info"]
        command += ["-n", f"w{len(self._processes)}@localhost"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        eventually(lambda: self._is_ready(process, log), 40)
        return process

    def log(self, number: int = 0) -> str:
        return (self._folder / f"worker{number}.log").read_text(errors="replace")

    def end(self) -> None:
        """Stop all, warmly if they let themselves."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(5)

    @staticmethod
    def _is_ready(process: subprocess.Popen[bytes], log: Path) -> bool:
        text = log.read_text(errors="replace")
        assert process.poll() is None, text
        return " ready." in text
