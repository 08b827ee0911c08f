"""OpenTelemetry: traces from producers to handlers, and metrics. Needs the extra ``otel``.

Installed, it traces as soon as the program sets a tracer provider, and passes trace contexts on in any case. Metrics are
recorded once `record_metrics` is called. See ``docs/tracing.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from pgqrs_core.engine import Engine
    from pgqrs_core.plugins import Plugins

__all__ = ["record_metrics"]


def record_metrics(
    plugins: Plugins | None = None, *, engine: Engine | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Record metrics by OpenTelemetry, in place of Prometheus or beside it; call it once, after the provider is set.

    Args:
        plugins: for engines with these plugins; by default those of ``engine``, or the installed ones.
        engine: where the queues are whose lengths are to be observed; None for none. One process of a system is enough.
        meter_provider: where to record; the global one if None.
    """
    # Whoever imports the package need not have the library.
    from pgqrs_core.plugins import default_plugins
    from pgqrs_otel.metering import Metering

    chosen = plugins or (engine.plugins if engine is not None else default_plugins(frozenset()))
    chosen.register(Metering(meter_provider, engine), "otel-metrics")
