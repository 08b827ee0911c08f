"""Fixtures of the tests with real Celery workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("celery")


from .celery_support import Workers


@pytest.fixture
def crew(pgqrs_dsn: str, tmp_path: Path) -> Iterator[Workers]:
    """Starts workers on this test's database, and stops them."""
    made = Workers(pgqrs_dsn, tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_crew(tmp_path: Path) -> Iterator[Callable[[str], Workers]]:
    """Makes crews on servers of the test's own."""
    made: list[Workers] = []

    def make(dsn: str) -> Workers:
        made.append(Workers(dsn, tmp_path))
        return made[-1]

    yield make
    for crew in made:
        crew.close()
