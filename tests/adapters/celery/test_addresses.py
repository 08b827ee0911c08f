"""No place where Celery, Kombu or Flower show an address shows a password."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.testing import PATIENCE, eventually

from .celery_support import Workers

#: No server here, and no password that a server knows.
GONE = "pgqrs://app:s3cret@127.0.0.1:1/gone"


def by_tcp(dsn: str) -> str:
    """The address of the tests' server with a password that looks like one, though it may not ask for any."""
    parts = conninfo_to_dict(dsn)
    password = quote(str(parts.get("password") or "s3cret"), safe="")
    query = f"?host={parts['host']}&port={parts.get('port', 5432)}" if str(parts["host"]).startswith("/") else ""
    place = "" if query else f"{parts['host']}:{parts.get('port', 5432)}"
    return f"pgqrs://{parts['user']}:{password}@{place}/{parts['dbname']}{query}"


@contextmanager
def flower(crew: Workers) -> Iterator[Any]:
    """Run Flower, and read its pages."""
    pytest.importorskip("flower")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (crew.directory / "flower.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "celery_app", "flower", f"--port={port}", "--address=127.0.0.1"],
            env={**crew.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=crew.directory,
            stdout=output,
            stderr=output,
        )

    def get(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except OSError:
            assert process.poll() is None, (crew.directory / "flower.log").read_text()
            return ""

    try:
        yield get
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def test_workers_commands_and_flower_show_no_password(crew: Workers) -> None:
    url = by_tcp(crew.dsn)
    crew.environment["TEST_BROKER"] = f"{url};{GONE}?sslmode=disable"
    password = str(conninfo_to_dict(crew.dsn).get("password") or "s3cret")
    worker = crew.start("prefork", "-c", "1", "-E", conf={"result_backend": url, "task_ignore_result": False})
    seen = {name: crew.command(*name.split()) for name in ("inspect stats", "inspect conf", "report")}
    assert '"transport": "pgqrs"' in seen["inspect stats"]
    with flower(crew) as get:
        eventually(lambda: worker.name in get("api/workers?refresh=1"), 2 * PATIENCE)
        seen["page"] = eventually(lambda: get(f"worker/{worker.name}"), 2 * PATIENCE)
        seen["pages"] = get("workers") + get("api/workers") + get("broker")
    assert "failover" in seen["page"].lower()
    seen["flower.log"] = (crew.directory / "flower.log").read_text()
    children = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    seen["processes"] = "\n".join(line for line in children.splitlines() if worker.name in line)
    assert seen["processes"]
    worker.stop()
    seen["log"] = worker.log
    assert {place for place, text in seen.items() if password in text or "s3cret" in text} == set()


def test_a_worker_that_cannot_connect_shows_no_password(crew: Workers) -> None:
    crew.environment["TEST_BROKER"] = f"{GONE}?sslpassword=s3cret;{GONE}"
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-l", "DEBUG", "-P", "solo"],
        env=crew.environment,
        cwd=crew.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    while "Trying again" not in "".join(lines[-2:]):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.kill()
    lines.append(process.communicate(timeout=PATIENCE)[0])
    assert "Cannot connect" in "".join(lines)
    assert "s3cret" not in "".join(lines)


def test_a_report_shows_no_password_of_several_hosts(crew: Workers) -> None:
    crew.environment["TEST_BROKER"] = "pgqrs://app:s3cret@one:5433,two:5434/db?sslmode=require"

    report = crew.command("report")

    assert "one:5433,two:5434" in report
    assert "s3cret" not in report


@pytest.mark.parametrize(
    "address",
    [
        "pgqrs://app@one/db?password=s3cret",
        "pgqrs://app:s3cret#1@one/db",
        "pgqrs://app@one/db?sslpassword=s3cret&schema=s",
    ],
)
@pytest.mark.parametrize("broker", ["pgqrs://app@one/db", "memory://"])
def test_settings_show_no_password_of_results(address: str, broker: str) -> None:
    app = Celery(broker=broker, backend=address, set_as_current=False)
    app.connection().as_uri()
    if broker == "memory://":
        assert app.backend is not None

    shown = app.conf.humanize() + app.bugreport() + str(app.conf.table(censored=True))

    assert "one/db" in shown
    assert "s3cret" not in shown


BACKENDS = [
    "pgqrs://app@db/shop?password=s3cret",
    "pgqrs://db/shop?user=app&sslmode=verify-full&sslpassword=s3cret",
    "pgqrs://db/shop?oauth_client_secret=s3cret",
    "pgqrs+postgresql://app:s3cret@db/shop",
    "pgqrs://db/shop?PASSWORD=s3cret",
    "pgqrs://db/shop?pass%77ord=s3cret",
]


@pytest.mark.parametrize("broker", ["memory://", "amqp://", "pgqrs://app@db/shop?password=s3cret"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_report_shows_no_password_whatever_the_broker_is(tmp_path: Path, broker: str, backend: str) -> None:
    # Nothing but the address names pgqrs, and neither broker nor backend is made.
    script = (
        f"from celery import Celery; app = Celery('t', broker={broker!r}, backend={backend!r}); print(app.bugreport())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout

    assert "result_backend" in shown
    assert "s3cret" not in shown
