"""Environment variables that look like settings and are none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pgqrs_core import config_strays
from pgqrs_core.config import SETTINGS, Config
from pgqrs_core.config_strays import strays


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_strays, "_told", set())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PGQRS_DSN", "PGQRS_DATABASE_URL"),
        ("PGQRS_URL", "PGQRS_DATABASE_URL"),
        ("PGQRS_PASSWORD", "PGQRS_DATABASE_PASSWORD"),
        ("PGQRS_PREFETCH_COUNT", "PGQRS_PERFORMANCE_PREFETCH_COUNT"),
        ("PGQRS_SHEMA", "PGQRS_SCHEMA"),
        ("PGQRS_QUEUES_MAX_BATCH_SIZE", "PGQRS_QUEUE_MAX_BATCH_SIZE"),
    ],
)
def test_a_mistyped_variable_is_told_with_the_nearest_name(
    name: str, near: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config.load(env={name: "hunter2"})

    assert config == Config()
    assert caplog.messages == [f"environment variable {name!r} is no setting and is ignored; did you mean {near}?"]


def test_each_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Config.load(env={"PGQRS_DSN": "x", "PGQRS_URI": "y"})

    assert [(record.levelno, record.name) for record in caplog.records] == [(logging.WARNING, "pgqrs.config")] * 2


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PGQRS_SCHEMA",
            "PGQRS_CONFIG",
            "PGQRS_EMBEDDED_DIR",
            "PGQRS_TEST_DSN",
            "PGQRS_TEST_BINDIR",
            "PGQRS_PLUGINS_HELLO_SIZE",
        ),
        *("DATABASE_URL", "PGQRSX", "MY_PGQRS_DSN", "_PGQRS_COMPLETE"),
    ],
)
def test_settings_and_what_others_use_are_not_told(name: str) -> None:
    assert strays({name: "x"}, SETTINGS) == {}


def test_an_empty_variable_counts_as_unset() -> None:
    assert strays({"PGQRS_DSN": ""}, SETTINGS) == {}
