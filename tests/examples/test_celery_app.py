"""The Celery application works with a real worker and a real beat, and prints what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .applications import environment_of, run_shop, start, stop
from .test_examples import promise

pytest.importorskip("celery")
# What it shows is publishing in the caller's transaction, which needs the broker.
pytest.importorskip("pgqrs_kombu")

FOLDER = Path(__file__).parents[2] / "examples" / "celery_app"


@pytest.fixture
def environment(pgqrs_dsn: str) -> dict[str, str]:
    return environment_of(FOLDER, pgqrs_dsn)


@pytest.fixture
def running(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A worker and beat; yields the folder with their logs."""
    commands = {"worker": ["--concurrency", "2"], "beat": []}
    processes = [
        start(["celery", "-A", "tasks", name, "-l", "info", *options], tmp_path / f"{name}.log", environment)
        for name, options in commands.items()
    ]
    yield tmp_path
    stop(*processes)


def test_the_shop_prints_what_its_header_promises(running: Path, environment: dict[str, str]) -> None:
    done = run_shop(FOLDER, environment, running)

    logs = "".join((running / f"{name}.log").read_text(errors="replace") for name in ("worker", "beat"))
    assert (done.returncode, done.stdout) == (0, promise(FOLDER / "shop.py")), done.stderr + logs
