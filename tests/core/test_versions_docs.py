"""The table of versions says what the code checks, what the package asks for and what CI runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pgqrs_core.operations import doctor_server
from pgqrs_core.requirements import SUPPORTED, _examine

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
PAGE = (ROOT / "docs" / "versions.md").read_text("utf-8")
TABLE = {
    name.lower(): (oldest, newest)
    for name, oldest, newest in re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.x]+) \|", PAGE, re.MULTILINE)
}


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def test_the_table_is_what_the_code_checks() -> None:
    expected = {package: (dotted(one.oldest), f"{one.major}.x") for package, one in SUPPORTED.items()}
    expected["postgresql"] = (str(doctor_server._OLDEST), str(doctor_server._NEWEST))
    expected["python"] = TABLE["python"]

    assert expected == TABLE


def test_the_table_names_the_pythons_of_the_package() -> None:
    oldest, newest = TABLE["python"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)

    assert f'requires-python = ">={oldest}"' in PROJECT
    assert (named[0], named[-1]) == (oldest, newest)


@pytest.mark.parametrize("package", SUPPORTED)
def test_the_package_asks_for_no_older_and_no_newer_version(package: str) -> None:
    asked = re.findall(rf'"{package}(?:\[\w+\])?>=([\d.]+)"', PROJECT)

    assert asked
    assert set(asked) == {TABLE[package][0]}


@pytest.mark.parametrize("package", SUPPORTED)
def test_ci_runs_with_the_oldest_version(package: str) -> None:
    pins = (ROOT / ".ci" / "oldest.txt").read_text("utf-8")

    (pin,) = re.findall(rf"^{package}==([\d.]+)$", pins, re.MULTILINE)

    assert pin.removesuffix(".0") == TABLE[package][0]


def test_ci_runs_on_the_oldest_and_the_newest_python() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")

    assert set(TABLE["python"]) <= set(re.findall(r"\b3\.\d+\b", script))
    assert ".ci/oldest.txt" in script


@pytest.mark.parametrize(("module", "package"), [("pgqrs_celery", "celery"), ("pgqrs_kombu", "kombu")])
def test_the_modules_of_differences_name_the_oldest_version(module: str, package: str) -> None:
    text = (ROOT / "adapters" / module / "compat.py").read_text("utf-8")

    assert f"from {TABLE[package][0]} on" in text.partition("\n")[0]


def test_the_sentence_that_is_quoted_is_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqrs_core.requirements.version", lambda _: "5.3.6")
    said: Any = _examine("celery")

    assert f"```\n{said.sentence}\n```" in PAGE
