"""The Dramatiq application works with a real worker, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

from .test_examples import promise

pytest.importorskip("dramatiq")

FOLDER = Path(__file__).parents[2] / "examples" / "dramatiq_app"


@pytest.fixture
def environment(pgqrs_dsn: str) -> dict[str, str]:
    parameters = {name: str(value) for name, value in conninfo_to_dict(pgqrs_dsn).items()}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQRS_")}
    path = os.pathsep.join([str(FOLDER), *filter(None, sys.path)])
    return {**kept, "SHOP_DATABASE": f"postgresql://?{query}", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A worker; yields its log."""
    command = [sys.executable, "-m", "dramatiq", "tasks", "--processes", "1", "--threads", "4"]
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    yield log
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_the_shop_prints_what_its_header_promises(worker: Path, environment: dict[str, str], tmp_path: Path) -> None:
    example = FOLDER / "shop.py"

    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, promise(example)), done.stderr + worker.read_text(errors="replace")
