"""Asking before something is destroyed."""

import sys
from typing import Annotated

import typer

from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import wrapped

__all__ = ["Yes", "ask"]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def ask(impact: str, *, yes: bool) -> None:
    """Go on only if ``yes`` was given, or a person at a terminal says so.

    Args:
        impact: what will be lost, with figures.
        yes: whether the answer was given beforehand.

    Raises:
        InvalidInput: nobody can be asked.
        typer.Exit: the answer was no; exit code 1.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(f"{impact} Nothing was done: confirm with --yes")
    # On standard error, so that the output can go into a file.
    sys.stderr.write(f"{wrapped(f'{impact} Go on? [y/N]', sys.stderr)} ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        sys.stderr.write("Nothing was done.\n")
        raise typer.Exit(1)
