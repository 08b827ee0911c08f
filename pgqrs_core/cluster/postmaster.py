"""Who serves a data directory right now, and whether anything of an earlier server still lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgqrs_core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Postmaster", "drop_impostor", "nothing_alive", "postmaster"]

_PROC: Final = Path("/proc/self/stat")
_PAUSE: Final = 0.02  # seconds between two attempts to get the lock


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server, as it describes itself.

    Attributes:
        pid: Its process number.
        port: The port of its socket and, if it listens, of TCP.
        socket_dir: Where its Unix socket is.
        listens: Whether it listens on TCP.
        status: ``starting``, ``ready``, ``stopping`` or ``standby``.
    """

    pid: int
    port: int
    socket_dir: Path
    listens: bool
    status: str


def postmaster(data: Path) -> Postmaster | None:
    """Describe the server of a data directory; ``None`` when it is not running."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    if not _serves(pid, data):
        return None
    # Right after the start, the last lines are not written yet.
    lines += [""] * 8
    status = lines[7].strip() or "starting"
    return Postmaster(pid, int(lines[3] or 0), Path(lines[4]), bool(lines[5]), status)


@contextlib.contextmanager
def nothing_alive(path: Path, deadline: float) -> Iterator[int]:
    """Wait until no process of a server lives, and keep it so for the block.

    After a SIGKILL of the postmaster its children linger for a moment, and a new server must not start beside
    them. All of them inherit the lock on one file, which the kernel gives back with the last of them.

    Args:
        path: The file; created when missing.
        deadline: The time on the monotonic clock, in seconds, at which to give up.

    Yields:
        The locked file descriptor, for the next server to inherit.

    Raises:
        Unavailable: Something still lived at the deadline.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"processes of an earlier server in {path.parent} do not end", target=str(path.parent)
                    ) from error
                time.sleep(_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


def drop_impostor(data: Path, socket_lock: Path) -> None:
    """Remove stale lock files whose process number now belongs to another program, or to a zombie.

    PostgreSQL removes other stale ones itself, but refuses to start for these: common in containers, where
    numbers are small and nobody may reap. Call it only when no process of the server can be alive.

    Args:
        data: The data directory.
        socket_lock: The lock file beside the Unix socket, in a directory that only this server uses.
    """
    if _PROC.exists() and postmaster(data) is None:
        (data / "postmaster.pid").unlink(missing_ok=True)
        socket_lock.unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    """Tell whether a process is the server of a data directory, as far as the system lets us see.

    A number alone proves nothing: after a restart of the machine it belongs to any program.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if not _PROC.exists():
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        name, _, rest = stat.partition("(")[2].rpartition(") ")
        # Its working directory is the data directory; a zombie has none.
        return (
            rest[:1] not in {"Z", "X"}
            and name in {"postgres", "postmaster"}
            and Path(f"/proc/{pid}/cwd").samefile(data)
        )
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False
