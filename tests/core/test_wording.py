"""What errors show: values in few words, numbers in full, and commands that can be pasted."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from pgqrs_core.errors import InvalidArgument, QueueExists, QueueNotFound, SchemaMissing
from pgqrs_core.messages import QueueOptions
from pgqrs_core.wording import show_number, show_value


class Odd:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (list, "list"),
        (QueueOptions, "QueueOptions"),
        (object(), "a value of type object"),
        (len, "len"),
        (Odd(), "this Odd"),
        ("text", "'text'"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), "2026-01-02T03:04:00+00:00"),
        (10**5000, "this int"),
        (None, "None"),
    ],
    ids=["list", "struct", "object", "function", "odd", "text", "datetime", "long", "none"],
)
def test_a_value_is_shown_without_class_reprs_and_addresses(value: Any, shown: str) -> None:
    assert show_value(value) == shown
    assert " at 0x" not in str(InvalidArgument("x", value, "something else"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (315_360_000, "315,360,000"),
        (315_360_000.0, "315,360,000"),
        (0.1, "0.1"),
        (2**63 - 1, "9,223,372,036,854,775,807"),
        (1, "1"),
    ],
)
def test_a_number_is_shown_in_full(value: float, shown: str) -> None:
    assert show_number(value) == shown


def test_ranges_are_shown_in_full() -> None:
    with pytest.raises(InvalidArgument, match="from 1 to 315,360,000, not 0"):
        QueueOptions(idempotency_seconds=0)


def test_what_an_error_says_to_do_can_be_pasted() -> None:
    assert "`pgqrs queue create 'two words'`" in str(QueueNotFound("two words", ["two"]))
    assert "`pgqrs install`" in str(SchemaMissing("pgqrs", 3))
    assert "`pgqrs install --schema other`" in str(SchemaMissing("other", 3))
    differences = {"lease_seconds": (30.0, 5.0), "archive": (True, False), "archive_retention_seconds": (5.0, None)}
    assert "`pgqrs queue alter --lease-seconds 5.0 --archive-retention-seconds never -- -x`" in str(
        QueueExists("-x", differences)
    )
