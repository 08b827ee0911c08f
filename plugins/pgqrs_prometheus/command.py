"""``pgqrs metrics``: serve them, or print the dashboard."""

import signal
import sys
import threading
from importlib.resources import files
from importlib.util import find_spec
from types import FrameType
from typing import Annotated

import typer

from pgqrs_core.config import Config
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command

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
) -> None:
    """Serve the gauges of all queues until stopped.

    What processes share in PROMETHEUS_MULTIPROC_DIR is served, too.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigurationError(f"metrics need prometheus_client: {install_command('prometheus')}")
    from pgqrs_core.engine import Engine
    from pgqrs_prometheus.server import endpoint, make_registry

    config: Config = context.obj.load()
    stopped = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with Engine(config) as engine, endpoint(make_registry(engine, seconds=interval), host, port) as actual:
        sys.stdout.write(f"serving http://{host}:{actual}/metrics\n")
        sys.stdout.flush()
        # In turns: a wait without an end would not let signals through on every platform.
        while not stopped.wait(3600):
            pass


def dashboard() -> None:
    """Print a Grafana dashboard, to be imported as it is."""
    sys.stdout.write(files("pgqrs_prometheus").joinpath("dashboard.json").read_text(encoding="utf-8"))
