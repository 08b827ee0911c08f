"""What every command has: the global options, a client that is opened when first used, and the output."""

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pgqrs_core.config import Config
from pgqrs_core.secret import hidden
from pgqrs_core.servers import start_if_asked
from pgqrs_native.client import Client
from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import Output

__all__ = ["Given", "Session", "accept_globals", "command", "sign"]

_PANEL = "Global options"


@dataclasses.dataclass
class Given:
    """The global options of one run. They may stand before the command and behind it; the last one wins."""

    url: str | None = None
    schema: str | None = None
    config: Path | None = None
    embedded: bool = False
    json: bool = False
    debug: bool = False

    def update(self, options: dict[str, Any]) -> None:
        """Take over the options that were given at one place."""
        for name, value in options.items():
            if value:
                # What an error reporter sends of a frame must not hold the password of an address.
                setattr(self, name, hidden(value) if name == "url" else value)

    def load(self) -> Config:
        """Return the configuration that these options ask for. Commands of plugins use it: ``context.obj.load()``."""
        if self.embedded and self.url is not None:
            raise InvalidInput("--embedded and --url are both given; leave one of them out")
        url = "embedded://" if self.embedded else self.url
        return Config.load(self.config, url=url, schema=self.schema)


class _Globals(typing.TypedDict):
    """The global options as parameters: name, type and what `--help` says."""

    url: Annotated[
        str | None,
        typer.Option("--url", "--database-url", help="The database; by default DATABASE_URL.", rich_help_panel=_PANEL),
    ]
    schema: Annotated[
        str | None, typer.Option("--schema", help="The schema that holds the queues.", rich_help_panel=_PANEL)
    ]
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A file instead of pgqrs.yaml.", metavar="FILE", rich_help_panel=_PANEL),
    ]
    embedded: Annotated[bool, typer.Option("--embedded", help="Use the embedded server.", rich_help_panel=_PANEL)]
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document.", rich_help_panel=_PANEL)]
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=_PANEL)]


_GLOBALS: dict[str, Any] = typing.get_type_hints(_Globals, include_extras=True)


class Session(contextlib.AbstractContextManager["Session"]):
    """One run of one command."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.out = Output(json=given.json)
        self._stack = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @functools.cached_property
    def client(self) -> Client:
        """The client, connected at its first use and closed with the session."""
        return self._stack.enter_context(Client(self.config))

    @functools.cached_property
    def config(self) -> Config:
        """The configuration; an embedded server, if one was asked for, is started first and stopped at the end."""
        config, server = start_if_asked(self.settings)
        if server is not None:
            self._stack.callback(server.stop)
        return config

    @functools.cached_property
    def settings(self) -> Config:
        """The configuration as given; starts nothing."""
        return self.given.load()


Command = Callable[..., None]


def sign(function: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """Give a function these parameters, and the global options, as far as typer can see."""
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=getattr(Given, name))
        for name, hint in _GLOBALS.items()
    ]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    every = [context, *parameters, *added]
    function.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in every}
    return function


def command(app: typer.Typer, name: str, *, panel: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command: it gets a `Session` and its own options; the global ones are added here."""

    def register(function: Command) -> Command:
        # Not get_type_hints(): in Python 3.10 it wraps what defaults to None once more, and typer sees no option.
        parameters = inspect.signature(function, eval_str=True).parameters
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in list(parameters.values())[1:]]

        def run(*, context: typer.Context, **options: Any) -> None:
            given: Given = context.obj
            given.update({key: options.pop(key) for key in _GLOBALS})
            with Session(given) as session:
                function(session, **options)

        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        app.command(name, rich_help_panel=panel)(sign(run, own))
        return function

    return register


def accept_globals(command: Any) -> None:
    """Let a plugin's command, and those below it, accept the global options, except where it has options of those names.

    What is given goes to ``context.obj``, a `Given`, and not to the command's function.
    """
    for below in getattr(command, "commands", {}).values():
        accept_globals(below)
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    options: list[Any] = typer.main.get_command(_only_globals()).params
    for option in options:
        if option.name in _GLOBALS and not own.intersection(option.opts):
            option.expose_value = False
            option.callback = _note
            command.params.append(option)


def _only_globals() -> typer.Typer:
    app = typer.Typer(add_completion=False)

    def run(**_: Any) -> None:
        pass

    app.command()(sign(run, []))
    return app


def _note(context: typer.Context, option: Any, value: Any) -> Any:
    if isinstance(context.obj, Given):
        context.obj.update({option.name: value})
    return value
