"""Fixtures of the Dramatiq adapter's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dramatiq")

import dramatiq
from pgqrs_dramatiq import PgqrsBroker

from .dramatiq_support import Station, Workers


@pytest.fixture
def station(pgqrs_dsn: str) -> Iterator[Station]:
    """Opens brokers and workers on this test's database, which is empty: the broker installs itself."""
    made = Station(pgqrs_dsn)
    encoder = dramatiq.get_encoder()
    yield made
    dramatiq.set_encoder(encoder)
    made.close()


@pytest.fixture
def broker(station: Station) -> PgqrsBroker:
    """One broker."""
    return station.broker()


@pytest.fixture
def crew(pgqrs_dsn: str, tmp_path: Path) -> Iterator[Workers]:
    """Starts real ``dramatiq`` processes on this test's database, and ends them."""
    made = Workers(pgqrs_dsn, tmp_path)
    yield made
    made.close()
