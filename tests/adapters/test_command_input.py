"""What the command answers to wrong input, who is asked before something is destroyed, and the exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from pgqrs_native.command.app import run

from pgqrs_core.installing import install_command

from .command_support import ENTRY, Shell, at_terminal, spawn


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """A shell whose server does not exist: what is refused here is refused before connecting."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/shop")
    monkeypatch.chdir(tmp_path)
    return Shell(lambda: capsys.readouterr())


@pytest.fixture
def shell(offline: Shell, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell on an installed schema, with one queue of one message."""
    monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)
    offline.ok("install")
    offline.ok("queue", "create", "jobs")
    offline.ok("message", "send", "jobs", "1")
    return offline


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["message", "send", "jobs", "{task: 1}"], "not valid JSON: .* line 1, column 2"),
        (["message", "send", "jobs", '{\n "a": 1,\n}'], "line (3, column 1|2, column 8)"),
        (["message", "send", "jobs", ""], "line 1, column 1"),
        (["message", "send", "jobs", '["NaN", "\\"", \nNaN]'], "NaN is no JSON value at line 2, column 1"),
        (["message", "send", "jobs", "[-Infinity]"], "-Infinity is no JSON value at line 1, column 2"),
        (["message", "send", "jobs", "1" * 5000], "too many digits"),
        (["message", "send", "jobs", "[" * 100_000], "nested too deeply"),
        (["message", "send", "jobs", '"\udc80"'], "not UTF-8 text: byte 2"),
        (["message", "send", "jobs"], "no message"),
        (["message", "send", "jobs", "1", "--file", "x"], "give one"),
        (["message", "send", "jobs", "--file", "absent"], "absent cannot be read: No such file"),
        (["message", "send", "jobs", "1", "--delay", "soon"], "--delay must be a time such as 30s"),
        (["message", "send", "jobs", "1", "--delay", "1s 2x"], "--delay must be"),
        (["message", "send", "jobs", "1", "--delay", "1s", "--at", "2030-01-01"], "leave one of them out"),
        (["message", "send", "jobs", "1", "--at", "tomorrow"], "--at must be a date such as"),
        (["message", "send", "jobs", "1", "--header", "novalue"], "--header must be written as key=value"),
        (["message", "send", "jobs", "1", "--header", "a=1", "--header", "a=2"], "given once"),
        (["message", "send", "jobs", "1", "--priority", "high"], "priority"),
        (["message", "read", "jobs", "--count", "0"], "count must be a whole number from 1"),
        (["message", "read", "jobs", "--count", "10001"], "count must be a whole number from 1 to 10,000"),
        (["message", "read", "jobs", "--count", "some"], "count"),
        (["message", "read", "jobs", "--lock-time", "0"], "lock_time must be a number from 0.1"),
        (["message", "read", "jobs", "--wait", "-1"], "wait must be a number from 0"),
        (["message", "read", "jobs", "--ack", "--archive"], "leave one of them out"),
        (["queue", "create", "jobs", "--lease-seconds", "-5"], "lease_seconds must be a number from 0.1"),
        (["queue", "create", "jobs", "--max-attempts", "0"], "max_attempts must be a whole number from 1"),
        (["queue", "create", "jobs", "--max-body-bytes", "1.5"], "max-body-bytes"),
        (["queue", "create", "jobs", "--backoff-jitter", "nan"], "backoff_jitter must be a number from 0 to 1"),
        (["dead", "replay", "jobs"], "which messages"),
        (["dead", "replay", "jobs", "1", "--all"], "leave one of them out"),
        (["dead", "replay", "jobs", "one"], "integer"),
        (["dead", "list", "jobs", "--before", "yesterday"], "--before must be a date"),
        (["archive", "prune", "jobs", "--yes"], "older-than"),
        (["archive", "prune", "jobs", "--older-than", "old", "--yes"], "--older-than must be a time"),
        (["top", "--interval", "0"], "--interval must be"),
        (["queue", "list", "--bogus"], "No such option"),
        (["queue", "lost"], "No such command"),
        (["--config", "absent.yaml", "queue", "list"], "absent.yaml: cannot be read"),
        (["--embedded", "--url", "postgresql://x", "queue", "list"], "leave one of them out"),
        (["--url", "mysql://x", "queue", "list"], "database.url must be a URL"),
        (["--schema", "", "queue", "list", "--url", "nonsense"], "database.url must be"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_done(offline: Shell, words: list[str], reason: str) -> None:
    """In one line, with exit code 2, without a server."""
    line = offline.refused(*words, code=2)
    assert line.startswith("pgqrs: ")
    assert re.search(reason, line), line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["message", "send", "jobs", "1", "--priority", "10"], "priority must be a whole number from 0 to 9"),
        (["message", "send", "jobs", "1", "--delay", "-1"], "delay must be a number from 0"),
        (["message", "send", "jobs", "1", "--delay", "9999d"], "delay must be a number from 0 to 3"),
        (["message", "send", "jobs", "1", "--ttl", "0"], "ttl must be a number above 0"),
        (["message", "send", "jobs", '"' + "x" * 1_048_576 + '"'], "body must be at most 1,048,576 bytes"),
        (["message", "peek", "jobs", "--count", "0"], "count must be a whole number from 1"),
        (["queue", "create", ""], "queue name must be a text of 1 to 255 characters"),
        (["queue", "create", "x" * 256], "queue name must be a text of 1 to 255 characters"),
        (["queue", "create", "a\udc80"], "queue name must be valid Unicode"),
        (["archive", "prune", "jobs", "--older-than", "-1", "--yes"], "older_than must be a number from 0"),
    ],
)
def test_what_is_out_of_range_names_the_parameter_and_the_range(shell: Shell, words: list[str], reason: str) -> None:
    """Exit code 2, and nothing was changed."""
    assert reason in shell.refused(*words, code=2)
    assert [one["queue"] for one in shell.json("queue", "list")] == ["jobs"]
    assert len(shell.json("message", "peek", "jobs")) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["queue", "metrics"],
        ["queue", "purge", "--yes"],
        ["queue", "delete"],
        ["queue", "pause"],
        ["queue", "alter", "--max-attempts", "3"],
        ["message", "read"],
        ["message", "peek"],
        ["dead", "list"],
        ["archive", "list"],
    ],
)
def test_an_unknown_queue_is_answered_with_the_nearest_names(shell: Shell, words: list[str]) -> None:
    """Exit code 1."""
    assert "did you mean 'jobs'" in shell.refused(*words[:2], "Job", *words[2:], code=1)


def test_a_missing_schema_names_the_command_to_run(shell: Shell) -> None:
    """Exit code 1."""
    assert "Run `pgqrs install --schema elsewhere`" in shell.refused("queue", "list", "--schema", "elsewhere", code=1)
    assert "Run `pgqrs install --schema elsewhere`" in shell.refused(
        "uninstall", "--yes", "--schema", "elsewhere", code=1
    )


@pytest.mark.parametrize("words", [["queue", "list"], ["message", "send", "jobs", "1"], ["install"], ["top", "--once"]])
def test_an_unreachable_server_is_exit_code_three(offline: Shell, words: list[str]) -> None:
    """The line names host, port and database, and never the password."""
    line = offline.refused(*words, code=3)
    assert "127.0.0.1:1/shop" in line
    assert "s3cret" not in line


def test_a_server_that_never_answers_is_given_up_within_the_connection_timeout(offline: Shell) -> None:
    """It accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        line = offline.refused(
            "queue", "list", "--url", f"postgresql://127.0.0.1:{port}/shop?connect_timeout=2", code=3
        )
    assert time.monotonic() - began < 8
    assert f"127.0.0.1:{port}/shop" in line


def test_a_wrong_database_is_exit_code_three(shell: Shell, pgqrs_server: str) -> None:
    """The server's reason is passed on."""
    from pgqrs_core.testing import with_database

    line = shell.refused("queue", "list", "--url", with_database(pgqrs_server, "no_such_database"), code=3)
    assert "no_such_database" in line


def test_with_debug_the_traceback_is_shown(offline: Shell) -> None:
    """Only then."""
    assert "Traceback" in offline("queue", "list", "--debug").err


def test_an_error_of_our_own_is_one_line_too(offline: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how to see more."""
    monkeypatch.setattr("pgqrs_native.command.session.Config.load", lambda *_, **__: 1 / 0)
    assert "--debug shows where" in offline.refused("queue", "list", code=1)


DESTROYS = [
    (["queue", "purge", "jobs"], "1 ready, 0 delayed and 0 expired messages"),
    (["queue", "delete", "jobs"], "1 ready, 0 delayed, 0 in flight, 0 expired, 0 dead, 0 archived"),
    (["dead", "purge", "jobs", "--all"], "all 0 dead messages"),
    (["archive", "prune", "jobs", "--older-than", "7d"], "more than 7 d ago"),
    (["uninstall"], "with 1 queue and 1 message"),
]


@pytest.mark.parametrize(("words", "impact"), DESTROYS)
def test_what_destroys_is_refused_where_nobody_can_be_asked(shell: Shell, words: list[str], impact: str) -> None:
    """With exit code 2, the impact, and how to go on."""
    line = shell.refused(*words, code=2)
    assert impact in line
    assert "--yes" in line
    assert shell.json("queue", "metrics", "jobs")["ready"] == 1


@pytest.mark.parametrize(("words", "impact"), DESTROYS)
@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_what_destroys_asks_at_a_terminal(shell: Shell, words: list[str], impact: str, answer: str, code: int) -> None:
    """It shows the impact, and does as it is told."""
    got, screen = at_terminal(*words, answers=[answer], then="[y/N]")

    assert (got, impact in screen) == (code, True), screen
    if code:
        assert "Nothing was done" in screen
        assert shell.json("queue", "metrics", "jobs")["ready"] == 1


@pytest.mark.parametrize("answer", ["\n", "\x04", "yesterday\n"])
def test_no_clear_answer_is_a_no(shell: Shell, answer: str) -> None:
    """An empty line, the end of the input, something else."""
    assert at_terminal("queue", "purge", "jobs", answers=[answer], then="[y/N]")[0] == 1
    assert shell.json("queue", "metrics", "jobs")["ready"] == 1


def test_with_yes_nobody_is_asked_at_a_terminal(shell: Shell) -> None:
    """Not even with a short one."""
    code, screen = at_terminal("queue", "purge", "jobs", "-y")
    assert (code, "[y/N]" in screen) == (0, False)


def test_interrupting_a_wait_is_exit_code_130(shell: Shell, pgqrs_dsn: str) -> None:
    """Without a traceback."""
    shell.ok("queue", "purge", "jobs", "--yes")
    process = subprocess.Popen(
        [*ENTRY, "message", "read", "jobs", "--wait", "1h"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process, psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while connection.execute("select from pgqrs.waiters").fetchone() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)

    assert (process.returncode, error) == (130, b"pgqrs: interrupted\n")


def test_a_reader_that_goes_away_ends_the_command_quietly(shell: Shell) -> None:
    """As it ends other programs of a pipeline."""
    process = subprocess.Popen([*ENTRY, "queue", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_without_its_libraries_the_command_says_how_to_get_them(tmp_path: Path) -> None:
    """Exit code 1."""
    (tmp_path / "typer.py").write_text("raise ImportError('no', name='typer')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = spawn("queue", "list", env={**os.environ, "PYTHONPATH": path})

    assert result.returncode == 1
    remedy = install_command("cli").encode()
    assert result.stderr == b"pgqrs: the command needs typer, which is not installed: " + remedy + b"\n"


def test_the_core_and_the_client_do_not_need_them() -> None:
    """Neither typer nor rich is imported by either."""
    code = "import sys, pgqrs_native, pgqrs_core.operations.doctor; print({'typer', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert result.stdout == "set()\n"


def test_an_embedded_server_is_started_on_request_and_stopped_at_the_end(
    shell: Shell, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the option, and by the scheme of the URL."""
    log: list[str] = []

    def start(url: str) -> SimpleNamespace:
        log.append(url)
        return SimpleNamespace(dsn=pgqrs_dsn, stop=lambda: log.append("stopped"))

    entry = SimpleNamespace(load=lambda: start)
    monkeypatch.setattr("pgqrs_core.servers.entry_points", lambda group, name: [entry])
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/elsewhere")

    assert [one["queue"] for one in shell.json("queue", "list", "--embedded")] == ["jobs"]
    shell.ok("queue", "list", "--url", "embedded:///srv/pg")
    assert log == ["embedded://", "stopped", "embedded:///srv/pg", "stopped"]


def test_without_the_embedded_server_the_command_says_how_to_get_it(
    offline: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2: it was asked for what is not there."""
    monkeypatch.setattr("pgqrs_core.servers.entry_points", lambda group, name: [])
    assert install_command("embedded") in offline.refused("queue", "list", "--embedded", code=2)


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """And no complaint."""
    run([])
    captured = capsys.readouterr()
    assert "queue" in captured.out
    assert captured.err == ""
