"""The command ``pgqrs hello``."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["add_to"]


def add_to(app: Any) -> None:
    """Add the command to ``pgqrs``."""
    import typer

    # Annotations are looked up in the module; typer is not there, for not every process that loads the plugin has it.
    def hello(context) -> None:  # type: ignore[no-untyped-def]
        """Show the journal: what became of messages, by queue."""
        from pgqrs_core import Engine
        from pgqrs_hello.journal import read

        # The global options, --url and --schema among them, are in context.obj.
        with Engine(context.obj.load()) as engine:
            rows = engine.run(read)
        if context.obj.json:
            print(json.dumps([{"queue": queue, "outcome": outcome, "count": count} for queue, outcome, count in rows]))
            return
        for queue, outcome, count in rows:
            print(f"{queue}\t{outcome}\t{count}")

    hello.__annotations__ = {"context": typer.Context, "return": None}
    app.command("hello", rich_help_panel="Watching")(hello)
