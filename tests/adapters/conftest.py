"""Fixtures of the native adapter's tests: every test that uses them runs with both clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .native_support import Native


@pytest.fixture(params=["sync", "async"])
def native(request: pytest.FixtureRequest, pgqrs_dsn: str) -> Iterator[Native]:
    """Makes clients and workers of one kind."""
    made = Native(request.param, pgqrs_dsn)
    yield made
    made.close()


@pytest.fixture
def client(native: Native) -> Any:
    """A client on an installed schema."""
    client = native.client()
    client.admin.install()
    return client


@pytest.fixture
def jobs(client: Any) -> str:
    """The name of a queue."""
    client.admin.create_queue("jobs", max_attempts=3, backoff_base=0.0)
    return "jobs"
