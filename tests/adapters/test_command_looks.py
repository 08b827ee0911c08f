"""How the command looks: tables in narrow and wide terminals, the live view, the doctor."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from pgqrs_native import Client
from pgqrs_native.command.bodies import preview, size
from pgqrs_native.command.inputs import date, duration
from pgqrs_native.command.rates import Rate, Rates
from rich.cells import cell_len

from pgqrs_core.errors import InvalidArgument
from pgqrs_core.operations.findings import span
from pgqrs_core.operations.vitals import TableFacts

from .command_support import ENTRY, Shell


@pytest.fixture
def shell(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """A shell on a schema with one busy queue."""
    monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)
    monkeypatch.chdir(tmp_path)
    # Whoever runs the tests side by side sets it, as if somebody looked.
    monkeypatch.delenv("COLUMNS", raising=False)
    made = Shell(lambda: capsys.readouterr())
    made.ok("install")
    made.ok("queue", "create", "image-thumbnails-for-the-front-page-of-the-shop")
    made.ok("queue", "create", "reports 📊")
    with Client(pgqrs_dsn) as client:
        client.producer.batch_enqueue("reports 📊", [{"text": "ünïcödé " * 20, "n": n} for n in range(8)])
        for message in client.consumer.read_batch("reports 📊", count=3):
            client.consumer.nack(message, error=ValueError("a long story " * 10), bury=True)
        client.consumer.archive_batch(client.consumer.read_batch("reports 📊", count=2))
    return made


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "words",
    [
        ["queue", "list"],
        ["queue", "metrics"],
        ["queue", "metrics", "reports 📊"],
        ["message", "peek", "reports 📊"],
        ["dead", "list", "reports 📊"],
        ["archive", "list", "reports 📊"],
        ["dead", "show", "reports 📊", "1"],
        ["plugins"],
        ["config", "show"],
        ["doctor"],
        ["top", "--once", "--interval", "0.1"],
        ["--help"],
        ["message", "send", "--help"],
    ],
)
def test_nothing_is_wider_than_the_terminal(
    shell: Shell, words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no number or title is cut short."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shell.ok(*words).out.splitlines()

    assert max(map(cell_len, lines)) <= columns
    assert not any(line.endswith(" ") for line in lines if words[-1] != "--help")
    titles = next((line for line, rule in pairwise(lines) if set(rule) == {"─"}), "")
    assert "…" not in titles


def test_where_nobody_looks_nothing_is_cut(shell: Shell) -> None:
    """A line of a file may be long."""
    shown = shell.ok("dead", "list", "reports 📊").out
    assert len(shown.splitlines()) == 2 + 3
    assert ("a long story " * 10).strip() in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.85, "850 ms"),
        (0.9999, "1 s"),
        (3.24, "3.2 s"),
        (30, "30 s"),
        (59.97, "1 min"),
        (250, "4 min 10 s"),
        (3600, "1 h"),
        (7_500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
        (86_400 * 4_000, "4,000 d"),
        (-2, "-2 s"),
    ],
)
def test_times_are_shown_with_units(seconds: float, text: str) -> None:
    """Two units at most."""
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5s", 1.5),
        ("5m", 300),
        ("2 h", 7200),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("-1", -1),
    ],
)
def test_times_are_read_with_units(text: str, seconds: float) -> None:
    """A bare number is seconds."""
    assert duration("--delay", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1x", "1 2", "nan", "inf", "1h-30m", "½h", "1e3", "٣s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """With examples of what is."""
    with pytest.raises(InvalidArgument, match="--delay must be a time such as 30s"):
        duration("--delay", text)


def test_dates_are_read_with_and_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one they are local."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert date("--at", "2030-07-01T12:00").isoformat() == "2030-07-01T10:00:00+00:00"
        assert date("--at", "2030-07-01 12:00:00Z").isoformat() == "2030-07-01T12:00:00+00:00"
        assert date("--at", "2030-07-01T12:00:00+05:30").isoformat() == "2030-07-01T06:30:00+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", ""),
        (b'{"a": 1}', '{"a": 1}'),
        (b"two\nlines\t", "two lines"),
        ("é".encode(), "é"),
        ("é".encode()[:1], "\\xc3 (1 B)"),
        (b"\x00\x01", "\\x00\\x01 (2 B)"),
        (b"x" * 200, "x" * 160 + "… (200 B)"),
        (("x" * 639 + "é").encode() + b"y" * 5000, "x" * 160 + "… (5.5 KiB)"),
    ],
)
def test_bodies_are_previewed_in_one_line(body: bytes, shown: str) -> None:
    """Text as text, the rest escaped, the size where something is left out."""
    assert preview(body) == shown


def test_sizes_have_units() -> None:
    """Powers of 1,024."""
    assert [size(number) for number in (0, 1023, 1024, 1536, 1 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "1 MiB",
        "5,120 GiB",
    ]


def facts(inserted: int, deleted: int) -> list[TableFacts]:
    return [TableFacts("q_a", inserted, deleted, 0, 0, None, False)]


def test_rates_are_those_of_the_last_seconds() -> None:
    """Older looks are forgotten."""
    rates = Rates(window=10)
    assert rates.of("q_a") is None
    for now in range(20):
        # Ten a second at first, then none.
        rates.add(now, facts(min(now, 8) * 10, now * 5))
    assert rates.of("q_a") == Rate(0.0, 5.0)
    assert rates.of("q_b") is None


def test_a_counter_that_starts_anew_gives_no_rate() -> None:
    """Until the look before it is forgotten."""
    rates = Rates(window=2)
    rates.add(0, facts(1000, 1000))
    rates.add(1, facts(10, 10))
    assert rates.of("q_a") is None
    rates.add(2, facts(20, 10))
    rates.add(3, facts(30, 10))
    assert rates.of("q_a") == Rate(10.0, 0.0)


def test_top_shows_one_frame_where_nobody_looks(shell: Shell) -> None:
    """And a document for programs."""
    shown = shell.ok("top", "--interval", "0.1").out
    document = shell.json("top", "--interval", "0.1")

    assert "3 ready, 0 in flight" in shown
    assert {one["queue"]: one["dead"] for one in document["queues"]} == {
        "image-thumbnails-for-the-front-page-of-the-shop": 0,
        "reports 📊": 3,
    }
    assert document["queues"][0]["enqueued_per_second"] == 0.0


def test_top_names_who_keeps_dead_rows(shell: Shell, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as that lasts."""
    monkeypatch.setattr("pgqrs_native.command.frame._PIN_SECONDS", 0.0)
    with psycopg.connect(pgqrs_dsn, application_name="forgotten report") as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute("select 1 as secret")
        shown = shell.ok("top", "--once", "--interval", "0.1").out
    assert "dead rows cannot be removed for" in shown
    assert "'forgotten report'" in shown
    assert "idle in transaction, in SELECT" in shown
    assert "secret" not in shown


class Screen:
    """The live view at a terminal of its own."""

    def __init__(self, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*ENTRY, *words], stdin=slave, stdout=slave, stderr=slave, env={**env, "TERM": "xterm"}
        )
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = ""

    def wait_for(self, pattern: str) -> None:
        """Read until something is to be seen that was not there before."""
        deadline = time.monotonic() + 30
        self.seen = ""
        while not re.search(pattern, self.seen):
            if time.monotonic() >= deadline:
                # A test that fails leaves nothing running that others would trip over.
                self.process.kill()
                self.process.wait()
                pytest.fail(self.seen)
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65_536).decode(errors="replace")

    def close(self) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)
            os.close(self.slave)


def test_top_is_live_and_ends_with_q(shell: Shell) -> None:
    """What is sent meanwhile shows up; the terminal is left as it was found."""
    screen = Screen("top", "--interval", "200ms")
    screen.wait_for("3 ready, 0 in flight")
    shell.ok("message", "send", "reports 📊", "1")
    screen.wait_for("4 ready, 0 in flight")
    os.write(screen.master, b"q")
    screen.wait_for(re.escape("\x1b[?1049l"))
    screen.process.wait(20)

    assert termios.tcgetattr(screen.slave)[3] == screen.before[3]
    assert screen.close() == 0


def test_top_ends_with_ctrl_c(shell: Shell) -> None:
    """As its user asked: exit code 0."""
    screen = Screen("top")
    screen.wait_for("3 ready")
    screen.process.send_signal(2)
    screen.wait_for(re.escape("\x1b[?1049l"))
    assert screen.close() == 0


def test_top_outlives_a_lost_connection(shell: Shell, pgqrs_dsn: str) -> None:
    """It says that its figures are old, and goes on when the server is back."""
    screen = Screen("top", "--interval", "200ms")
    screen.wait_for("3 ready")
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    shell.ok("message", "send", "reports 📊", "1")
    screen.wait_for("4 ready, 0 in flight")
    os.write(screen.master, b"q")
    assert screen.close() == 0


def test_in_a_low_terminal_the_busiest_queues_are_shown(shell: Shell) -> None:
    """And it says how many are not."""
    for number in range(20):
        shell.ok("queue", "create", f"quiet{number}")
    screen = Screen("top", size=(12, 80))
    screen.wait_for("and 17 quieter queues")
    assert "reports" in screen.seen
    os.write(screen.master, b"q")
    assert screen.close() == 0


def test_the_doctor_is_content_with_a_sound_database(shell: Shell) -> None:
    """Every check has a row, remedies only where something is to be done."""
    shown = shell.ok("doctor").out
    document = shell.json("doctor")

    assert {one["check"] for one in document["findings"]} >= {"connection", "server", "schema", "plugins", "pooler"}
    assert "FAIL" not in shown
    assert re.search(r"\d+ fine\n$", shown)
    statuses = [one["status"] for one in document["findings"]]
    assert statuses == sorted(statuses, key=["fail", "warn", "info", "ok"].index)


def test_the_doctor_works_without_a_schema(shell: Shell) -> None:
    """Then a check fails: exit code 1."""
    result = shell("doctor", "--schema", "elsewhere", "--json")
    assert (result.code, result.document["status"]) == (1, "fail")
    (finding,) = [one for one in result.document["findings"] if one["status"] == "fail"]
    assert (finding["check"], finding["remedy"]) == ("schema", "Install it.")
    assert finding["commands"] == ["pgqrs --schema elsewhere install"]


def test_the_doctor_says_when_there_is_no_server(shell: Shell) -> None:
    """Exit code 3, and still what can be said without one."""
    result = shell("doctor", "--url", "postgresql://me:s3cret@127.0.0.1:1/shop", "--json")
    assert result.code == 3
    assert result.document["findings"][0]["check"] == "connection"
    assert result.document["findings"][0]["status"] == "fail"
    assert "plugins" in [one["check"] for one in result.document["findings"]]
    assert "s3cret" not in result.out


def test_the_doctor_tells_variables_that_look_like_settings_and_are_none(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQRS_DSN", "postgresql://u:s3cret@nowhere/x")

    [found] = [one for one in shell.json("doctor")["findings"] if one["check"] == "environment"]

    assert found["status"] == "warn"
    assert "PGQRS_DSN is no setting" in found["summary"]
    assert "PGQRS_DATABASE_URL" in found["remedy"]
    assert "s3cret" not in str(found)


def test_the_doctor_shows_broken_and_blocked_plugins(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """And adapters that lack something."""
    from pgqrs_core.hookspecs import AdapterInfo, hookimpl
    from pgqrs_core.plugins import BrokenPlugin, Plugins

    class Adapter:
        def __init__(self, name: str, problem: str | None) -> None:
            def check() -> str | None:
                if problem == "raise":
                    raise RuntimeError("odd")
                return problem

            self.info = AdapterInfo(name, "1.0", "for the test", check)

        @hookimpl
        def pgqrs_adapters(self) -> AdapterInfo:
            return self.info

    plugins = Plugins(["stopped"])
    for name, problem in (("fit", None), ("lame", "install frobnicate"), ("mad", "raise")):
        plugins.register(Adapter(name, problem), name)
    plugins.broken = (BrokenPlugin("rusty", "rusty-dist", "2.1", "it cannot be imported"),)
    monkeypatch.setattr("pgqrs_native.command.doctor.default_plugins", lambda *_: plugins)
    shown = shell.ok("doctor").out

    assert "plugin 'rusty' of rusty-dist 2.1 is broken: it cannot be imported" in shown
    assert "PGQRS_PLUGINS_BLOCKED=stopped,rusty" in shown
    assert "plugin 'stopped' is blocked" in shown
    assert "adapter fit 1.0: for the test" in shown
    assert "adapter lame 1.0 cannot be used: install frobnicate" in shown
    assert "adapter mad 1.0 cannot be used: its check failed: RuntimeError: odd" in shown


def test_the_doctor_fails_for_two_serializers_of_one_content_type(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names both plugins."""
    from types import SimpleNamespace

    from pgqrs_core.hookspecs import hookimpl
    from pgqrs_core.plugins import Plugins
    from pgqrs_core.serializers import JsonSerializer

    class Rival(JsonSerializer):
        pass

    plugins = Plugins.core()
    plugins.register(SimpleNamespace(pgqrs_serializers=hookimpl(lambda: [Rival()])), "rival")
    monkeypatch.setattr("pgqrs_native.command.doctor.default_plugins", lambda *_: plugins)

    result = shell("doctor")

    assert result.code == 1
    assert "plugin 'rival': serializes application/json, as plugin 'json' does; block one" in " ".join(
        result.out.split()
    )


def test_the_doctor_names_settings_of_a_plugin_that_cannot_take_effect(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without their values, and beside everything else there is to say."""
    monkeypatch.setenv("PGQRS_PLUGINS_CRYPTO_KEYS", "k1:hunter2")

    result = shell("doctor", "--json")

    assert result.code == 1
    (failed,) = [one for one in result.document["findings"] if one["status"] == "fail"]
    assert "plugins.crypto.keys entry 1 ('k1') must be `id:key`" in failed["summary"]
    assert {"server", "schema", "queues", "serializers"} <= {one["check"] for one in result.document["findings"]}
    assert "hunter2" not in result.err + result.out


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("PGQRS_PLUGINS_NOBODY_SIZE", "1", 1),
        ("PGQRS_QUEUE_MAX_BATCH_SIZE", "many", 2),
        ("PGQRS_DATABASE_URL", "postgresql://[", 2),
    ],
)
def test_the_doctor_says_everything_else_beside_a_wrong_setting(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: int
) -> None:
    if name.endswith("URL"):
        monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv(name, value)

    result = shell("doctor", "--json", "--problems")

    assert result.code == code
    assert result.document["findings"][0]["status"] == "fail"
    assert {one["status"] for one in result.document["findings"]} <= {"fail", "warn"}
    assert "plugins" in [one["check"] for one in shell("doctor", "--json").document["findings"]]


def test_the_doctor_refuses_wrong_usage_as_any_command(shell: Shell) -> None:
    assert "both given" in shell.refused("doctor", "--embedded", "--url", "postgresql://x", code=2)


def test_the_doctor_shows_problems_alone_and_none_where_there_are_none(shell: Shell) -> None:
    shown = shell.ok("doctor", "--problems").out.splitlines()

    assert all(line.startswith(("warn", "FAIL", " ")) for line in shown[:-1])
    assert shell.json("doctor", "--problems")["status"] == shell.json("doctor")["status"]
