"""Worker processes for tests: started, waited for, asked, and stopped whatever happens."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from celery import Celery

from pgqrs_core.testing import PATIENCE
from tests.adapters.kombu.kombu_support import url_of
from tests.support.database import Database
from tests.support.processes import Crew, Process, import_path

HERE = Path(__file__).parent


class Worker(Process):
    """One ``celery worker``."""

    def stop(self, patience: float = PATIENCE) -> float:
        """Stop it warmly; it must end by itself, and have had no surprise."""
        seconds = super().stop(patience)
        assert "Traceback" not in self.log, self.log
        return seconds


class Workers(Crew[Worker]):
    """Workers on one database, an application to command them, and what their tasks noted."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.url = url_of(dsn)
        super().__init__(
            Worker,
            directory,
            PYTHONPATH=import_path(HERE),
            TEST_BROKER=self.url,
            PYTHONWARNINGS="ignore",
            # Or a worker of root's refuses pickle.
            C_FORCE_ROOT="1",
        )
        self.dsn = dsn
        self.database = Database(dsn)
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
        command = f"-m celery -A celery_app worker -l INFO -P {pool} -n {name}@test".split()
        return self.run(f"{name}@test", [*command, *arguments], " ready.", **env)

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

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.database.sql(statement, *params)

    def is_empty(self, queue: str = "celery") -> bool:
        """Whether nothing of a queue is left, held or not."""
        return self.sql(f"select count(*) from pgqrs.q_{queue}") == [(0,)]

    def let_go(self) -> None:
        """Let the tasks end that hold until they are told to."""
        self.notes_file.with_name(self.notes_file.name + ".go").touch()

    def inspect(self, worker: Worker) -> Any:
        return self.app.control.inspect(destination=[worker.name], timeout=PATIENCE / 3)

    def close(self) -> None:
        super().close()
        self.app.pool.force_close_all()
        self.app.close()
        self.database.close()
