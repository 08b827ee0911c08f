"""Fixtures of the tests of Celery's result backend.

The broker is a fixture: any that several processes can share will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

if find_spec("celery") is None:
    collect_ignore_glob = ["*"]
else:
    from .support import Broker, Workers, make_app

if TYPE_CHECKING:
    from celery import Celery


@pytest.fixture
def backend_url(pgqrs_dsn: str) -> str:
    """The address of this test's database, as an application gives it."""
    parameters = {name: str(value) for name, value in conninfo_to_dict(pgqrs_dsn).items()}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"pgqrs://?{query}"


@pytest.fixture
def broker(backend_url: str, tmp_path: Path) -> Broker:
    """A broker that processes of this test share: pgqrs itself, or else files."""
    if find_spec("pgqrs_kombu") is not None:
        return Broker(backend_url, {})
    folder, done = tmp_path / "broker", tmp_path / "done"
    folder.mkdir()
    done.mkdir()
    options = {
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "processed_folder": str(done),
        "store_processed": True,
        "control_folder": str(tmp_path / "control"),
        "polling_interval": 0.02,
    }
    return Broker("files://localhost", options)


@pytest.fixture
def open_app(backend_url: str, broker: Broker) -> Iterator[Callable[..., Celery]]:
    """Make applications on this test's database; their connections are closed afterwards."""
    opened: list[Any] = []

    def open_one(url: str = backend_url, **settings: Any) -> Celery:
        opened.append(make_app(url, broker, settings))
        return opened[-1]

    yield open_one
    for app in opened:
        if hasattr(app._backend, "close"):
            app.backend.close()
        app.close()


@pytest.fixture
def app(open_app: Callable[..., Celery]) -> Celery:
    """An application with the default settings."""
    return open_app()


@pytest.fixture
def workers(backend_url: str, broker: Broker, tmp_path: Path) -> Iterator[Workers]:
    """Starts worker processes, and ends those that are left."""
    workers = Workers(backend_url, broker, tmp_path)
    yield workers
    workers.close()
