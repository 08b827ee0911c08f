"""Fixtures of the tests against a server: one body runs on both engines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import AsyncHarness, Harness, SyncHarness

from pgqrs_core.operations import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS: dict[str, type[Harness]] = {"sync": SyncHarness, "async": AsyncHarness}


@pytest.fixture(params=KINDS)
def open_harness(request: pytest.FixtureRequest, pgqrs_dsn: str) -> Iterator[Callable[..., Harness]]:
    """Open engines of one kind on this test's database, or on another ``url``; all are closed afterwards."""
    opened: list[Harness] = []

    def open_one(url: str = pgqrs_dsn, **settings: Any) -> Harness:
        opened.append(KINDS[request.param](url, **settings))
        return opened[-1]

    yield open_one
    for harness in reversed(opened):
        harness.close()


@pytest.fixture
def bare(open_harness: Callable[..., Harness]) -> Harness:
    """An engine on an empty database."""
    return open_harness()


@pytest.fixture
def harness(bare: Harness) -> Harness:
    """An engine on a database in which pgqrs is installed, with a queue ``jobs``."""
    bare.transact(schema.install, bare.engine.schema)
    bare.create("jobs")
    return bare


@pytest.fixture
def engine(pgqrs_dsn: str) -> Iterator[SyncHarness]:
    """As `harness`, for what has nothing to do with the kind of engine."""
    harness = SyncHarness(pgqrs_dsn)
    harness.transact(schema.install, harness.engine.schema)
    harness.create("jobs")
    yield harness
    harness.close()
