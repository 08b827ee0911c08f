"""The demo: what it counts, what it notices, and a whole run with a killed worker and broken connections."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from pgqrs_native.command.app import run as run_command
from pgqrs_native.demo import pickup, run, tables
from pgqrs_native.demo.compare import compare, percentile
from pgqrs_native.demo.counting import FileCount, count_names, find_files, standard_library
from pgqrs_native.demo.processes import Workers
from pgqrs_native.demo.run import run_demo
from pgqrs_native.demo.serial import SerialRun
from pgqrs_native.demo.setting import SCHEMA, conninfo_for
from pgqrs_native.demo.tables import DemoError, Row
from psycopg.conninfo import make_conninfo
from rich.console import Console

from pgqrs_core.errors import InvalidArgument, PgqrsError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture
def few_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PINGS", 5)


def schemas(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [name for (name,) in connection.execute("select nspname from pg_namespace")]


def has_results(connection: psycopg.Connection) -> bool:
    found = connection.execute("select to_regclass('pgqrs_demo.results')").fetchone()
    return found != (None,) and tables.count_handled(connection) > 0


def check_for_a_minute(workers: Workers) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers.check()
        time.sleep(0.05)


class TestCounting:
    @pytest.mark.parametrize(
        ("source", "names", "whole"),
        [
            (b"if a:\n    b = a + 1  # c\n", {"if": 1, "a": 2, "b": 1}, True),
            (b"", {}, True),
            ("größe = 1\n".encode(), {"größe": 1}, True),
            (b"a = (b\n", {"a": 1, "b": 1}, False),
            (b"if a:\n        b\n    c\n", {"if": 1, "a": 1, "b": 1}, False),
            (b"# coding: no-such-encoding\na\n", {}, False),
            (b"\xff\xfe\na\n", {}, False),
        ],
        ids=["valid", "empty", "unicode", "open bracket", "bad dedent", "unknown encoding", "not UTF-8"],
    )
    def test_names_up_to_the_first_error_count(
        self, tmp_path: Path, source: bytes, names: dict[str, int], *, whole: bool
    ) -> None:
        file = tmp_path / "module.py"
        file.write_bytes(source)

        counted = count_names(str(file))

        assert counted.names == names
        assert (counted.error is None) is whole

    def test_bytes_that_are_no_text_late_in_a_file_keep_what_was_before(self, tmp_path: Path) -> None:
        file = tmp_path / "module.py"
        file.write_bytes(b"a = 1\n" * 20 + b"b = '\xff'\n" + b"c\n")

        # Python 3.12 and later read on: what is counted depends on the Python, not on the process.
        assert count_names(str(file)).names["a"] == 20

    def test_a_file_that_cannot_be_read_has_no_names(self, tmp_path: Path) -> None:
        counted = count_names(str(tmp_path / "gone.py"))

        assert counted.total == 0
        assert counted.error is not None
        assert counted.error.startswith("FileNotFoundError")

    def test_the_serial_run_counts_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "one.py").write_text("a = a\n")
        (tmp_path / "two.py").write_text("(")
        paths, _ = find_files(tmp_path)

        with SerialRun(paths) as serial:
            serial.start()
            while serial.running:
                time.sleep(0.01)
            serial.check()

        assert list(serial.counts.values()) == [count_names(path) for path in paths]

    def test_a_serial_run_that_is_cut_short_is_an_error(self) -> None:
        with SerialRun(["a.py"]) as serial, pytest.raises(PgqrsError, match="0 of 1"):
            serial.check()


class TestFinding:
    def test_every_python_file_of_the_standard_library_and_nobody_elses(self) -> None:
        found, skipped = find_files(standard_library())

        assert len(found) > 500
        assert skipped == 0
        assert str(standard_library() / "json" / "decoder.py") in found
        assert not [path for path in found if "site-packages" in path]

    def test_a_limit_spreads_over_the_whole_tree(self) -> None:
        everything, _ = find_files(standard_library())
        found, _ = find_files(standard_library(), 10)

        assert len(found) == 10
        assert found[0] == everything[0]
        assert everything.index(found[-1]) > len(everything) * 0.8

    def test_what_is_no_file_is_left_out_and_what_json_cannot_carry_is_counted(self, tmp_path: Path) -> None:
        (tmp_path / "fine.py").touch()
        (tmp_path / "readme.txt").touch()
        (tmp_path / "directory.py").mkdir()
        (tmp_path / "dangling.py").symlink_to("nowhere")
        try:
            open(os.fsencode(tmp_path) + b"/\xff.py", "w").close()
        except OSError:
            pytest.skip("this file system has names in Unicode only")

        assert find_files(tmp_path) == ([str(tmp_path / "fine.py")], 1)


class TestComparing:
    serial = {path: FileCount(path, {"x": number}) for number, path in enumerate("abc", 1)}  # noqa: RUF012

    def rows(self, *paths: str) -> list[Row]:
        return [Row(self.serial[path], 1, 7) for path in paths]

    def test_all_is_well(self) -> None:
        comparison = compare("abc", self.serial, self.rows("a", "c", "b"))

        assert comparison.problems() == []
        assert comparison.names == {"x": 6}

    def test_a_file_without_a_result_is_lost(self) -> None:
        comparison = compare("abc", self.serial, self.rows("a", "c"))

        assert comparison.lost == ["b"]
        assert comparison.handled == 2
        assert comparison.problems() == [
            "lost (no result): 1 – b",
            "the result table holds 4 names, the serial run counted 6",
        ]

    def test_a_file_with_two_results_is_doubled(self) -> None:
        comparison = compare("abc", self.serial, self.rows("a", "b", "b", "c"))

        assert comparison.doubled == ["b"]
        assert comparison.handled == 3

    def test_one_lost_and_one_doubled_do_not_make_up_for_each_other(self) -> None:
        assert len(compare("abc", self.serial, self.rows("a", "a", "c")).problems()) == 3

    def test_other_names_in_the_same_number_differ(self) -> None:
        comparison = compare("a", self.serial, [Row(FileCount("a", {"y": 1}), 1, 7)])

        assert comparison.differing == ["a"]
        assert len(comparison.problems()) == 2

    def test_a_result_nobody_asked_for_is_noticed(self) -> None:
        assert compare("ab", self.serial, self.rows("a", "b", "c")).unasked == ["c"]

    def test_redeliveries_are_the_attempts_beyond_the_first(self) -> None:
        rows = [Row(self.serial["a"], 3, 7), Row(self.serial["b"], 1, 7)]

        assert compare("ab", self.serial, rows).redelivered == 2

    @pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
    def test_percentiles_are_values_that_occurred(self, percent: float, expected: float) -> None:
        assert percentile(range(100, 0, -1), percent) == expected
        assert percentile([], percent) is None

    def test_single_messages_are_checked_too(self) -> None:
        found = pickup.evaluate([10.0, 20.0, 30.0], [(0, 10.5), (2, 31.0), (2, 30.25)])

        assert found.latencies == [0.5, 0.25]
        assert [problem.split(":")[0] for problem in found.problems] == ["lost", "doubled"]


def test_a_run_survives_a_killed_worker_and_broken_connections(pgqrs_dsn: str, quiet: Console) -> None:
    report = run_demo(pgqrs_dsn, limit=150, console=quiet)

    assert report.problems == []
    assert report.ok
    assert (report.sent, report.handled, report.lost, report.doubled) == (150, 150, 0, 0)
    assert report.trouble.killed != report.trouble.replacement
    # At least those of the surviving worker, for its rows and for its claims; the replacement may be starting still.
    assert report.trouble.connections_broken >= 2
    # What the killed worker held came back.
    assert report.redelivered > 0
    assert report.pickups == 100
    assert report.pickup_p50_ms is not None
    assert report.pickup_p99_ms is not None
    assert 0 < report.pickup_p50_ms <= report.pickup_p99_ms
    assert report.messages_per_second > 0
    assert SCHEMA not in schemas(pgqrs_dsn)


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("delete from pgqrs_demo.results where path = (select min(path) from pgqrs_demo.results)", "lost"),
        ("insert into pgqrs_demo.results select * from pgqrs_demo.results limit 1", "doubled"),
    ],
)
@pytest.mark.usefixtures("few_pings")
def test_a_lost_and_a_doubled_result_are_noticed(
    pgqrs_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    kind: str,
) -> None:
    fetch_rows = tables.fetch_rows

    def tampered(connection: psycopg.Connection) -> list[Row]:
        connection.execute(statement.encode())
        return fetch_rows(connection)

    monkeypatch.setattr(tables, "fetch_rows", tampered)

    code = run_command(["demo", "--url", pgqrs_dsn, "--limit", "20", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert code == 1
    assert report["ok"] is False
    assert report[kind] == 1
    assert report["problems"][0].startswith(kind)
    assert SCHEMA not in schemas(pgqrs_dsn)


@pytest.mark.usefixtures("few_pings")
def test_the_command_prints_a_table_and_keeps_the_schema_if_asked(
    pgqrs_dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (tmp_path / f"[bold]{number}.py").write_text("x = y\n" * number)

    code = run_command(["demo", "--url", pgqrs_dsn, "--files", str(tmp_path), "--keep", "--workers", "3"])

    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "Everything matches" in shown
    assert SCHEMA in schemas(pgqrs_dsn)
    # The next one finds it, knows it as a demo's, and makes its own.
    assert run_command(["demo", "--url", pgqrs_dsn, "--files", str(tmp_path)]) == 0
    assert SCHEMA not in schemas(pgqrs_dsn)


def test_an_interrupted_demo_tidies_up(pgqrs_dsn: str) -> None:
    command = [sys.executable, "-c", "from pgqrs_native.command import main; main()", "demo", "--url", pgqrs_dsn]
    with (
        psycopg.connect(pgqrs_dsn, autocommit=True) as connection,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo,
    ):
        while not has_results(connection):
            time.sleep(0.05)
        workers = psutil.Process(demo.pid).children()
        demo.send_signal(signal.SIGINT)
        code = demo.wait(30)

    assert code == 130
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert SCHEMA not in schemas(pgqrs_dsn)


class TestRefusing:
    def test_a_schema_that_is_somebody_elses_is_left_alone(self, pgqrs_dsn: str, quiet: Console) -> None:
        with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
            connection.execute("create schema pgqrs_demo")
            with pytest.raises(DemoError, match="left alone"):
                run_demo(pgqrs_dsn, limit=1, console=quiet)
        assert SCHEMA in schemas(pgqrs_dsn)

    def test_a_second_demo_in_the_same_database(self, pgqrs_dsn: str, quiet: Console) -> None:
        with (
            psycopg.connect(pgqrs_dsn, autocommit=True) as connection,
            tables.reserved(connection),
            pytest.raises(DemoError, match="another"),
        ):
            run_demo(pgqrs_dsn, limit=1, console=quiet)

    def test_a_directory_without_python_files(self, pgqrs_dsn: str, quiet: Console, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match=r"\.py files"):
            run_demo(pgqrs_dsn, files=tmp_path, console=quiet)

    @pytest.mark.parametrize("wrong", [{"workers": 1}, {"workers": 65}, {"limit": 0}])
    def test_numbers_out_of_range(self, pgqrs_dsn: str, quiet: Console, wrong: dict[str, int]) -> None:
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            run_demo(pgqrs_dsn, console=quiet, **wrong)  # type: ignore[arg-type]

    def test_a_server_that_is_not_there(self, quiet: Console) -> None:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as caught:
            run_demo("postgresql://user:geheim@127.0.0.1:1/nothing", limit=1, console=quiet)
        assert "geheim" not in str(caught.value)


class TestProcesses:
    def test_workers_that_do_not_stay_up_end_the_demo_with_their_last_words(self, pgqrs_dsn: str) -> None:
        # Nothing is installed there.
        with Workers(conninfo_for(pgqrs_dsn), 2) as workers:
            with pytest.raises(DemoError, match="pgqrs_demo"):
                check_for_a_minute(workers)
            assert len(workers.problems) == 4

    def test_a_worker_ends_with_whoever_started_it_and_shows_no_password(self, pgqrs_dsn: str) -> None:
        conninfo = make_conninfo(conninfo_for(pgqrs_dsn), application_name="geheim")
        with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
            tables.create(connection)
            starter = subprocess.Popen([sys.executable, "-c", _STARTER], env={**os.environ, "CONNINFO": conninfo})
            try:
                while tables.count_workers(connection) < 1:
                    time.sleep(0.05)
                children = psutil.Process(starter.pid).children()
                found = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
                commands = [process.cmdline() for process in found]
            finally:
                starter.kill()
                starter.wait()
        assert len(found) == 1
        assert "geheim" not in " ".join(commands[0])
        _, alive = psutil.wait_procs(found, timeout=20)
        assert alive == []


_STARTER = """
import os, time
from pgqrs_native.demo.processes import Workers
with Workers(os.environ["CONNINFO"], 1):
    time.sleep(60)
"""
