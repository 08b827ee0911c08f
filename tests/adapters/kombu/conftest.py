"""Fixtures of the Kombu transport's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("kombu")


from .kombu_support import Bench


@pytest.fixture
def bench(pgqrs_dsn: str) -> Iterator[Bench]:
    """Opens connections to this test's database, which is empty: the transport installs itself."""
    made = Bench(pgqrs_dsn)
    yield made
    made.close()
