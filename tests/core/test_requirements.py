"""Adapters say what they need; what is there is found whether or not it has been imported."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from pgqrs_core.requirements import missing


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
