"""A process that stops the server if the one that started it is killed.

It reads from a pipe that only the starter, and children that it forked, can write to. A process that ends without a word,
by SIGKILL for example, closes the pipe, however that came about.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["Guardian"]

#: Stops the server, as ``pg_ctl stop --mode fast`` does, unless told that there is nothing to do. Another server may serve
#: the same data by then: its number is another one.
_SCRIPT: Final = """
read -r word
[ "$word" = done ] && exit
read -r pid _ < "$1/postmaster.pid" && [ "$pid" = "$2" ] && kill -INT "$pid"
"""


class Guardian:
    """Watches over a server for the process that made it.

    Args:
        data: the data directory.
        pid: the process number of the server.
    """

    def __init__(self, data: Path, pid: int) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(  # noqa: S603 - a fixed script, a path and a number
            ["/bin/sh", "-c", _SCRIPT, "pgqrs-guardian", str(data), str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Else Ctrl-C would end it, and it would keep the directory where it was started.
            start_new_session=True,
            cwd="/",
        )

    def dismiss(self) -> None:
        """Let it end without doing anything; the server is stopped."""
        if self._owner == os.getpid():
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(b"done\n")
