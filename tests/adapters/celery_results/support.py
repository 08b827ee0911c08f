"""What the tests of the result backend share: applications, worker processes, and a look into the database."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from celery import Celery
from psycopg.rows import dict_row

from tests.support.processes import Crew, Process, import_path

from . import files  # noqa: F401 - makes files:// known
from .tasks import register

__all__ = ["Broker", "Workers", "ask", "make_app", "notes_in", "request_of"]


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


def request_of(**fields: Any) -> Any:
    """What a worker knows of a task that it runs."""
    from celery.app.task import Context

    return Context({"delivery_info": {"routing_key": "celery"}, "children": [], **fields})


def notes_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Workers(Crew[Process]):
    """Worker processes of one test."""

    def __init__(self, url: str, broker: Broker, folder: Path) -> None:
        # Or a worker of root's refuses pickle.
        super().__init__(Process, folder, C_FORCE_ROOT="1", PYTHONPATH=import_path(Path(__file__).parent))
        self._url = url
        self._broker = broker

    def start(self, *, pool: str = "prefork", concurrency: int = 2, **settings: Any) -> Process:
        """Start a worker and return when it is ready."""
        name = f"w{len(self.processes)}"
        command = [
            "-m",
            "celery",
            "-A",
            "tasks",
            "worker",
            "-P",
            pool,
            "-c",
            str(concurrency),
            "-n",
            f"{name}@localhost",
        ]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info"]
        settings = settings_of(self._url, self._broker, settings)
        return self.run(name, command, " ready.", TEST_SETTINGS=json.dumps(settings))

    def log(self, number: int = 0) -> str:
        return self.processes[number].log

    def close(self) -> None:
        """Stop all, warmly if they let themselves."""
        for process in self.processes:
            process.process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(15)
        super().close()
