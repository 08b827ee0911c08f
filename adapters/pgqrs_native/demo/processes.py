"""The worker processes: started, killed on purpose, replaced, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Final

from typing_extensions import Self

from pgqrs_native.demo.setting import ADDRESS
from pgqrs_native.demo.tables import DemoError

__all__ = ["Workers"]

#: Workers that end by themselves are replaced this many times in all; then something is wrong with all.
_REPLACEMENTS: Final = 3
_TAIL: Final = 2_000


class Workers:
    """A number of worker processes. Leaving the context ends them, whatever happened.

    Attributes:
        problems: sentences about workers that ended without being asked to.
        started: how many were started, replacements included.
    """

    def __init__(self, conninfo: str, count: int) -> None:
        self.problems: list[str] = []
        self.started = 0
        self._conninfo = conninfo
        self._count = count
        self._running: list[subprocess.Popen[bytes]] = []
        # What they say is shown only when one fails: broken connections are expected here.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the context is left

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            self._reap(process)
        self._running.clear()
        self._log.close()

    def kill_one(self) -> tuple[int, int]:
        """Kill the oldest worker without warning and start another; return the process ids of both."""
        victim = self._running.pop(0)
        victim.kill()
        self._reap(victim)
        return victim.pid, self._start()

    def check(self) -> None:
        """Replace workers that ended by themselves.

        Raises:
            DemoError: they keep doing so.
        """
        for process in [process for process in self._running if process.poll() is not None]:
            self._running.remove(process)
            self._reap(process)
            words = self.last_words()
            reason = f": {words.splitlines()[-1]}" if words else ""
            self.problems.append(f"worker {process.pid} ended by itself, with {_ending(process.returncode)}{reason}")
            if len(self.problems) > _REPLACEMENTS:
                raise DemoError(f"the workers do not stay up. The last words of one:\n{words}")
            self._start()

    def stop(self, patience: float = 15.0) -> None:
        """Ask all workers to end, and wait until they have."""
        self.check()
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for process in self._running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self.problems.append(f"worker {process.pid} did not stop within {patience:g} s of SIGTERM")
                process.kill()
            self._reap(process)
            if process.returncode not in (0, -signal.SIGKILL):
                self.problems.append(f"worker {process.pid} stopped with {_ending(process.returncode)}")
        self._running.clear()

    def last_words(self) -> str:
        """Return the end of what the workers have logged."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - _TAIL, 0))
        return self._log.read().decode(errors="replace").strip()

    def _start(self) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqrs_native.demo.worker"],
            env={**os.environ, ADDRESS: self._conninfo},
            # Never written to: its end tells a worker that this process is gone, even when that was killed.
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            # Control-C is for the command alone, which then ends its workers in order.
            start_new_session=True,
        )
        self._running.append(process)
        self.started += 1
        return process.pid

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> None:
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
