"""What the doctor says to paste can be pasted: the command reads each line, or the server does."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import psycopg
import pytest
from pgqrs_native.command.app import build
from pgqrs_native.command.doctor import _environment

from pgqrs_core.config import SETTINGS
from pgqrs_core.config_sources import env_names
from pgqrs_core.drivers.sync import drive
from pgqrs_core.effects import Effect, Execute
from pgqrs_core.installing import install_command
from pgqrs_core.operations.doctor import Circumstances, examine
from pgqrs_core.operations.findings import Finding
from pgqrs_core.operations.schema import SUPPORTED
from pgqrs_core.pasting import command, identifier, literal, shell_quoted

#: Names that a shell, psql or an option parser takes for something else.
NAMES = [
    "jobs",
    "two words",
    "it's",
    '"',
    "-x",
    "--all",
    "$HOME",
    "a;b",
    "ü€",
    "line\nbreak",
    "tab\t",
    "\\",
    "*",
    "a`b`",
]

WRONG: dict[str, list[tuple[Any, ...]]] = {
    "server_facts": [(180_000, "18.0", True, "UTC", False, "odd role", "odd'base")],
    "server_time": [(1000.0,)],
    "server_settings": [
        *((name, "off") for name in ("autovacuum", "track_counts", "fsync", "full_page_writes")),
        ("synchronous_commit", "on"),
        ("synchronous_standby_names", "ghost"),
        ("max_connections", "100"),
    ],
    "synchronous_standbys": [(0,)],
    "connection_counts": [(90, 2)],
    "transaction_age": [("shop", 2_000_000_000)],
    "xmin_pins": [
        ("session", "bob", 7, "psql", "idle in transaction", "SELECT", 900.0, 5),
        ("prepared transaction", "bob", None, "g'i\nd", "prepared", None, 900.0, 5),
        ("replication slot", "", None, "gone", "inactive", None, None, 5),
        ("standby", "rep", 9, "walreceiver", "streaming", None, None, 2_000_000),
    ],
    "notify_usage": [(0.9,)],
    "schema_exists": [(True,)],
    "relations": [("migrations", "r", ""), ("q_left", "r", "")],
    "recorded_steps": [("pgqrs", list(range(1, SUPPORTED + 1)))],
    "applied_migrations": [(number, "", True) for number in range(1, SUPPORTED + 1)],
    "outdated_queues": [],
    "list_queues": [(number, name, f"s{number}", "{}", None, None) for number, name in enumerate(NAMES)],
    "queue_tables": [(f"q_s{number}", 0, 0, 10, 100_000, None, True) for number in range(1, len(NAMES))],
    # Late and dead, each of them.
    "metrics": [
        row
        for number in range(len(NAMES))
        for row in (
            (number, 0, 3, 0, 0, None, False, 3, 5000.0, None),
            (number, -100, 1, 0, 0, None, False, 0, None, None),
        )
    ],
    "archive_metrics": [],
    "leaders": [],
    "sleepers": [],
    # Their sequences are behind, and each has a message that breaks a rule.
    "queue_numbers": [(1000, 3)],
    "highest_ids": [(number, 1000, 3) for number in range(1, len(NAMES))],
    "highest_archived": [],
    "highest_keyed": [],
    "unsound": [(number, "lane", 99, 1000) for number in range(1, len(NAMES))],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "all wrong": {},
    "no commits on disk": {"server_settings": [("synchronous_commit", "off"), ("max_connections", "100")]},
    "no schema": {"schema_exists": [(False,)]},
    "an old schema": {"applied_migrations": [(1, "", True)]},
    "a newer schema": {"applied_migrations": [(number, "", False) for number in range(1, SUPPORTED + 2)]},
    "no queues": {"list_queues": [], "queue_tables": [], "metrics": [], "unsound": []},
    "paused queues": {
        "list_queues": [(1, "-p", "s1", "{}", "2026-01-01", None)],
        "queue_tables": [],
        "unsound": [],
    },
}


def found(answers: dict[str, Any]) -> list[Finding]:
    """Examine a server that answers like this."""

    def answer(effect: Effect) -> Any:
        assert isinstance(effect, Execute)
        return {**WRONG, **answers}[effect.query.name]

    return drive(examine(Circumstances("odd schema", lambda: 1000.0, pooled=True)), answer)


ALL = [(variant, one) for variant, answers in VARIANTS.items() for one in found(answers) if one.status != "ok"]
PASTED = sorted({line for _, one in ALL for line in one.commands})


def test_most_that_is_wrong_comes_with_something_to_paste() -> None:
    without = {one.check for _, one in ALL if not one.commands}
    assert without <= {"pooler", "server", "clock", "waiters", "queues", "schema"}
    assert len(PASTED) > 3 * len(NAMES)


@pytest.mark.parametrize("line", [one for one in PASTED if one.startswith("pgqrs ")])
def test_a_command_to_paste_is_one_that_the_command_reads(line: str) -> None:
    """As a shell hands it over."""
    assert "\n" not in line
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, text=True)
    read(words.stdout.split("\0")[1:-1])


def test_a_statement_to_paste_is_one_that_the_server_reads(pgqrs_dsn: str) -> None:
    """Parsed and not run."""
    lines = [one for one in PASTED if one.endswith(";")]
    assert not [one for one in lines if "\n" in one]
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        connection.execute('create schema "odd schema"')
        connection.execute('create table "odd schema".idempotency_keys (queue_id int, message_id int)')
        for number in range(1, len(NAMES)):
            connection.execute(f'create table "odd schema".a_s{number} (message_id int)'.encode())
            columns = "lane int, message_id int, due_at timestamptz, expires_at timestamptz"
            connection.execute(f'create table "odd schema".q_s{number} ({columns})'.encode())
        answers = {line: connection.pgconn.prepare(b"", line.encode()) for line in lines}
    assert {
        line: one.error_message for line, one in answers.items() if one.status != psycopg.pq.ExecStatus.COMMAND_OK
    } == {}


@pytest.mark.parametrize("line", [one for one in PASTED if not one.endswith(";") and not one.startswith("pgqrs ")])
def test_anything_else_to_paste_is_an_upgrade_or_a_setting_that_exists(line: str) -> None:
    first, *rest = shlex.split(line)
    if first == "export":
        known = {name for section, keys in SETTINGS.items() for key in keys for name in env_names(section, key)}
        assert rest[0].partition("=")[0] in known
    else:
        assert line == install_command(upgrade=True)


def test_a_variable_that_is_no_setting_can_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQRS_POOL_SIZE", "it's 3")
    ((line,),) = [one.commands for one in _environment() if "PGQRS_POOL_SIZE" in one.summary]
    done = subprocess.run(["bash", "-c", f"{line}; env"], capture_output=True, check=True, text=True)
    assert [one for one in done.stdout.splitlines() if "POOL_SIZE" in one] == [
        "PGQRS_PERFORMANCE_CONNECTION_POOL_SIZE=it's 3"
    ]


def test_any_name_survives_pasting(pgqrs_dsn: str) -> None:
    with psycopg.connect(pgqrs_dsn) as connection:
        for name in NAMES:
            said = subprocess.run(["bash", "-c", f"printf %s {shell_quoted(name)}"], capture_output=True, check=True)
            assert said.stdout.decode() == name
            assert "\n" not in command("dead", "list", names=(name,))
            row = connection.execute(f"select {literal(name)} as {identifier(name)}".encode())
            assert row.fetchone() == (name,)


def read(words: list[str]) -> None:
    """Let the command read these words as far as it does before it runs; raise if it would refuse them."""
    command, context = build(), None
    while True:
        context = command.make_context("pgqrs", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, rest)
