"""The options of ``queue create`` and ``queue alter``: those of `QueueOptions`, one each."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pgqrs_native.command.inputs import duration, number_or_never

__all__ = [
    "Archive",
    "ArchiveFor",
    "Attempts",
    "Base",
    "Bytes",
    "Cap",
    "DeadFor",
    "Factor",
    "Jitter",
    "KeysFor",
    "Lease",
    "read_options",
]

_TIME = "TIME"
_KEPT = "TIME|never"

Lease = Annotated[str | None, typer.Option("--lease-seconds", metavar=_TIME, help="How long a claim hides a message.")]
Attempts = Annotated[int | None, typer.Option("--max-attempts", help="Deliveries before a message is dead.")]
Base = Annotated[str | None, typer.Option("--backoff-base", metavar=_TIME, help="Delay before the second attempt.")]
Factor = Annotated[float | None, typer.Option("--backoff-factor", help="What multiplies each further delay.")]
Cap = Annotated[str | None, typer.Option("--backoff-cap", metavar=_TIME, help="The longest delay.")]
Jitter = Annotated[float | None, typer.Option("--backoff-jitter", help="The random part of a delay, 0 to 1.")]
Archive = Annotated[bool | None, typer.Option("--archive/--no-archive", help="Whether it keeps an archive.")]
ArchiveFor = Annotated[
    str | None,
    typer.Option("--archive-retention-seconds", metavar=_KEPT, help="How long archived messages are kept."),
]
DeadFor = Annotated[
    str | None, typer.Option("--dead-retention-seconds", metavar=_KEPT, help="How long dead messages are kept.")
]
KeysFor = Annotated[
    str | None, typer.Option("--idempotency-seconds", metavar=_TIME, help="How long idempotency keys are known.")
]
Bytes = Annotated[int | None, typer.Option("--max-body-bytes", help="The largest body.")]


def read_options(**given: Any) -> dict[str, Any]:
    """Return those options that were given, with times in seconds."""
    return dict(_read(given))


def _read(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        if name.endswith("retention_seconds"):
            yield name, number_or_never(option, value)
        else:
            yield name, duration(option, value) if isinstance(value, str) else value
