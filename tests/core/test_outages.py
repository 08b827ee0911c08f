"""An outage has one line when it begins and one when it is over, however many parts of a process notice it."""

from __future__ import annotations

import logging

import pytest

from pgqrs_core.errors import QueueNotFound, TimedOut, Unavailable
from pgqrs_core.logs import get_logger
from pgqrs_core.outages import Outages

LOG = get_logger("pgqrs.part")


class Part:
    """Something that tries to reach a server."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_first_part_that_notices_says_so_and_the_last_that_is_back(caplog: pytest.LogCaptureFixture) -> None:
    outages, one, other = Outages(), Part(), Part()

    outages.noticed(one, "db", LOG, "one is out: %s", "no route")
    outages.noticed(other, "db", LOG, "other is out")
    outages.noticed(one, "db", LOG, "one is out: %s", "refused")
    assert warnings(caplog) == ["one is out: no route"]
    outages.over(other, "db")
    assert len(warnings(caplog)) == 1
    outages.over(one, "db")
    outages.over(one, "db")

    assert [text.partition(",")[0] for text in warnings(caplog)[1:]] == ["db can be reached again"]


def test_another_outage_has_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    outages, part = Outages(), Part()

    for _ in range(2):
        outages.noticed(part, "db", LOG, "out")
        outages.over(part, "db")

    assert len(warnings(caplog)) == 4


def test_two_servers_are_two_outages(caplog: pytest.LogCaptureFixture) -> None:
    outages, part = Outages(), Part()

    outages.noticed(part, "a", LOG, "a is out")
    outages.noticed(part, "b", LOG, "b is out")
    outages.over(part, "a")

    assert [text[:8] for text in warnings(caplog)] == ["a is out", "b is out", "a can be"]


def test_a_part_that_is_closed_or_gone_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    outages, stays, closed, gone = Outages(), Part(), Part(), Part()
    for part in (stays, closed, gone):
        outages.noticed(part, "db", LOG, "out")

    outages.left(closed, "db")
    del gone, part
    outages.over(stays, "db")

    assert len(warnings(caplog)) == 2


def test_when_all_parts_are_gone_the_next_one_says_so_again(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()

    outages.noticed(Part(), "db", LOG, "first")
    outages.noticed(Part(), "db", LOG, "second")

    assert warnings(caplog) == ["first", "second"]


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (Unavailable("away", target="db"), True),
        (TimedOut("busy", target="db"), False),
        (QueueNotFound("q", []), False),
    ],
)
def test_other_lines_are_left_out_only_if_they_say_the_same(
    caplog: pytest.LogCaptureFixture, error: Exception, known: bool
) -> None:
    outages, part = Outages(), Part()
    outages.warn("db", error, LOG, "round %d failed: %s", 1)
    outages.noticed(part, "db", LOG, "out")
    outages.warn("db", error, LOG, "round %d failed: %s", 2)

    expected = [f"round 1 failed: {error}", "out", *([] if known else [f"round 2 failed: {error}"])]
    assert warnings(caplog) == expected
