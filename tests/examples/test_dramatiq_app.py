"""The Dramatiq application works with a real worker, and prints what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .applications import environment_of, run_shop, start, stop
from .test_examples import promise

pytest.importorskip("dramatiq")

FOLDER = Path(__file__).parents[2] / "examples" / "dramatiq_app"


@pytest.fixture
def environment(pgqrs_dsn: str) -> dict[str, str]:
    return environment_of(FOLDER, pgqrs_dsn)


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A worker; yields its log."""
    log = tmp_path / "worker.log"
    process = start(["dramatiq", "tasks", "--processes", "1", "--threads", "4"], log, environment)
    yield log
    stop(process)


def test_the_shop_prints_what_its_header_promises(worker: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = run_shop(FOLDER, environment, tmp_path)

    assert (done.returncode, done.stdout) == (0, promise(FOLDER / "shop.py")), done.stderr + worker.read_text(
        errors="replace"
    )
