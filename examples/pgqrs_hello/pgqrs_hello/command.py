"""The command ``pgqrs hello``."""

from __future__ import annotations

from typing import Any

__all__ = ["add_to"]


def add_to(app: Any) -> None:
    """Add the command to ``pgqrs``."""

    @app.command("hello", rich_help_panel="Watching")
    def hello() -> None:
        """Show the journal: what became of messages, by queue."""
        from pgqrs_core import Engine
        from pgqrs_hello.journal import read

        with Engine() as engine:
            for queue, outcome, count in engine.run(read):
                print(f"{queue}\t{outcome}\t{count}")
