"""Tests wait for conditions, with a limit."""

from __future__ import annotations

import pytest

from pgqrs_core.testing import eventually


def test_the_first_true_answer_is_returned_at_once():
    answers = iter([0, "", None, "so", "too late"])

    assert eventually(lambda: next(answers), interval=0) == "so"


def test_what_is_never_so_fails_and_tells_what_was_waited_for_and_answered():
    with pytest.raises(AssertionError, match=r"in vain for 0\.01 s until it rains: the last answer was \[\]"):
        eventually(list, 0.01, interval=0, what="it rains")


def test_whoever_has_no_patience_is_answered_once():
    assert eventually(lambda: "so", patience=0) == "so"


def test_what_the_question_raises_goes_through():
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 // 0)
