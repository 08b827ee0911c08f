"""The hooks. Without OpenTelemetry's API there are none, so that nothing is done for nobody."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pgqrs_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pgqrs_core.events import Claimed, EnqueueBatch, Handling
    from pgqrs_otel.tracing import Tracing

__all__: list[str] = []


@lru_cache(maxsize=1)
def _tracing() -> Tracing:
    # Imported with the first message, not with the first engine.
    from pgqrs_otel.tracing import Tracing

    return Tracing()


def _is_installed() -> bool:
    # The package "opentelemetry" is shared by many distributions; the API is one of them.
    try:
        return find_spec("opentelemetry.trace") is not None
    except ModuleNotFoundError:
        return False


if _is_installed():

    @hookimpl
    def pgqrs_around_enqueue(batch: EnqueueBatch) -> AbstractContextManager[object] | None:
        """Trace the enqueueing, and put its context into the headers."""
        return _tracing().pgqrs_around_enqueue(batch)

    @hookimpl
    def pgqrs_after_claim(event: Claimed) -> None:
        """Trace what was received by a program without a worker."""
        _tracing().pgqrs_after_claim(event)

    @hookimpl
    def pgqrs_around_handler(handling: Handling) -> AbstractContextManager[object]:
        """Trace the handler."""
        return _tracing().pgqrs_around_handler(handling)
