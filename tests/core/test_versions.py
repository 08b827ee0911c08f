"""An old psycopg is told at the start, and not by a program that cannot be cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgqrs_core.drivers.versions import NEEDED, check_psycopg
from pgqrs_core.errors import ConfigurationError


@pytest.mark.parametrize("version", ["3.3.6", "3.3.10", "3.4", "3.3.7.dev1", "4.0.0"])
def test_what_is_new_enough_is_taken(version: str) -> None:
    check_psycopg(version)


@pytest.mark.parametrize("version", ["3.3.5", "3.2.13", "3.3", "2.9.9"])
def test_what_is_too_old_is_refused_with_the_way_to_get_a_newer_one(version: str) -> None:
    with pytest.raises(ConfigurationError, match=r"pip install --upgrade 'psycopg\[binary\]>=3\.3\.6'"):
        check_psycopg(version)


def test_it_is_what_the_distribution_asks_for() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"psycopg[binary]>={".".join(map(str, NEEDED))}"' in project.read_text(encoding="utf-8")
