"""One PostgreSQL server in a directory of its own.

    directory/
        data/           PostgreSQL's data directory
        run/            its Unix socket, unless the path would be too long for one
        server.log      what it says
        server.alive    locked by every process of the server, for as long as it lives

The server is private: only its account and root can reach its Unix socket, it listens on 127.0.0.1 only if a
port is asked for, and it always wants the password.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from pgqrs_core.cluster.datadir import give, initialise, make_directory
from pgqrs_core.cluster.environment import neutral_parameters, without_service
from pgqrs_core.cluster.postmaster import Postmaster, drop_impostor, nothing_alive, postmaster
from pgqrs_core.cluster.programs import Account, run, server_account
from pgqrs_core.errors import ConfigurationError, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Cluster", "ShutdownMode"]

ShutdownMode = Literal["smart", "fast", "immediate"]

_DEFAULT_PORT: Final = 5432
_SOCKET_PATH_LIMIT: Final = 100  # bytes; the kernel's own is 107 on Linux and 103 on macOS
_LOG_LIMIT: Final = 10_000_000  # bytes after which a start begins a new log
_PAUSE: Final = 0.02  # seconds between two looks at a server that comes or goes
_OURS: Final = frozenset({"port", "listen_addresses", "unix_socket_directories"})
# A crash of the machine may harm a throw-away server, a crash of the server may not: commits stay safe.
_THROW_AWAY: Final = {"fsync": "off", "full_page_writes": "off"}


class Cluster:
    """A server and its directory.

    Args:
        bindir: The directory of ``initdb``, ``pg_ctl`` and ``postgres``, version 14 or newer.
        directory: Where everything lives; created when missing. Its parents must be open to the account.
        password: The password of the role ``pgqrs``; set when the data directory is made.
        port: A TCP port on 127.0.0.1, 1 to 65535; ``None`` for the Unix socket only.
        options: Server settings for the next start, as ``{"work_mem": "8MB"}``.
        durable: ``False`` trades safety against a crash of the machine for speed.

    Raises:
        InvalidArgument: The port or an option is not allowed.
        ConfigurationError: The caller is root, and no account can run the server.
    """

    user: Final = "pgqrs"
    database: Final = "pgqrs"

    def __init__(
        self,
        bindir: Path,
        directory: Path,
        *,
        password: str,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        durable: bool = True,
    ) -> None:
        if port is not None and not 1 <= port <= 65535:
            raise InvalidArgument("port", port, "between 1 and 65535")
        for key in options or {}:
            if key in _OURS or not re.fullmatch(r"[a-z_][a-z0-9_.]*", key):
                allowed = f"names of server settings other than {', '.join(sorted(_OURS))}"
                raise InvalidArgument("options", key, allowed)
        self.bindir = bindir
        self.directory = Path(os.path.abspath(directory))
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.password = password
        self.port = port
        self.options = dict(options or {})
        self.durable = durable
        self.account: Account | None = server_account(self.data)
        self._run_dir = self.directory / "run"
        self._alive = self.directory / "server.alive"
        self._socket_dir: Path | None = None

    @property
    def dsn(self) -> str:
        """The connection URL of the database ``pgqrs``, password included.

        Raises:
            Unavailable: The server was never started.
        """
        return self.dsn_for(self.database)

    def dsn_for(self, database: str) -> str:
        """Return the connection URL of another database of this server."""
        login = f"postgresql://{self.user}:{quote(self.password, safe='')}@"
        name = quote(database, safe="")
        if self.port is not None:
            return f"{login}127.0.0.1:{self.port}/{name}" + _query(neutral_parameters("127.0.0.1"))
        running = self.postmaster()
        port = running.port if running else _DEFAULT_PORT
        # A server that is just starting has not said yet where its socket is.
        told = running.socket_dir if running and running.socket_dir.is_absolute() else None
        socket_dir = told or self._socket_dir
        if socket_dir is None:
            raise Unavailable(f"no server runs in {self.directory}", target=str(self.directory))
        # The port is named, so that a PGPORT in somebody's environment cannot lead elsewhere.
        place = {"host": str(socket_dir), "port": str(port)}
        return f"{login}/{name}" + _query({**place, **neutral_parameters(str(socket_dir))})

    def postmaster(self) -> Postmaster | None:
        """Describe the running server; ``None`` when it is not running."""
        return postmaster(self.data)

    def start(self, *, timeout: float = 60) -> bool:
        """Start the server, or find it running; either way it answers and has its database afterwards.

        Args:
            timeout: Seconds for the server to come up, recovery from a crash included.

        Returns:
            Whether this call started it. Options have no effect on a server that was running.

        Raises:
            ConfigurationError: The directory cannot be used, its data is of another major version, or the
                running server lacks the port that was asked for.
            Unavailable: It does not start; the message ends with the tail of its log.
        """
        deadline = time.monotonic() + timeout
        make_directory(self.directory, self.account)
        initialise(self.bindir, self.data, self.account, user=self.user, password=self.password, durable=self.durable)
        started = False
        while (running := self.postmaster()) is None or running.status != "ready":
            if running is None and not started:
                self._launch(deadline)
                started = True
            elif time.monotonic() > deadline:
                raise Unavailable(f"the server in {self.directory} does not get ready", target=str(self.data))
            else:
                # Another process started or stops it, and died while doing so.
                time.sleep(_PAUSE)
        if self.port is not None and (running.port != self.port or not running.listens):
            raise ConfigurationError(
                f"the server in {self.directory} is running, but not on TCP port {self.port}; stop it first"
            )
        self._socket_dir = running.socket_dir
        self._create_database()
        return started

    def stop(self, mode: ShutdownMode = "fast", *, timeout: float = 60) -> bool:
        """Stop the server and wait for its end.

        Args:
            mode: ``fast`` breaks off sessions, ``smart`` waits for them, ``immediate`` skips the checkpoint,
                so that the next start recovers as after a crash.
            timeout: Seconds to wait.

        Returns:
            Whether a server was running.

        Raises:
            Unavailable: It did not stop in time.
        """
        running = self.postmaster()
        stopped = running is not None and self._halt(mode, timeout)
        socket_dir = running.socket_dir if running else self._socket_dir
        if socket_dir and socket_dir != self._run_dir and socket_dir.name.startswith("pgqrs-"):
            # Made by us, and removed only when empty.
            with contextlib.suppress(OSError):
                socket_dir.rmdir()
        return stopped

    def restart(self, mode: ShutdownMode = "fast", *, timeout: float = 60) -> None:
        """Stop and start again at the same connection URL; ``timeout`` is in seconds, for each half."""
        if running := self.postmaster():
            self._socket_dir = running.socket_dir
            self._halt(mode, timeout)
        self.start(timeout=timeout)

    def kill(self, *, timeout: float = 30) -> None:
        """Kill the postmaster with SIGKILL, and wait until its last process has noticed and ended.

        The connection URL stays the same for the next :meth:`start`. Does nothing when no server runs.

        Raises:
            Unavailable: Some process of the server was still alive after ``timeout`` seconds.
        """
        if running := self.postmaster():
            self._socket_dir = running.socket_dir
            os.kill(running.pid, signal.SIGKILL)
            with nothing_alive(self._alive, time.monotonic() + timeout):
                pass

    def _launch(self, deadline: float) -> None:
        """Start a server where none runs. Its processes inherit the lock on ``server.alive``."""
        socket_dir = self._make_socket_dir()
        settings = {
            "listen_addresses": "127.0.0.1" if self.port is not None else "",
            "port": str(self.port or _DEFAULT_PORT),
            "unix_socket_directories": str(socket_dir),
            **({} if self.durable else _THROW_AWAY),
            **self.options,
        }
        # pg_ctl hands them to a shell.
        arguments = " ".join(f"-c {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
        with nothing_alive(self._alive, deadline) as alive:
            drop_impostor(self.data, socket_dir / f".s.PGSQL.{self.port or _DEFAULT_PORT}.lock")
            begin = self._open_log()
            seconds = max(1, int(deadline - time.monotonic()))
            done = self._pg_ctl("start", seconds, ["--log", self.log, "--options", arguments], pass_fds=[alive])
        if done:
            with self.log.open("rb") as log:
                log.seek(max(begin, self.log.stat().st_size - 2000))
                tail = log.read().decode("utf-8", "replace").strip()
            raise Unavailable(
                f"PostgreSQL does not start in {self.directory}. {self.log} ends with:\n{tail or done}",
                target=str(self.data),
            )

    def _halt(self, mode: ShutdownMode, timeout: float) -> bool:
        """Stop the server, but leave its socket directory for a restart."""
        failure = self._pg_ctl("stop", max(1, int(timeout)), ["--mode", mode])
        if failure and self.postmaster() is not None:
            raise Unavailable(f"the server in {self.directory} does not stop: {failure}", target=str(self.data))
        return not failure

    def _pg_ctl(
        self, action: str, seconds: int, more: Sequence[str | Path], *, pass_fds: Sequence[int] = ()
    ) -> str | None:
        """Run ``pg_ctl`` and return what it said if it failed."""
        waiting = ("--wait", "--timeout", str(seconds), "--pgdata", self.data)
        done = run(
            [self.bindir / "pg_ctl", action, *waiting, *more],
            self.account,
            timeout=seconds + 10,
            pass_fds=pass_fds,
        )
        return done.stdout.strip() or "no reason given" if done.returncode else None

    def _make_socket_dir(self) -> Path:
        """Return a directory for the socket whose path is short enough for the kernel and plain for a URL."""
        if self._socket_dir is not None and self._socket_dir.is_dir():
            return self._socket_dir
        path = self._run_dir
        longest = len(os.fsencode(path / f".s.PGSQL.{self.port or _DEFAULT_PORT}.lock"))
        if longest > _SOCKET_PATH_LIMIT or not re.fullmatch(r"[\w/.+~-]+", str(path), re.ASCII):
            # Not TMPDIR: that one is long on some systems, and may be closed to the account.
            path = Path(tempfile.mkdtemp(prefix="pgqrs-", dir="/tmp"))
            give(path, self.account)
        elif not path.is_dir():
            path.mkdir(mode=0o700)
            give(path, self.account)
        self._socket_dir = path
        return path

    def _open_log(self) -> int:
        """Make a log that the account can append to, and return its size in bytes."""
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        os.close(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        give(self.log, self.account)
        return self.log.stat().st_size

    def _create_database(self) -> None:
        """Create the database of a new server, and see on the way that the server accepts the password."""
        try:
            dsn = self.dsn_for("postgres")
            with without_service(dsn):
                opened = psycopg.connect(dsn, autocommit=True, connect_timeout=30)
            with opened as connection:
                query = "select from pg_catalog.pg_database where datname = %s"
                if connection.execute(query, [self.database]).fetchone() is None:
                    connection.execute(sql.SQL("create database {}").format(sql.Identifier(self.database)))
        except psycopg.OperationalError as error:
            raise Unavailable(f"the server in {self.directory} refuses its own password or is gone: {error}") from error


def _query(parameters: Mapping[str, str]) -> str:
    """Return the part of a URL behind the path."""
    return "?" * bool(parameters) + "&".join(f"{key}={quote(value, safe='')}" for key, value in parameters.items())
