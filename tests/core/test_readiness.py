"""Waiting for descriptors works by poll, and by select where somebody has taken poll away."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from pgqrs_core.readiness import Readiness


@pytest.fixture(params=["poll", "select"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
    return str(request.param)


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe(), os.pipe()]
    yield made
    for pipe in made:
        for end in pipe:
            os.close(end)


@pytest.mark.usefixtures("means")
def test_only_what_can_be_read_is_named(pipes: list[tuple[int, int]]) -> None:
    (quiet, _), (busy, writer) = pipes
    readiness = Readiness(quiet, busy)
    assert readiness.wait(0) == []

    os.write(writer, b"!")

    assert readiness.wait(5) == [busy]
    os.read(busy, 1)
    assert readiness.wait(0.001) == []
