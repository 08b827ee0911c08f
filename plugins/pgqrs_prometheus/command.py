"""``pgqrs metrics``: serve them, or print the dashboard."""

import signal
import sys
import threading
from contextlib import ExitStack
from importlib.resources import files
from importlib.util import find_spec
from types import FrameType
from typing import Annotated

import typer

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command
from pgqrs_prometheus.plugin import _SETTINGS

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Metrics for Prometheus.", no_args_is_help=True)
    group.command("serve")(serve)
    group.command("dashboard")(dashboard)
    app.add_typer(group, name="metrics", rich_help_panel="Watching")


def serve(
    context: typer.Context,
    *,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any free one.")] = 9718,
    interval: Annotated[float, typer.Option("--interval", min=0.0, help="Seconds between two looks.")] = 5.0,
    celery: Annotated[
        bool | None, typer.Option("--celery/--no-celery", help="Serve the metrics of celery-exporter, too.")
    ] = None,
) -> None:
    """Serve the gauges of all queues until stopped.

    What processes share in PROMETHEUS_MULTIPROC_DIR is served, too. With --celery, or the setting
    plugins.prometheus.celery, it listens to the events of Celery's workers.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigurationError(f"metrics need prometheus_client: {install_command('prometheus')}")
    from pgqrs_core.engine import Engine
    from pgqrs_prometheus import watch_celery
    from pgqrs_prometheus.server import endpoint, make_registry

    config: Config = context.obj.load()
    if celery is None:
        given, _ = config.plugins.settings.by_plugin(["prometheus"])
        celery = given["prometheus"].read(_SETTINGS)["celery"]
    stopped = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(config))
        registry = make_registry(engine, seconds=interval)
        if celery:
            stack.callback(watch_celery(engine, registry=registry, seconds=interval).close)
        actual = stack.enter_context(endpoint(registry, host, port))
        sys.stdout.write(f"serving http://{host}:{actual}/metrics\n")
        sys.stdout.flush()
        # In turns: a wait without an end would not let signals through on every platform.
        while not stopped.wait(3600):
            pass


def dashboard() -> None:
    """Print a Grafana dashboard, to be imported as it is."""
    sys.stdout.write(files("pgqrs_prometheus").joinpath("dashboard.json").read_text(encoding="utf-8"))
