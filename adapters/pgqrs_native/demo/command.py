"""``pgqrs demo``: thin; what it does is `run.run_demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pgqrs_native.command.session import Session, command
from pgqrs_native.demo.report import show
from pgqrs_native.demo.run import run_demo

__all__ = ["demo", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "demo")(demo)


def demo(
    session: Session,
    *,
    workers: Annotated[int, typer.Option(min=2, max=64, help="How many worker processes.")] = 2,
    files: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="A directory of .py files, instead of the running Python's standard library.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only so many of the files, spread over all.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the schema pgqrs_demo in the database.")] = False,
) -> None:
    """Run a real job: count the names in the standard library.

    Half-way one of the worker processes is killed, and all connections are
    terminated. The totals are compared with a serial run.
    Exit code 1 if anything does not match.
    """
    # What people watch goes to standard error when a program reads standard output.
    console = Console(stderr=session.out.json, highlight=False)
    report = run_demo(session.config.conninfo(), workers=workers, files=files, limit=limit, keep=keep, console=console)
    if session.out.json:
        session.out.document(report.as_dict())
    else:
        show(report, console)
    if not report.ok:
        raise typer.Exit(1)
