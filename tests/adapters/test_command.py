"""The command does what administrators do, for people and for programs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import psycopg
import pytest
from pgqrs_native import Client

from pgqrs_core.depths import Depths
from pgqrs_core.operations.schema import SUPPORTED

from .command_support import Shell, spawn


@pytest.fixture
def shell(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """A shell on an installed schema, in an empty directory."""
    monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)
    monkeypatch.chdir(tmp_path)
    # Whoever runs the tests side by side sets it, as if somebody looked.
    monkeypatch.delenv("COLUMNS", raising=False)
    made = Shell(lambda: capsys.readouterr())
    made.ok("install")
    return made


def bury(dsn: str, queue: str) -> None:
    """Dead-letter whatever is ready in a queue."""
    with Client(dsn) as client:
        for message in client.consumer.read_batch(queue, count=100):
            client.consumer.nack(message, error=ValueError("no such user"), bury=True)


def test_the_commands_of_the_readme_work_as_written(shell: Shell) -> None:
    """Install, create, metrics, send, read."""
    shell.ok("queue", "create", "my_queue")
    shell.ok("queue", "metrics", "my_queue")
    sent = shell.ok("message", "send", "my_queue", '{"task": "process_data", "id": 123}')
    read = shell.ok("message", "read", "my_queue", "--count", "5", "--lock-time", "30")

    assert sent.out == "message 1 sent to queue 'my_queue'\n"
    assert '{"task":"process_data","id":123}' in read.out
    assert "leased for 30 s, until " in read.err


def test_installing_twice_changes_nothing(shell: Shell) -> None:
    """And says so."""
    assert shell.ok("install").out == f"schema 'pgqrs' is up to date (version {SUPPORTED})\n"
    assert shell.json("install") == {"schema": "pgqrs", "version": SUPPORTED, "applied": []}


def test_uninstall_removes_everything(shell: Shell) -> None:
    """Queues with their messages, and the schema."""
    shell.ok("queue", "create", "one")
    assert shell.json("uninstall", "--yes") == {"schema": "pgqrs", "dropped": ["one"]}
    assert "pgqrs install" in shell.refused("queue", "list", code=1)


def test_another_schema_is_another_world(shell: Shell) -> None:
    """The option may stand before the command and behind it."""
    shell.ok("--schema", "jobs", "install")
    shell.ok("queue", "create", "here", "--schema", "jobs")

    assert [one["queue"] for one in shell.json("--schema", "jobs", "queue", "list")] == ["here"]
    assert shell.json("queue", "list") == []


def test_a_queue_takes_every_option(shell: Shell) -> None:
    """Times may have units."""
    words = "--lease-seconds 5m --max-attempts 7 --backoff-base 500ms --backoff-factor 3 --backoff-cap 1h30m"
    more = "--backoff-jitter 0 --archive-retention-seconds 7d --dead-retention-seconds 2w --idempotency-seconds 2h"
    last = "--max-body-bytes 1000"
    made = shell.json("queue", "create", "full", *words.split(), *more.split(), *last.split())

    assert made["options"] == {
        "lease_seconds": 300.0,
        "max_attempts": 7,
        "backoff_base": 0.5,
        "backoff_factor": 3.0,
        "backoff_cap": 5400.0,
        "backoff_jitter": 0.0,
        "archive": True,
        "archive_retention_seconds": 604_800.0,
        "dead_retention_seconds": 1_209_600.0,
        "idempotency_seconds": 7200.0,
        "max_body_bytes": 1000,
    }
    assert shell.json("queue", "create", "bare", "--no-archive")["options"]["archive"] is False


def test_creating_a_queue_again_is_harmless_and_with_other_options_an_error(shell: Shell) -> None:
    """The error shows the difference."""
    shell.ok("queue", "create", "jobs")
    shell.ok("queue", "create", "jobs")
    assert "max_attempts is 5, not 9" in shell.refused("queue", "create", "jobs", "--max-attempts", "9", code=1)


def test_a_message_sent_again_under_its_key_is_the_same(shell: Shell) -> None:
    """As after an enqueue whose outcome is unknown."""
    shell.ok("queue", "create", "jobs")
    ids = [shell.json("message", "send", "jobs", str(n), "--idempotency-key", "order 7")["id"] for n in range(2)]

    assert ids[0] == ids[1]
    assert "1 to 255" in shell.refused("message", "send", "jobs", "1", "--idempotency-key", "", code=2)


def test_alter_changes_what_is_named_and_never_ends_a_retention(shell: Shell) -> None:
    """`never` is a time too."""
    shell.ok("queue", "create", "jobs", "--dead-retention-seconds", "1d")
    changed = shell.json("queue", "alter", "jobs", "--max-attempts", "2", "--dead-retention-seconds", "never")

    assert changed["options"]["max_attempts"] == 2
    assert changed["options"]["dead_retention_seconds"] is None
    assert "nothing to change" in shell.refused("queue", "alter", "jobs", code=2)


def test_the_list_of_queues_shows_names_that_are_hard_to_show(shell: Shell) -> None:
    """Control characters are escaped, markup is text, and nothing is cut short in a file."""
    for name in ("[red]x[/red]", "é 🦆; drop table x; --", "bell\a", "n" * 200):
        shell.ok("queue", "create", name)
    shown = shell.ok("queue", "list").out

    assert "[red]x[/red]" in shown
    assert "é 🦆; drop table x; --" in shown
    assert "bell\\x07" in shown
    assert "\a" not in shown
    assert "n" * 200 in shown
    assert {one["queue"] for one in shell.json("queue", "list")} >= {"bell\a", "n" * 200}


def test_without_queues_the_lists_say_so(shell: Shell) -> None:
    """And tell how to make one."""
    assert "pgqrs queue create" in shell.ok("queue", "list").out
    assert shell.ok("queue", "metrics").out == "no queues\n"
    assert shell.json("queue", "metrics") == []


def test_metrics_count_every_state(shell: Shell, pgqrs_dsn: str) -> None:
    """Of one queue, and of all."""
    shell.ok("queue", "create", "jobs")
    for extra in ([], [], ["--delay", "1h"]):
        shell.ok("message", "send", "jobs", "1", *extra)
    bury(pgqrs_dsn, "jobs")
    shell.ok("message", "send", "jobs", "2")
    shell.ok("message", "read", "jobs", "--archive")
    shell.ok("message", "send", "jobs", "3")
    shell.ok("message", "send", "jobs", "4")
    shell.ok("message", "read", "jobs")

    one = shell.json("queue", "metrics", "jobs")
    counts = {key: one[key] for key in ("ready", "delayed", "in_flight", "dead", "archived", "estimated", "paused")}
    assert counts == {
        "ready": 1,
        "delayed": 1,
        "in_flight": 1,
        "dead": 2,
        "archived": 1,
        "estimated": [],
        "paused": False,
    }
    assert 3590 < one["next_due_seconds"] <= 3600
    (every,) = shell.json("queue", "metrics")
    assert {**every, **counts} == every
    assert re.search("next due +in (1 h|59 min)", shell.ok("queue", "metrics", "jobs").out)


def test_large_counts_are_marked_as_estimates(shell: Shell, pgqrs_dsn: str) -> None:
    """With a tilde."""
    shell.ok("queue", "create", "jobs")
    with Client(pgqrs_dsn) as client:
        for _ in range(2):
            client.producer.batch_enqueue("jobs", [b"x"] * 10_000)
    assert "~20,000" in shell.ok("queue", "metrics", "jobs").out
    assert shell.json("queue", "metrics", "jobs")["estimated"] == ["ready"]


def test_a_paused_queue_gives_nothing_until_it_is_resumed(shell: Shell) -> None:
    """Sending goes on."""
    shell.ok("queue", "create", "jobs")
    assert shell.json("queue", "pause", "jobs") == {"queue": "jobs", "paused": True}
    shell.ok("message", "send", "jobs", "1")

    assert shell.json("message", "read", "jobs") == []
    assert "paused" in shell.ok("queue", "list").out
    assert shell.json("queue", "resume", "jobs") == {"queue": "jobs", "paused": False}
    assert len(shell.json("message", "read", "jobs")) == 1


def test_purge_removes_what_waits_and_delete_the_queue(shell: Shell) -> None:
    """Both say what they did."""
    shell.ok("queue", "create", "jobs")
    shell.ok("message", "send", "jobs", "1")
    shell.ok("message", "send", "jobs", "1", "--delay", "5m")

    assert shell.json("queue", "purge", "jobs", "--yes") == {"queue": "jobs", "removed": 2}
    assert shell.json("queue", "delete", "jobs", "--yes") == {"queue": "jobs", "deleted": True}
    assert shell.json("queue", "list") == []


def test_a_message_takes_every_option(shell: Shell) -> None:
    """Priority, delay, time to live, headers."""
    shell.ok("queue", "create", "jobs")
    shell.ok("message", "send", "jobs", "1", "--priority", "7", "--ttl", "1h", "--header", "a=b", "--header", "c=d=e")
    shell.ok("message", "send", "jobs", "2", "--at", "2099-01-01T12:00:00Z")
    first, second = sorted(shell.json("message", "peek", "jobs"), key=lambda one: one["id"])

    assert (first["priority"], first["headers"], first["state"]) == (7, {"a": "b", "c": "d=e"}, "ready")
    assert first["expires_at"] is not None
    assert (second["due_at"], second["state"]) == ("2099-01-01T12:00:00+00:00", "delayed")
    assert "due in" in shell.ok("message", "peek", "jobs").out


def test_a_message_may_come_from_standard_input_and_from_a_file(shell: Shell, tmp_path: Path) -> None:
    """Raw bytes too."""
    shell.ok("queue", "create", "jobs")
    (tmp_path / "one.json").write_bytes(b'\xef\xbb\xbf{"from": "file"}\n')
    shell.ok("message", "send", "jobs", "--file", str(tmp_path / "one.json"))
    for words, fed in ((["-"], b'{"from": "stdin"}'), (["-", "--raw"], b"\x80\x00\xff")):
        assert spawn("message", "send", "jobs", *words, input=fed).returncode == 0
    first, second, third = shell.json("message", "read", "jobs", "--count", "3")

    assert (first["encoding"], first["body"]) == ("json", {"from": "file"})
    assert (second["encoding"], second["body"]) == ("json", {"from": "stdin"})
    assert (third["encoding"], third["body"], third["size_bytes"]) == ("base64", "gAD/", 3)
    assert third["content_type"] == "application/octet-stream"


def test_bytes_of_an_argument_are_sent_as_they_were_typed(shell: Shell) -> None:
    """Even if they are no text."""
    shell.ok("queue", "create", "jobs")
    assert spawn(b"message", b"send", b"jobs", b"\xff\xfe", b"--raw").returncode == 0  # type: ignore[arg-type]
    assert shell.json("message", "read", "jobs")[0]["body"] == "//4="


def test_bodies_are_never_unpickled_and_never_act_on_the_terminal(shell: Shell, pgqrs_dsn: str) -> None:
    """What is not text is escaped, with its size."""
    shell.ok("queue", "create", "jobs")
    with Client(pgqrs_dsn) as client:
        client.producer.enqueue("jobs", b"cos\nsystem\n(S'exit 1'\ntR.\x00\x80")
        client.producer.enqueue("jobs", "\x1b[2J\u202e")
    shown = shell.ok("message", "peek", "jobs").out
    read = shell.json("message", "read", "jobs", "--count", "2")

    assert "\\x80 (27 B)" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert [one["encoding"] for one in read] == ["base64", "json"]


def test_what_is_no_json_for_programs_is_shown_as_text(shell: Shell, pgqrs_dsn: str) -> None:
    """NaN; a lone surrogate is escaped."""
    shell.ok("queue", "create", "jobs")
    with Client(pgqrs_dsn) as client:
        client.producer.batch_enqueue("jobs", [[float("nan")], "\ud800"])
    nan, surrogate = shell.json("message", "peek", "jobs")

    assert (nan["encoding"], nan["body"]) == ("text", "[NaN]")
    assert surrogate["body"] == "\ud800"


def test_json_is_json_and_harmless_to_a_terminal_whatever_messages_hold(shell: Shell, pgqrs_dsn: str) -> None:
    shell.ok("queue", "create", "jobs")
    acting = "\x9b31m\x85\x7f\u202e\u2066\u200f\u061c\u2028\U000e0001é"
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute(
            "insert into pgqrs.q_jobs (lane, due_at, attempt, body, content_type, headers, last_error) "
            "values (-100, now(), 1, %s, %s, %s::json, %s::json)",
            [
                acting.encode(),
                acting,
                json.dumps({acting: acting})[:-1] + ', "far": [1e999, -1e999]}',
                '{"type": 1e999}',
            ],
        )

    for words in (("dead", "list"), ("dead", "list", "jobs"), ("message", "show", "jobs", "1")):
        shown = shell.ok(*words, "--json").out
        document = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        one = document[0] if isinstance(document, list) else document
        assert one["headers"] == {acting: acting, "far": ["Infinity", "-Infinity"]}
        assert one["error"] == {"type": "Infinity"}
        assert [char for char in shown if not char.isprintable() and char != "\n"] == []
        assert "é" in shown
    assert [char for char in shell.ok("dead", "list").out if not char.isprintable() and char != "\n"] == []


def test_reading_leaves_messages_leased_unless_told_otherwise(shell: Shell) -> None:
    """With `--ack` they are gone, with `--archive` kept."""
    shell.ok("queue", "create", "jobs")
    for number in range(3):
        shell.ok("message", "send", "jobs", str(number))

    (leased,) = shell.json("message", "read", "jobs")
    assert leased["leased_until"] is not None
    acked = shell.ok("message", "read", "jobs", "--ack")
    assert acked.err == "1 message removed\n"
    (archived,) = shell.json("message", "read", "jobs", "--archive")
    assert archived["leased_until"] is None
    assert shell.ok("message", "read", "jobs").out == "nothing to read in queue 'jobs'\n"

    one = shell.json("queue", "metrics", "jobs")
    assert (one["ready"], one["in_flight"], one["archived"]) == (0, 1, 1)


def test_reading_waits_if_asked_to(shell: Shell) -> None:
    """Until a delayed message is due, here."""
    shell.ok("queue", "create", "jobs")
    shell.ok("message", "send", "jobs", "1", "--delay", "300ms")
    assert shell.json("message", "read", "jobs") == []
    assert len(shell.json("message", "read", "jobs", "--wait", "10s")) == 1


def test_dead_messages_are_listed_shown_replayed_and_purged(shell: Shell, pgqrs_dsn: str) -> None:
    """With the reason of their death."""
    shell.ok("queue", "create", "jobs")
    for number in range(4):
        shell.ok("message", "send", "jobs", json.dumps({"n": number}), "--header", "trace=abc")
    bury(pgqrs_dsn, "jobs")
    listed = shell.json("dead", "list", "jobs")

    assert [one["error"]["type"] for one in listed] == ["ValueError"] * 4
    assert "ValueError: no such user" in shell.ok("dead", "list", "jobs").out
    one = shell.json("dead", "show", "jobs", "1")
    assert (one["body"], one["headers"], one["attempt"]) == ({"n": 0}, {"trace": "abc"}, 1)
    shown = shell.ok("dead", "show", "jobs", "1").out
    assert all(text in shown for text in ("header.trace", "abc", "ValueError: no such user", '"n": 0'))

    assert shell.json("dead", "replay", "jobs", "1") == {"queue": "jobs", "replayed": 1}
    assert shell.json("dead", "purge", "jobs", "2", "--yes") == {"queue": "jobs", "removed": 1}
    assert shell.json("dead", "replay", "jobs", "--all") == {"queue": "jobs", "replayed": 2}
    assert shell.ok("dead", "list", "jobs").out == "queue 'jobs' holds no dead messages\n"
    assert shell.json("queue", "metrics", "jobs")["ready"] == 3


def test_the_list_of_the_dead_goes_on_where_it_ended(shell: Shell, pgqrs_dsn: str) -> None:
    """By the date of the last one."""
    shell.ok("queue", "create", "jobs")
    for number in range(3):
        shell.ok("message", "send", "jobs", str(number))
        bury(pgqrs_dsn, "jobs")
    first = shell.json("dead", "list", "jobs", "--limit", "2")
    rest = shell.json("dead", "list", "jobs", "--before", first[-1]["died_at"])
    assert [one["body"] for one in (*first, *rest)] == [2, 1, 0]


def test_replaying_a_message_that_is_not_there_is_a_failure(shell: Shell, pgqrs_dsn: str) -> None:
    """Those that are there are replayed all the same."""
    shell.ok("queue", "create", "jobs")
    shell.ok("message", "send", "jobs", "1")
    bury(pgqrs_dsn, "jobs")
    result = shell("dead", "replay", "jobs", "1", "77", "--json")

    assert (result.code, result.document["replayed"]) == (1, 1)
    assert "1 of 2 messages were not there" in result.err
    assert "holds no dead message 1" in shell.refused("dead", "show", "jobs", "1", code=1)


def test_the_archive_is_listed_replayed_and_pruned(shell: Shell) -> None:
    """Replayed messages get new ids."""
    shell.ok("queue", "create", "jobs")
    for number in range(3):
        shell.ok("message", "send", "jobs", str(number))
    shell.ok("message", "read", "jobs", "--count", "3", "--archive")

    assert [one["body"] for one in shell.json("archive", "list", "jobs")] == [2, 1, 0]
    assert [one["id"] for one in shell.json("archive", "list", "jobs", "--before", "3", "--limit", "1")] == [2]
    assert "archived" in shell.ok("archive", "list", "jobs").out
    assert shell.json("archive", "replay", "jobs", "1") == {"queue": "jobs", "replayed": 1}
    assert shell.json("message", "peek", "jobs")[0]["id"] == 4
    assert shell.json("archive", "prune", "jobs", "--older-than", "7d", "--yes") == {"queue": "jobs", "removed": 0}
    assert shell.json("archive", "prune", "jobs", "--older-than", "0", "--yes") == {"queue": "jobs", "removed": 2}
    assert shell.ok("archive", "list", "jobs").out == "the archive of queue 'jobs' is empty\n"


def test_a_queue_without_an_archive_has_none_to_show(shell: Shell) -> None:
    """That is an error of its own."""
    shell.ok("queue", "create", "jobs", "--no-archive")
    assert "keeps no archive" in shell.refused("archive", "list", "jobs", code=1)


def test_expired_messages_are_shown_as_expired_and_doctor_asks_for_no_worker(shell: Shell, pgqrs_dsn: str) -> None:
    """In the figures, in `top`, and in what `doctor` says."""
    shell.ok("queue", "create", "jobs")
    assert "expired" not in shell.ok("queue", "metrics").out
    assert "expired" not in shell.ok("top", "--once", "--interval", "0.1").out
    shell.ok("message", "send", "jobs", "1", "--ttl", "1ms")
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("update pgqrs.q_jobs set enqueued_at = now() - interval '1 day'")

    (figures,) = shell.json("queue", "metrics")
    assert (figures["ready"], figures["expired"], figures["oldest_ready_seconds"]) == (0, 1, None)
    assert "expired" in shell.ok("queue", "metrics").out
    assert "expired" in shell.ok("top", "--once", "--interval", "0.1").out
    said = [one for one in shell.json("doctor")["findings"] if one["check"] == "queues"]
    assert [one["status"] for one in said] == ["ok"]
    assert "0 ready, 0 in flight, 1 expired" in said[0]["summary"]
    assert "1 expired" in shell.refused("queue", "purge", "jobs", code=2)


def test_a_single_message_is_shown_and_deleted_whatever_its_state(shell: Shell, pgqrs_dsn: str) -> None:
    """One that a consumer holds only if that is said."""
    shell.ok("queue", "create", "jobs")
    for number in range(3):
        shell.ok("message", "send", "jobs", str(number), "--header", "a=b")
    shell.ok("message", "send", "jobs", "3", "--delay", "1h")
    bury_one(pgqrs_dsn, "jobs")
    (held,) = shell.json("message", "read", "jobs")

    states = {number: shell.json("message", "show", "jobs", str(number))["state"] for number in (1, 2, 3, 4)}
    assert states == {1: "dead", 2: "in_flight", 3: "ready", 4: "delayed"}
    shown = shell.ok("message", "show", "jobs", "2").out
    assert "in flight" in shown
    assert "header.a" in shown
    assert "leased until" in shown
    assert "by hand" in shell.ok("message", "show", "jobs", "1").out
    assert "holds no message 9" in shell.refused("message", "show", "jobs", "9", code=1)
    assert "confirm with --yes" in shell.refused("message", "delete", "jobs", "3", code=2)
    assert shell.json("message", "delete", "jobs", "3", "4", "1", "--yes")["deleted"] == [3, 4, 1]
    kept = shell("message", "delete", "jobs", str(held["id"]), "9", "--yes", "--json")
    assert (kept.code, kept.document) == (1, {"queue": "jobs", "deleted": [], "in_flight": [held["id"]]})
    assert "--in-flight" in kept.err
    assert shell.json("message", "delete", "jobs", str(held["id"]), "--yes", "--in-flight")["deleted"] == [held["id"]]
    assert shell("message", "delete", "jobs", "9", "--yes").code == 1


def bury_one(dsn: str, queue: str) -> None:
    """Dead-letter the first message."""
    with Client(dsn) as client:
        client.consumer.nack(client.consumer.read(queue), bury=True, error="by hand")


def test_dead_messages_of_all_queues_are_listed_the_latest_first(shell: Shell, pgqrs_dsn: str) -> None:
    """A queue that cannot be read is told, and hides none of the others."""
    assert shell.ok("dead", "list").out == "no queue holds dead messages\n"
    for queue in ("a", "b", "broken"):
        shell.ok("queue", "create", queue)
    for queue in ("a", "b", "a"):
        shell.ok("message", "send", queue, "1")
        bury_one(pgqrs_dsn, queue)

    assert [one["queue"] for one in shell.json("dead", "list")] == ["a", "b", "a"]
    assert [one["queue"] for one in shell.json("dead", "list", "--limit", "2")] == ["a", "b"]
    assert shell.ok("dead", "list").out.startswith("queue ")
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute("drop table pgqrs.q_broken cascade")
    result = shell("dead", "list")
    assert result.code == 0
    assert result.out.count("by hand") == 3
    assert "queue 'broken' cannot be read" in result.err


def test_maintain_does_one_round(shell: Shell) -> None:
    """And counts what it removed."""
    shell.ok("queue", "create", "jobs")
    shell.ok("message", "send", "jobs", "1", "--ttl", "1ms")
    assert shell.json("maintain") == {
        "expired": 1,
        "dead_pruned": 0,
        "archive_pruned": 0,
        "vacuumed": 0,
        "keys_pruned": 0,
        "failed": {},
    }
    assert shell.ok("maintain").out.startswith("removed 0 expired messages, 0 dead messages")


def test_the_configuration_is_shown_without_secrets(shell: Shell) -> None:
    """Also what stands in a file."""
    Path("other.yaml").write_text("database:\n  schema: jobs\nqueue:\n  max_batch_size: 50\n")
    words = ("config", "show", "--config", "other.yaml", "--url", "postgresql://me:s3cret@db.example:5433/shop")
    shown, document = shell.ok(*words), shell.json(*words)

    assert "s3cret" not in shown.out + json.dumps(document)
    assert document["target"] == "db.example:5433/shop"
    assert document["database"]["schema"] == "jobs"
    assert document["queue"]["max_batch_size"] == 50
    assert "queue.max_batch_size" in shown.out


def test_plugins_are_listed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded and blocked."""
    monkeypatch.setenv("PGQRS_PLUGINS_BLOCKED", "nobody")
    document = shell.json("plugins")

    assert "json" in [one["name"] for one in document["loaded"]]
    assert [one["name"] for one in document["blocked"]] == ["nobody"]
    assert "blocked" in shell.ok("plugins").out


def test_a_plugin_adds_commands(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails to is reported, and the command goes on."""
    from pgqrs_core.hookspecs import hookimpl
    from pgqrs_core.plugins import Plugins

    class Good:
        @hookimpl
        def pgqrs_cli(self, app: object) -> None:
            # What a command returns is not its exit code.
            app.command("hello")(lambda: sys.stdout.write("hello\n"))  # type: ignore[attr-defined]

    class Bad:
        @hookimpl
        def pgqrs_cli(self, app: object) -> None:
            raise RuntimeError("no")

    plugins = Plugins.core()
    plugins.register(Good(), "good")
    plugins.register(Bad(), "bad")
    monkeypatch.setattr("pgqrs_native.command.app.default_plugins", lambda *_: plugins)

    assert shell.ok("hello").out == "hello\n"
    assert [one.name for one in plugins.broken] == ["bad"]


def test_the_whole_command_works_as_a_process(pgqrs_dsn: str, tmp_path: Path) -> None:
    """Through `main`, with nothing but an environment variable."""
    env = {**os.environ, "DATABASE_URL": pgqrs_dsn}
    assert spawn("install", env=env, cwd=tmp_path).returncode == 0
    assert json.loads(spawn("queue", "create", "é", "--json", env=env, cwd=tmp_path).stdout)["queue"] == "é"
    # A terminal that knows ASCII only gets escapes, not a traceback.
    plain = spawn("queue", "list", env={**env, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, cwd=tmp_path)
    assert plain.returncode == 0
    assert b"\\xe9" in plain.stdout
    assert spawn("--version").stdout.startswith(b"pgqrs ")


def test_a_queue_whose_table_is_missing_is_named_and_the_others_are_served(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("broken", "sound"):
        shell.ok("queue", "create", name)
    shell.ok("message", "send", "sound", "1")
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("drop table pgqrs.q_broken cascade")

    measured, cleaned = shell("queue", "metrics"), shell("maintain")
    top, documents = shell.ok("top", "--once"), shell("queue", "metrics", "--json")
    with Client() as client:
        depths = Depths(client.engine).look()

    assert (measured.code, cleaned.code, documents.code) == (1, 1, 1)
    assert "UNREADABLE" in measured.out
    assert measured.err.startswith("queue 'broken' cannot be read: ")
    assert cleaned.err.startswith("queue 'broken' could not be cleaned: ")
    assert "broken unreadable" in top.out
    assert [(one["queue"], one["ready"], one["error"] is None) for one in documents.document] == [
        ("broken", 0, False),
        ("sound", 1, True),
    ]
    assert [(one.queue, one.error is None) for one in depths or ()] == [("broken", False), ("sound", True)]
    assert "queue 'broken' cannot be measured, the others are" in caplog.text
    shell.ok("queue", "delete", "broken", "--yes")
    shell.ok("queue", "create", "broken")
