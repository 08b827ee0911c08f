"""The command ``pgqrs``: everything an administrator does, from a shell or a script.

``main`` is the console script. Its libraries, typer and rich, are the extra ``cli``; nothing else of pgqrs imports
them.
"""

from __future__ import annotations

import logging
import sys

from pgqrs_core.installing import install_command

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"pgqrs: the command needs {error.name}, which is not installed: {install_command('cli')}\n")
        sys.exit(1)
    from pgqrs_native.command.app import run

    logging.basicConfig(format="pgqrs: %(message)s", level=logging.WARNING)
    # What it warns of, a pooler in between, matters to consumers that stay; `pgqrs doctor` reports it.
    logging.getLogger("pgqrs.connections").setLevel(logging.ERROR)
    # A terminal that cannot show a character gets an escape instead of a traceback.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))
