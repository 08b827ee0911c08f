"""The page about the command shows what really happens, and leaves nothing out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pgqrs_native.command.app import build, run

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
CONSOLE = "\n".join(re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", CONSOLE, re.MULTILINE)


def pattern(expected: str) -> str:
    """Let ``...`` stand for anything, and any run of blanks for another."""
    parts = [r"[ \t]+".join(map(re.escape, re.split(r"[ \t]+", part))) for part in expected.strip().split("...")]
    return r"(?:.|\n)*?".join(parts)


def test_the_examples_of_the_page_do_what_it_says(pgqrs_dsn: str, tmp_path: Path) -> None:
    """One after the other, in one shell."""
    (tmp_path / "pgqrs").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from pgqrs_native.command import main; main()" "$@"\n'
    )
    (tmp_path / "pgqrs").chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    env.update(DATABASE_URL=pgqrs_dsn, PATH=f"{tmp_path}:{env['PATH']}")
    # One shell for all of them, so that $? is that of the example before; after each it writes a line of its own.
    script = "exec 2>&1 </dev/null\n" + "".join(
        f"(exit ${{code:-0}}); {command}\ncode=$?; echo '=== done'\n" for command, _ in EXAMPLES
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    outputs = done.stdout.split("=== done\n")

    assert len(EXAMPLES) > 25
    for (command, expected), output in zip(EXAMPLES, outputs):
        assert re.fullmatch(pattern(expected), output.strip()), f"$ {command}\n{output}"


def commands(group: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return every command with its whole name."""
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += commands(command, f"{path}{name} ")
        else:
            found.append((path + name, command))
    return found


COMMANDS = commands(build())


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_is_on_the_page_and_has_a_help(name: str, command: Any) -> None:
    """Commands of plugins excepted: they have pages of their own."""
    group, _, verb = name.rpartition(" ")
    assert re.search(rf"`(pgqrs )?{name}\b|pgqrs {name}\b|`{group} [^|]*`{verb}`|`{group} {verb}", PAGE), name
    assert command.help
    if name == "demo":
        return
    for parameter in command.params:
        long = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
        assert not long or any(option in PAGE for option in long), (name, long)


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_help_shows_every_option_and_command_in_full_at_80_columns(
    name: str, command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for parameter in command.params for option in parameter.opts if option.startswith("--"))
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_list_of_commands_says_of_each_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["queue"], ["message"], ["dead"], ["archive"]):
        assert run([*words, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")
