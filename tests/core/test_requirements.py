"""Which packages and versions are needed: found without an import, and said in one sentence with a remedy."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from pgqrs_core import requirements
from pgqrs_core.errors import ConfigurationError
from pgqrs_core.installing import install_command
from pgqrs_core.requirements import SUPPORTED, installed_packages, missing, require


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let packages be installed in certain versions."""

    def install(**versions: str) -> None:
        def version(package: str) -> str:
            try:
                return versions[package]
            except KeyError:
                raise requirements.PackageNotFoundError(package) from None

        monkeypatch.setattr(requirements, "version", version)
        monkeypatch.setattr(requirements, "is_installed", lambda package: package in versions)

    requirements._warn.cache_clear()
    return install


def test_what_is_missing_is_named_with_the_way_to_get_it() -> None:
    assert missing("no_such_module", "extra") == f"no_such_module is not installed: {install_command('extra')}"


def test_what_could_be_imported_is_not_missing_and_stays_unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)

    assert missing("this", "extra") is None
    assert "this" not in sys.modules


def test_a_module_that_stands_in_for_itself_without_a_spec_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kombu and Celery do when they are imported."""
    lazy = ModuleType("lazy")
    lazy.__spec__ = None
    monkeypatch.setitem(sys.modules, "lazy", lazy)

    assert missing("lazy", "extra") is None


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("celery", "5.4"),
        ("celery", "5.4.0rc1"),
        ("celery", "5.7.0"),
        ("celery", "odd"),
        ("psycopg", "3.3.6"),
        ("psycopg", "3.3.10"),
        ("psycopg", "3.4"),
        ("psycopg", "3.3.7.dev1"),
    ],
)
def test_what_is_new_enough_is_taken_without_a_word(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture, package: str, version: str
) -> None:
    install(**{package: version})

    require(package, package)

    assert not caplog.records


@pytest.mark.parametrize(
    ("package", "version", "sentence"),
    [
        (
            "celery",
            "5.3.6",
            "celery 5.3.6 is installed, pgqrs needs 5.4 or newer: pip install --upgrade 'celery>=5.4'",
        ),
        (
            "psycopg",
            "3.3.5",
            "psycopg 3.3.5 is installed, pgqrs needs 3.3.6 or newer: pip install --upgrade 'psycopg[binary]>=3.3.6'",
        ),
        (
            "psycopg",
            "3.3",
            "psycopg 3.3 is installed, pgqrs needs 3.3.6 or newer: pip install --upgrade 'psycopg[binary]>=3.3.6'",
        ),
    ],
)
def test_what_is_too_old_is_refused_with_the_way_to_get_a_newer_one(
    install: Callable[..., None], package: str, version: str, sentence: str
) -> None:
    install(**{package: version})

    with pytest.raises(ConfigurationError) as refused:
        require(package, package)

    assert str(refused.value) == sentence


def test_a_new_major_version_is_taken_with_one_warning(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(celery="6.0.1")

    with caplog.at_level(logging.WARNING):
        require("celery", "celery")
        require("celery", "celery")

    (line,) = [record.getMessage() for record in caplog.records]
    assert line == ("celery 6.0.1 is newer than what pgqrs is tested with, which is 5.4 to 5.x: pip install 'celery<6'")


def test_all_that_is_installed_is_judged(install: Callable[..., None]) -> None:
    install(celery="5.3.6", dramatiq="3.0", kombu="5.4.0")

    found = {one.package: (one.is_too_old, one.remedy) for one in installed_packages()}

    assert found == {
        "celery": (True, "pip install --upgrade 'celery>=5.4'"),
        "kombu": (False, ""),
        "dramatiq": (False, "pip install 'dramatiq<3'"),
    }


def test_what_the_tests_run_with_is_supported() -> None:
    assert [one.sentence for one in installed_packages() if one.is_too_old] == []
    assert {one.package for one in installed_packages()} == set(SUPPORTED)
