"""An application that was moved from Redis starts with the options it had, and is told in one line which can go."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pgqrs_core import leftovers
from pgqrs_core.errors import ConfigurationError

REDIS: dict[str, Any] = {
    "visibility_timeout": 3600,
    "fanout_prefix": True,
    "fanout_patterns": True,
    "priority_steps": [0, 3, 6, 9],
    "sep": ":",
    "queue_order_strategy": "priority",
    "socket_timeout": 5,
    "socket_keepalive": True,
    "master_name": "m",
    "global_keyprefix": "x",
    "retry_policy": {"timeout": 5.0},
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of a process that has told nothing yet."""
    monkeypatch.setattr(leftovers, "_told", set())
    caplog.set_level(logging.WARNING, "pgqrs")
    return caplog


def test_a_brokers_options_of_redis_are_named_together_and_ignored(told: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("kombu")
    from pgqrs_kombu.options import Options

    for _ in range(2):
        assert Options.from_mapping({**REDIS, "lease": 60.0, "max_retries": 3}) == Options(lease=60.0)

    (line,) = told.messages
    assert all(name in line for name in REDIS)
    assert "broker_transport_options" in line
    assert "lease" not in line


def test_options_that_nothing_knows_are_refused_all_at_once(told: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("kombu")
    from pgqrs_kombu.options import Options

    with pytest.raises(ConfigurationError, match="'leese', 'atempts' are unknown; did you mean 'lease'"):
        Options.from_mapping({"leese": 1, "atempts": 2, "sep": ":"})


def test_a_result_backends_options_and_settings_of_redis_are_named_together(told: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("celery")
    from celery import Celery

    app = Celery("shop", backend="pgqrs://nowhere/shop", set_as_current=False)
    app.conf.result_backend_transport_options = {"global_keyprefix": "x", "retry_policy": {}, "visibility_timeout": 1}
    app.conf.redis_max_connections = 20
    app.conf.redis_socket_timeout = 5.0
    assert app.backend.options.create_schema

    options, settings = told.messages
    assert "global_keyprefix, retry_policy, visibility_timeout" in options
    assert settings.startswith("settings of another broker")
    assert settings.endswith("redis_max_connections, redis_socket_timeout")
    app.close()


def test_an_application_that_never_was_elsewhere_is_told_nothing(told: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("celery")
    from celery import Celery

    app = Celery("shop", backend="pgqrs://nowhere/shop", set_as_current=False)
    assert app.backend.options.create_schema
    app.close()
    assert told.messages == []
