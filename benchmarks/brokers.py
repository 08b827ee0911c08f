"""Brokers that stand beside ours: started for a while, on ports of their own, and removed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["rabbitmq_server", "redis_server"]

_PATIENCE: Final = 60.0
#: Where distributions put the program itself; what is on the path may insist on an account of its own.
_RABBITMQ: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@contextlib.contextmanager
def redis_server() -> Iterator[str | None]:
    """Yield the URL of a Redis that writes to disk every second, as it comes; None if it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="pgqrs-redis-") as home:
        command = [program, "--port", str(port), "--dir", home, "--appendonly", "yes", "--save", ""]
        with _running(command, home, {}, port):
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def rabbitmq_server() -> Iterator[str | None]:
    """Yield the URL of a RabbitMQ; None if it is not installed."""
    found = str(_RABBITMQ) if _RABBITMQ.exists() else shutil.which("rabbitmq-server")
    if found is None:
        yield None
        return
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="pgqrs-rabbitmq-", ignore_cleanup_errors=True) as home:
        environment = {
            "HOME": home,
            "RABBITMQ_NODENAME": f"pgqrs-{secrets.token_hex(3)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_MNESIA_BASE": home,
            "RABBITMQ_LOG_BASE": home,
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_PID_FILE": f"{home}/pid",
        }
        with _running([found], home, environment, port):
            yield f"amqp://guest:guest@127.0.0.1:{port}/"


@contextlib.contextmanager
def _running(command: list[str], home: str, environment: Mapping[str, str], port: int) -> Iterator[None]:
    with open(f"{home}/output", "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        _wait_for(port, process, Path(home, "output"))
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"{process.args!r} did not start: {output.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
