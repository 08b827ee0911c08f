"""What the tests of the command share: a shell that runs it in this process, and one that runs it in its own."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgqrs_native.command.app import run

ENTRY = [sys.executable, "-c", "from pgqrs_native.command import main; main()"]


class Result(NamedTuple):
    """What a run left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs the command in this process; nobody sits at its terminal."""

    def __init__(self, capture: Callable[[], tuple[str, str]]) -> None:
        self._capture = capture

    def __call__(self, *words: str) -> Result:
        """Run it, whatever comes of it."""
        code = run(words)
        return Result(code, *self._capture())

    def ok(self, *words: str) -> Result:
        """Run it; it must succeed."""
        result = self(*words)
        assert result.code == 0, result
        return result

    def json(self, *words: str) -> Any:
        """Run it with ``--json``; it must succeed and write nothing but the document."""
        result = self.ok(*words, "--json")
        assert result.err == ""
        return result.document

    def refused(self, *words: str, code: int) -> str:
        """Run it; it must fail with this code, and say why in one line. Return that line."""
        result = self(*words)
        assert result.code == code, result
        assert result.out == ""
        assert result.err.count("\n") == 1, result.err
        assert "Traceback" not in result.err
        return result.err


def spawn(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    return subprocess.run([*ENTRY, *words], capture_output=True, timeout=60, check=False, **options)


def at_terminal(*words: str, answers: Sequence[str] = (), then: str = "", cwd: Path | None = None) -> tuple[int, str]:
    """Run the command at a terminal; type ``answers`` once ``then`` is to be read. Return its code and the screen."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ENTRY, *words], stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env={**os.environ, "TERM": "xterm"}
    )
    os.close(slave)
    seen = b""
    waiting = list(answers)
    try:
        while True:
            try:
                chunk = os.read(master, 65_536)
            except OSError as error:
                # Linux says so when the last process has closed the terminal.
                if error.errno == errno.EIO:
                    break
                raise
            if not chunk:
                break
            seen += chunk
            if waiting and then.encode() in seen:
                os.write(master, waiting.pop(0).encode())
        # Where the lines break depends on the terminal.
        return process.wait(30), " ".join(seen.decode(errors="replace").split())
    finally:
        process.kill()
        process.wait()
        os.close(master)
