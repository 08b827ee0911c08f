"""Worker processes for tests: started, waited for, asked, and stopped whatever happens."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery
from kombu_support import PATIENCE, eventually, url_of

HERE = Path(__file__).parent


class Worker:
    """One ``celery worker``."""

    def __init__(self, crew: Crew, name: str, pool: str, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self.name = f"{name}@test"
        self.log_file = crew.directory / f"{name}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *f"-m celery -A celery_app worker -l INFO -P {pool} -n {self.name}".split(),
                    *arguments,
                ],
                stdout=log,
                stderr=log,
                env={**crew.environment, **env},
                cwd=crew.directory,
                # The children of a killed worker must not outlive the test.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def ready(self) -> Worker:
        """Wait until it consumes."""
        eventually(lambda: " ready." in self.log or self._must_live(), 2 * PATIENCE)
        return self

    def stop(self, patience: float = PATIENCE) -> None:
        """Stop it warmly; it must end by itself, and have had no surprise."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(patience) == 0, self.log
        assert "Traceback" not in self.log, self.log

    def kill(self) -> None:
        """Kill it with all its children, without a word."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)

    def _must_live(self) -> bool:
        assert self.process.poll() is None, self.log
        return False


class Crew:
    """Workers on one database, an application to command them, and what their tasks noted."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory
        self.url = url_of(dsn)
        self._notes = directory / "notes"
        self._workers: list[Worker] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
            "TEST_BROKER": self.url,
            "TEST_NOTES": str(self._notes),
            "PYTHONWARNINGS": "ignore",
            "C_FORCE_ROOT": "1",
        }
        self.app = self._load()

    def _load(self) -> Celery:
        """Load the application anew: it reads the environment once."""
        names = ("TEST_BROKER", "TEST_NOTES")
        before = {name: os.environ.get(name) for name in names}
        os.environ.update({name: self.environment[name] for name in names})
        try:
            spec = importlib.util.spec_from_file_location("celery_app", HERE / "celery_app.py")
            assert spec is not None
            assert spec.loader is not None
            self.tasks = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.tasks)
            return self.tasks.app  # type: ignore[no-any-return]
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def start(
        self,
        pool: str = "solo",
        *arguments: str,
        name: str = "one",
        options: dict[str, Any] | None = None,
        conf: dict[str, Any] | None = None,
        **env: str,
    ) -> Worker:
        """Start a worker and wait until it is ready; ``options`` are transport options."""
        env = {f"TEST_{key.upper()}": value for key, value in env.items()}
        env.update(TEST_OPTIONS=json.dumps(options or {}), TEST_CONF=json.dumps(conf or {}))
        self._workers.append(Worker(self, name, pool, arguments, env))
        return self._workers[-1].ready()

    def command(self, *arguments: str, seconds: float | None = None) -> str:
        """Run ``celery`` with these arguments, to its end or for some seconds, and return what it prints."""
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "celery", "-A", "celery_app", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.directory,
        )
        try:
            output, _ = process.communicate(timeout=seconds or 2 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            assert seconds, output
            return output
        assert process.returncode == 0, output
        return output

    def notes(self) -> Counter[str]:
        """What tasks noted, and how often."""
        return Counter(self._notes.read_text().splitlines()) if self._notes.exists() else Counter()

    def wait_for(self, *lines: str, patience: float = PATIENCE) -> Counter[str]:
        """Wait until these were noted."""
        eventually(lambda: set(lines) <= self.notes().keys(), patience)
        return self.notes()

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True, application_name="test") as connection:
            cursor = connection.execute(statement, params or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def is_empty(self, queue: str = "celery") -> bool:
        """Whether nothing of a queue is left, held or not."""
        return self.sql(f"select count(*) from pgqrs.q_{queue}") == [(0,)]

    def inspect(self, worker: Worker) -> Any:
        return self.app.control.inspect(destination=[worker.name], timeout=PATIENCE / 3)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.app.pool.force_close_all()
        self.app.close()
