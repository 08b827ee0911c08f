"""The hooks. Without prometheus_client there are none but the command, so that nothing is counted for nobody."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pgqrs_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from pgqrs_core.events import Claimed, Consumed, Enqueued
    from pgqrs_prometheus.recorder import Recorder

__all__ = ["pgqrs_cli"]


@lru_cache(maxsize=1)
def _recorder() -> Recorder:
    # Imported with the first message, not with the first engine.
    from pgqrs_prometheus.recorder import Recorder

    return Recorder()


@hookimpl
def pgqrs_cli(app: Any) -> None:
    """Add ``pgqrs metrics``."""
    from pgqrs_prometheus.command import register

    register(app)


if find_spec("prometheus_client") is not None:

    @hookimpl
    def pgqrs_after_enqueue(event: Enqueued) -> None:
        """Count what was enqueued."""
        _recorder().pgqrs_after_enqueue(event)

    @hookimpl
    def pgqrs_after_claim(event: Claimed) -> None:
        """Count what was claimed, and how long it had waited."""
        _recorder().pgqrs_after_claim(event)

    @hookimpl
    def pgqrs_after_consume(event: Consumed) -> None:
        """Count what became of it, and how long handlers took."""
        _recorder().pgqrs_after_consume(event)
