"""Fixtures of the tests with real Celery workers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("celery")

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "kombu"))

from celery_support import Crew


@pytest.fixture
def crew(pgqrs_dsn: str, tmp_path: Path) -> Iterator[Crew]:
    """Starts workers on this test's database, and stops them."""
    made = Crew(pgqrs_dsn, tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_crew(tmp_path: Path) -> Iterator[Callable[[str], Crew]]:
    """Makes crews on servers of the test's own."""
    made: list[Crew] = []

    def make(dsn: str) -> Crew:
        made.append(Crew(dsn, tmp_path))
        return made[-1]

    yield make
    for crew in made:
        crew.close()
