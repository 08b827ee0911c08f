"""Other brokers to stand beside: RabbitMQ and Redis, each a server of our own that ends with the scenario."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

__all__ = ["Rival", "has_rabbitmq", "has_redis", "rabbitmq", "redis", "tree_cpu"]

#: Seconds that a server may take to start.
_PATIENCE: Final = 60
#: Debian's script that starts a node as whoever calls it. The one in the path insists on an account of its own.
_RABBITMQ: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@dataclass(frozen=True)
class Rival:
    """A running server."""

    url: str
    #: CPU seconds that it has used.
    cpu: Callable[[], float]


def tree_cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants, those included that have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system
    return 0.0


def has_redis() -> bool:
    """Tell whether Redis is installed."""
    return shutil.which("redis-server") is not None


def has_rabbitmq() -> bool:
    """Tell whether RabbitMQ is installed."""
    return _RABBITMQ.exists() or shutil.which("rabbitmq-server") is not None


@contextlib.contextmanager
def redis(directory: Path, *, appends: bool = False) -> Iterator[Rival]:
    """Start a Redis with the settings it has by default, or with ``appends`` one that writes to disk every second.

    Raises:
        SystemExit: it is not installed, or does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("this scenario compares with Redis: apt install redis-server; pip install redis")
    port = _free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    if appends:
        command += ["--appendonly", "yes", "--save", ""]
    with _running(command, dict(os.environ), directory / "redis.log", port) as process:
        yield Rival(f"redis://127.0.0.1:{port}/0", lambda: tree_cpu(process.pid))


@contextlib.contextmanager
def rabbitmq(directory: Path) -> Iterator[Rival]:
    """Start a node of RabbitMQ with the settings it has by default.

    Raises:
        SystemExit: it is not installed, or does not start.
    """
    program = str(_RABBITMQ) if _RABBITMQ.exists() else shutil.which("rabbitmq-server")
    if program is None:
        raise SystemExit("this scenario compares with RabbitMQ: apt install rabbitmq-server")
    port, distribution, mapper = _free_port(), _free_port(), _free_port()
    environment = {
        **os.environ,
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "none"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
    }
    try:
        with _running([program], environment, directory / "rabbitmq.log", port) as process:
            yield Rival(f"amqp://guest:guest@127.0.0.1:{port}/%2F", lambda: tree_cpu(process.pid))
    finally:
        # Erlang's port mapper puts itself into the background.
        if mapper_program := shutil.which("epmd"):
            subprocess.run([mapper_program, "-kill"], env=environment, capture_output=True, check=False)


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], log: Path, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block; it is there when it accepts connections."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        until = time.monotonic() + _PATIENCE
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        everyone = [process.pid]
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        for pid in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
