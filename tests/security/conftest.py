"""Fixtures of the tests of rights, secrets and hostile input."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator

import psycopg
import pytest

from pgqrs_core.testing import with_database

from .estate import Estate


@pytest.fixture(scope="module")
def module_dsn(pgqrs_server: str) -> Iterator[str]:
    """A database for all tests of a module."""
    name = f"pgqrs_security_{secrets.token_hex(4)}"
    with psycopg.connect(pgqrs_server, autocommit=True) as connection:
        connection.execute(f"create database {name} template template0".encode())
    yield with_database(pgqrs_server, name)
    with psycopg.connect(pgqrs_server, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="module")
def estate(module_dsn: str) -> Iterator[Estate]:
    """An installation with roles, for all tests of a module."""
    made = Estate(module_dsn)
    yield made
    made.close()


@pytest.fixture
def own_estate(pgqrs_dsn: str) -> Iterator[Estate]:
    """An installation with roles, for one test."""
    made = Estate(pgqrs_dsn)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """A worker of Celery in this process sets the level of all logs."""
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)
