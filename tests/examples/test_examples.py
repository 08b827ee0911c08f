"""Every example is short, says what it prints, and prints that."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def promise(example: Path) -> str:
    """Return the output that an example's docstring shows after ``Prints::``."""
    docstring = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    found = re.search(r"Prints::\n\n(.*)\Z", docstring, re.DOTALL)
    assert found, f"{example.name} promises nothing"
    return textwrap.dedent(found[1]).strip() + "\n"


def run(example: Path, dsn: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGQRS_")}
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={**kept, "DATABASE_URL": dsn, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )


@each_example
def test_an_example_prints_what_its_header_promises(example: Path, pgqrs_dsn: str) -> None:
    done = run(example, pgqrs_dsn)

    assert (done.returncode, done.stdout) == (0, promise(example)), done.stderr


@each_example
def test_an_example_can_be_run_again_and_leaves_no_queue(example: Path, pgqrs_dsn: str) -> None:
    first, second = run(example, pgqrs_dsn), run(example, pgqrs_dsn)

    assert (first.stdout, second.returncode) == (second.stdout, 0), second.stderr
    with psycopg.connect(pgqrs_dsn) as connection:
        assert connection.execute("select name from pgqrs.queues").fetchall() == []


@each_example
def test_an_example_fits_on_a_page(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_beside_the_examples_names_them_all() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")

    linked = set(re.findall(r"\[(\w+\.py)\]\(\1\)", page))

    assert linked == {example.name for example in EXAMPLES}
