"""The hooks. Without prometheus_client there are none but the command, so that nothing is counted for nobody."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pgqrs_core.forks import Lock
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugin_settings import PluginSettings, Setting

if TYPE_CHECKING:
    from pgqrs_core.events import Claimed, Consumed, Enqueued
    from pgqrs_prometheus.recorder import Recorder

__all__ = ["pgqrs_cli", "pgqrs_configure"]

_SETTINGS = {
    "celery": Setting("bool", "whether `pgqrs metrics serve` serves the metrics of celery-exporter, too", False),
}

_making = Lock()
_made: list[Recorder] = []


def _make() -> list[Recorder]:
    # Of two that are made at once neither could register all of its names.
    with _making:
        if not _made:
            # Imported with the first message, not with the first engine.
            from pgqrs_prometheus.recorder import Recorder

            _made.append(Recorder())
    return _made


@hookimpl
def pgqrs_configure(settings: PluginSettings) -> None:
    """Check the settings; the command reads them."""
    settings.read(_SETTINGS)


@hookimpl
def pgqrs_cli(app: Any) -> None:
    """Add ``pgqrs metrics``."""
    from pgqrs_prometheus.command import register

    register(app)


if find_spec("prometheus_client") is not None:

    @hookimpl
    def pgqrs_after_enqueue(event: Enqueued) -> None:
        """Count what was enqueued."""
        (_made or _make())[0].pgqrs_after_enqueue(event)

    @hookimpl
    def pgqrs_after_claim(event: Claimed) -> None:
        """Count what was claimed, and how long it had waited."""
        (_made or _make())[0].pgqrs_after_claim(event)

    @hookimpl
    def pgqrs_after_consume(event: Consumed) -> None:
        """Count what became of it, and how long handlers took."""
        (_made or _make())[0].pgqrs_after_consume(event)
