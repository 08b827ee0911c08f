"""Programs that tests start: waited for, stopped, and gone whatever happens; and what the programs noted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Generic, TypeVar

from pgqrs_core.testing import PATIENCE, eventually


def import_path(*folders: Path) -> str:
    """The ``PYTHONPATH`` of a process that imports what this one can, and what lies in ``folders``."""
    return os.pathsep.join([*map(str, folders), *filter(None, sys.path)])


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports what this one can, and that nothing outside configures."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGQRS_", "DATABASE_URL"))}
    return {**kept, "PYTHONPATH": import_path(), "PYTHONUNBUFFERED": "1", **more}


def python(script: str, *arguments: str) -> str:
    """Run a script in another process to its end, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": import_path()},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Process:
    """One ``python …`` with all its children, and what they print, in a file."""

    def __init__(self, name: str, arguments: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log_file = directory / f"{name}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=directory,
                # The children of a killed worker must not outlive the test.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, words: str, patience: float = 2 * PATIENCE) -> None:
        """Wait until it has printed these words."""

        def printed() -> bool:
            log = self.log
            assert words in log or self.process.poll() is None, log
            return words in log

        eventually(printed, patience, what=f"{self.name} prints {words!r}")

    def stop(self, patience: float = PATIENCE) -> float:
        """Stop it gracefully; it must end by itself. Return how many seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(patience) == 0, self.log
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it with all its children, without a word."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)


P = TypeVar("P", bound=Process)


class Crew(Generic[P]):
    """The processes of a test, in one directory and one environment, and a file in which they note what they do."""

    def __init__(self, kind: type[P], directory: Path, **environment: str) -> None:
        self._kind = kind
        self.directory = directory
        self.notes_file = directory / "notes"
        self.processes: list[P] = []
        self.environment = {**os.environ, "TEST_NOTES": str(self.notes_file), **environment}

    def run(self, name: str, arguments: list[str], ready: str, **environment: str) -> P:
        """Start ``python …``, and return when it has printed that it is ready."""
        process = self._kind(name, arguments, self.directory, {**self.environment, **environment})
        self.processes.append(process)
        process.wait_for(ready)
        return process

    def notes(self) -> Counter[str]:
        """What was noted, and how often."""
        return Counter(self.notes_file.read_text().splitlines()) if self.notes_file.exists() else Counter()

    def wait_for(self, *lines: str, patience: float = PATIENCE) -> Counter[str]:
        """Wait until these were noted."""
        try:
            eventually(lambda: set(lines) <= self.notes().keys(), patience, what=f"{lines} are noted")
        except AssertionError:
            print(*(process.log for process in self.processes), sep="\n")
            raise
        return self.notes()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
