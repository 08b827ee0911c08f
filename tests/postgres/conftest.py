"""Fixtures of the tests against a server: one body runs on both engines."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import AsyncHarness, Harness, SyncHarness, ask

from pgqrs_core.operations import schema
from pgqrs_core.testing import with_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def shared_database(pgqrs_server: str) -> Iterator[str]:
    """One database for all tests here: on a server that waits for its disk, making one costs a second."""
    name = f"pgqrs_shared_{secrets.token_hex(4)}"
    ask(pgqrs_server, f"create database {name} template template0")
    yield with_database(pgqrs_server, name)
    ask(pgqrs_server, f"drop database {name} with (force)")


@pytest.fixture
def pgqrs_dsn(shared_database: str) -> str:
    """An empty database: whatever an earlier test left in it, sessions included, is removed."""
    ask(
        shared_database,
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()",
    )
    ask(
        shared_database,
        "do $$ declare name text; begin "
        "for name in select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)' loop "
        "execute format('drop schema %I cascade', name); end loop; create schema public; end $$",
    )
    return shared_database


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
