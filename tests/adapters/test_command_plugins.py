"""Commands of plugins: they accept the global options, and one that is none costs its plugin and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from pgqrs_native.command.app import build
from pgqrs_native.command.session import Given

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins

SEEN: list[tuple[Given, Any]] = []


def plugins(**made: Callable[[typer.Typer], object]) -> Plugins:
    found = Plugins.core()
    for name, add in made.items():
        found.register(SimpleNamespace(pgqrs_cli=hookimpl(lambda app, add=add: add(app))), name)
    return found


def plain(context: typer.Context, number: int = 0) -> None:
    SEEN.append((context.obj, number))


def own_json(context: typer.Context, json: Annotated[str, typer.Option("--json")] = "") -> None:
    SEEN.append((context.obj, json))


def unreadable(value: Any) -> None:
    pass


unreadable.__annotations__["value"] = "NoSuchType"


def good(app: typer.Typer) -> None:
    app.command("plain")(plain)
    below = typer.Typer()
    below.command("own")(own_json)
    below.command("plain")(plain)
    app.add_typer(below, name="below")


def call(group: Any, *words: str) -> tuple[Given, Any]:
    SEEN.clear()
    with group.make_context("pgqrs", list(words), obj=Given()) as context:
        group.invoke(context)
    return SEEN[0]


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "postgresql://h/x", "--schema", "s", "plain", "--number", "3"],
        ["plain", "--number", "3", "--url", "postgresql://h/x", "--schema", "s"],
        ["--schema", "other", "below", "plain", "--schema", "s", "--number", "3", "--database-url", "postgresql://h/x"],
        ["below", "--url", "postgresql://h/x", "plain", "--schema", "s", "--number", "3"],
    ],
)
def test_global_options_may_stand_anywhere(words: list[str]) -> None:
    given, number = call(build(plugins(good=good)), *words)

    assert (given.url, given.schema, number) == ("postgresql://h/x", "s", 3)


def test_an_option_of_the_commands_own_stays_its_own() -> None:
    given, value = call(build(plugins(good=good)), "below", "own", "--json", "text", "--embedded")

    assert (given.json, given.embedded, value) == (False, True, "text")


def test_a_plugin_whose_commands_are_none_is_skipped_and_named() -> None:
    def leave(app: typer.Typer) -> None:
        raise SystemExit(3)

    def hide(app: typer.Typer) -> None:
        app.command("fine")(plain)
        app.command("doctor")(plain)

    found = plugins(bad=lambda app: app.command("bad")(unreadable), hide=hide, leave=leave, good=good)
    group = build(found)

    assert {"doctor", "plain", "below"} <= group.commands.keys()
    assert not {"bad", "fine"} & group.commands.keys()
    assert "Examine" in group.commands["doctor"].help
    assert {one.name for one in found.broken} == {"bad", "hide", "leave"}
    assert any("there is a command 'doctor' already" in one.error for one in found.broken)
