"""The Celery application works with a real worker and a real beat, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

pytest.importorskip("celery")
# What it shows is publishing in the caller's transaction, which needs the broker.
pytest.importorskip("pgqrs_kombu")

FOLDER = Path(__file__).parents[2] / "examples" / "celery_app"


@pytest.fixture
def environment(pgqrs_dsn: str) -> dict[str, str]:
    parameters = {name: str(value) for name, value in conninfo_to_dict(pgqrs_dsn).items()}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQRS_")}
    path = os.pathsep.join([str(FOLDER), *filter(None, sys.path)])
    return {**kept, "SHOP_DATABASE": f"postgresql://?{query}", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def running(environment: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """A worker and beat; yields the folder with their logs."""
    processes = []
    for name, options in (("worker", ["--concurrency", "2"]), ("beat", [])):
        with (tmp_path / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "tasks", name, "-l", "info", *options],
                    cwd=tmp_path,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    yield tmp_path
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_shop_prints_what_its_header_promises(running: Path, environment: dict[str, str]) -> None:
    docstring = ast.get_docstring(ast.parse((FOLDER / "shop.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"Prints::\n\n(.*)\Z", docstring, re.DOTALL)
    assert found

    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / "shop.py")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=running,
        env=environment,
        check=False,
    )

    logs = "".join((running / f"{name}.log").read_text(errors="replace") for name in ("worker", "beat"))
    assert (done.returncode, done.stdout) == (0, textwrap.dedent(found[1]).strip() + "\n"), done.stderr + logs
