"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .crowd import Crowd


@pytest.fixture
def gather(tmp_path: Path) -> Iterator[Callable[..., Crowd]]:
    """Make crowds; all of their processes are gone afterwards."""
    made: list[Crowd] = []

    def make(dsn: str, **options: Any) -> Crowd:
        folder = tmp_path / f"crowd{len(made)}"
        folder.mkdir()
        made.append(Crowd(dsn, folder, **options))
        return made[-1]

    yield make
    for crowd in made:
        crowd.close()


@pytest.fixture
def crowd(gather: Callable[..., Crowd], pgqrs_dsn: str) -> Crowd:
    """A crowd on the common server, in a database of its own."""
    return gather(pgqrs_dsn)
