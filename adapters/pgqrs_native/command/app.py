"""The command as a whole: its groups, what becomes of errors, and the exit codes.

====  ==========================================================
code  meaning
====  ==========================================================
0     done
1     it failed: no such queue, a check that fails, …
2     wrong usage or input; nothing was done
3     the server cannot be reached
130   interrupted
141   the reader of the output has gone
====  ==========================================================
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError, EncodeError, InvalidArgument, PgqrsError, Unavailable
from pgqrs_core.plugins import Plugins, default_plugins
from pgqrs_native.command import archive, dead, doctor, message, queue, schema, top
from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import safe
from pgqrs_native.command.session import Given, accept_globals, sign

__all__ = ["FAILED", "INTERRUPTED", "UNREACHABLE", "USAGE", "build", "run"]

FAILED, USAGE, UNREACHABLE, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141

#: Set by the shell when it asks how a line may go on.
_COMPLETION = "_PGQRS_COMPLETE"
_DEMO = "pgqrs_native.demo.command"


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = Given()
    try:
        command = build(_plugins(arguments))
        if _COMPLETION in os.environ:
            command.main(list(arguments), prog_name="pgqrs")
        # Not command.main(): it takes what a command returns for an exit code.
        with command.make_context("pgqrs", list(arguments), obj=given) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        return _failed(error, given)
    return 0


def build(plugins: Plugins | None = None) -> Any:
    """Put the commands together, those of plugins included, by default of all that are installed; return click's group."""
    app = typer.Typer(
        name="pgqrs",
        help="A message queue on plain PostgreSQL.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Typer's panels cut names of options at 80 columns; plain help wraps and cuts nothing.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root())
    schema.register(app)
    for name, module in (("queue", queue), ("message", message), ("dead", dead), ("archive", archive)):
        app.add_typer(module.app, name=name, rich_help_panel="Queues and messages")
    doctor.register(app)
    top.register(app)
    if importlib.util.find_spec("pgqrs_native.demo") and importlib.util.find_spec(_DEMO):
        importlib.import_module(_DEMO).register(app)
    group = typer.main.get_group(app)
    (plugins or default_plugins()).extend_command(partial(_extend, group))
    return group


def _extend(group: Any, add: Callable[[typer.Typer], object]) -> None:
    """Add the commands of one plugin: all of them, or none if one is none or would hide another."""
    theirs = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    add(theirs)
    # What typer cannot turn into a command is found here, where it costs one plugin and not every command.
    added = typer.main.get_group(theirs).commands
    if taken := sorted(added.keys() & group.commands.keys()):
        raise ValueError(f"there is a command {taken[0]!r} already")
    for one in added.values():
        accept_globals(one)
    group.commands.update(added)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("pgqrs-py")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        sys.stdout.write(f"pgqrs {version}\n")
        raise typer.Exit


def _root() -> Callable[..., None]:
    """Make the function behind `pgqrs` itself."""
    annotation = Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)]
    version = inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=False)

    def run(*, context: typer.Context, version: bool, **options: Any) -> None:
        context.obj.update(options)

    return sign(run, [version])


def _plugins(arguments: Sequence[str]) -> Plugins:
    """Load the plugins that the configuration asks for; they add commands, so this comes before all parsing."""
    path: str | None = None
    for place, word in enumerate(arguments):
        if word == "--":
            break
        if word == "--config" and place + 1 < len(arguments):
            path = arguments[place + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    try:
        chosen = Config.load(Path(path) if path else None).plugins
    except ConfigurationError:
        # The command itself will say so, unless it was only asked for help.
        return default_plugins()
    return default_plugins(frozenset(chosen.blocked), chosen.settings, chosen.content_types)


def _failed(error: Exception, given: Given) -> int:
    """Say what went wrong, in one line, and return the exit code."""
    if given.debug:
        traceback.print_exception(error)
    if hasattr(error, "format_message"):
        # Wrong usage, as click calls it; newer typers carry a copy of click of their own.
        if type(error).__name__ == "NoArgsIsHelpError":
            # Nothing was asked, and the help is the answer; with rich it is on the screen already.
            sys.stdout.write(error.format_message())
        else:
            _complain(_usage(error))
        return USAGE
    if isinstance(error, (InvalidInput, InvalidArgument, ConfigurationError, EncodeError)):
        _complain(str(error))
        return USAGE
    if isinstance(error, Unavailable):
        _complain(f"{_sentence(str(error))} `pgqrs config show` shows which server is meant.")
        return UNREACHABLE
    if isinstance(error, PgqrsError):
        _complain(str(error))
        return FAILED
    _complain(f"{type(error).__name__}: {error} (an error of pgqrs itself; --debug shows where)")
    return FAILED


def _usage(error: Any) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", "pgqrs")
    return f"{_sentence(error.format_message())} See `{path} --help`."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _complain(text: str) -> None:
    sys.stderr.write(f"pgqrs: {safe(' '.join(text.split()))}\n")
