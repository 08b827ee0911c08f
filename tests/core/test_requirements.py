"""Adapters say what they need; what is there is found whether or not it has been imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.requirements import OLDEST, missing, require


def test_what_is_missing_is_named_with_the_way_to_get_it() -> None:
    assert missing("no_such_module", "extra") == "no_such_module is not installed: pip install 'pgqrs-py[extra]'"


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
    ("version", "fits"), [("5.3.6", False), ("5.4", True), ("5.4.0rc1", True), ("6.0", True), ("odd", True)]
)
def test_a_version_that_is_too_old_is_named_with_the_one_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    monkeypatch.setattr("pgqrs_core.requirements.version", lambda _: version)
    monkeypatch.setattr("pgqrs_core.requirements.find_spec", lambda _: object())

    if fits:
        require("celery", "celery")
        return
    with pytest.raises(ConfigurationError) as refused:
        require("celery", "celery")
    assert str(refused.value) == (
        "celery 5.3.6 is installed, pgqrs needs 5.4 or newer: pip install --upgrade 'pgqrs-py[celery]'"
    )


def test_the_extras_ask_for_the_same_versions() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for module, oldest in OLDEST.items():
        assert f'{module} = ["{module}>={".".join(map(str, oldest))}"]' in text
