"""Making the directories of a server: all of a data directory or none of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pgqrs_core.cluster.programs import Account, can_reach, major_version, run
from pgqrs_core.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["give", "initialise", "make_directory"]


def make_directory(directory: Path, account: Account | None) -> None:
    """Create a directory that the account can enter but nobody else; leave an existing one as it is.

    Raises:
        ConfigurationError: It cannot be created, the account cannot enter it, or it is itself a data
            directory of PostgreSQL.
    """
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                if account is not None:
                    _open_to(path, account, parent=path != directory)
    except OSError as error:
        raise ConfigurationError(f"cannot create {directory}: {error.strerror}") from error
    if not can_reach(directory, account):
        who = f"user {account.name!r}, which runs PostgreSQL for root," if account else "this user"
        raise ConfigurationError(f"{who} cannot enter {directory}; choose a directory below an open one")
    if (directory / "PG_VERSION").exists():
        raise ConfigurationError(
            f"{directory} is itself a data directory of PostgreSQL; name a directory to keep a server in"
        )


def initialise(bindir: Path, data: Path, account: Account | None, *, user: str, password: str, durable: bool) -> None:
    """Make a data directory if there is none yet. An interrupted attempt leaves none.

    Args:
        bindir: The directory of ``initdb`` and ``postgres``.
        data: The data directory; its parent exists and holds nothing of anybody else.
        account: Who will own it; ``None`` for the caller.
        user: The superuser's name.
        password: The superuser's password.
        durable: Whether to wait until everything is on disk.

    Raises:
        ConfigurationError: The data belongs to another major version, or is no data directory.
        Unavailable: ``initdb`` failed; the message ends with what it said.
    """
    major = major_version(bindir, account)
    if (marker := data / "PG_VERSION").exists():
        found = marker.read_text(encoding="utf-8").strip()
        if found != str(major):
            raise ConfigurationError(
                f"{data} was written by PostgreSQL {found}, but the programs in {bindir} are PostgreSQL "
                f"{major}. Dump it with version {found} and restore it into a new directory, or choose "
                "another directory."
            )
        return
    # Half of a data directory cannot be told from a whole one, so it gets its name only when it is done.
    for leftover in data.parent.glob(f"{data.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{data.name}.partial-", dir=data.parent))
    try:
        give(staging, account)
        with _password_file(data.parent, password, account) as file:
            done = run(
                [
                    *(bindir / "initdb", "--pgdata", staging, "--username", user, "--pwfile", file),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                    *(() if durable else ("--no-sync",)),
                ],
                account,
                timeout=120,
            )
        if done.returncode != 0:
            raise Unavailable(f"initdb failed: {done.stdout.strip()[-2000:]}", target=str(data))
        try:
            staging.rename(data)
        except OSError as error:
            raise ConfigurationError(f"{data} exists, but is not a data directory of PostgreSQL") from error
        _sync(data.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def give(path: Path, account: Account | None) -> None:
    """Hand something that was just made to the account that runs the server."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _open_to(path: Path, account: Account, *, parent: bool) -> None:
    """Let the account pass through a directory that root just made, whatever root's umask is."""
    if parent:
        path.chmod(0o755)
    else:
        os.chown(path, -1, account.gid)
        path.chmod(0o710)


@contextlib.contextmanager
def _password_file(directory: Path, password: str, account: Account | None) -> Iterator[Path]:
    """Lend ``initdb`` the password in a file that only the account can read."""
    path = directory / f"initdb-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(password)
        give(path, account)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Make a rename inside a directory survive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
