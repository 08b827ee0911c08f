"""Behind PgBouncer in transaction mode everything works; results that are awaited are found by looking."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery, states
from celery.result import AsyncResult
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.testing import eventually

from ..test_pgbouncer import Pooler, pooler  # noqa: F401, TID252 - the fixture
from .support import ask
from .test_chords import Published, begin, finish


@pytest.fixture
def app(open_app: Callable[..., Celery], pooler: Pooler) -> Celery:  # noqa: F811
    """An application that knows nothing but the pooler."""
    parameters = conninfo_to_dict(pooler.dsn)
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    return open_app(f"pgqrs://?{query}", broker_url="memory://")


def test_a_wait_ends_though_no_notification_can_arrive(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("warm", 1, states.SUCCESS)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(AsyncResult("t", app=app).get(timeout=20)))
    waiting.start()
    eventually(lambda: app.backend.listener.is_connected)
    app.backend.store_result("t", 7, states.SUCCESS)
    waiting.join(15)

    assert found == [7]
    assert ask(pgqrs_dsn, "select * from pgqrs.celery_waiters") == []


def test_chords_are_counted(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published(app, monkeypatch)
    begin(app, 3)
    for place in (2, 0, 1, 1):
        finish(app, place)

    assert published.values == [[0, 1, 2]]
    app.backend.cleanup()
