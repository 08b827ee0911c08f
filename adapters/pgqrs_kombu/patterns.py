"""Binding keys of topic exchanges: for PostgreSQL as regular expressions, for Python word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["matches", "pattern_of"]


def pattern_of(routing_key: str) -> str:
    """Return a binding key of a topic exchange as a regular expression on a routing key with a dot behind it.

    ``*`` is one word, ``#`` any number of them, none included. With a dot behind every word each of them translates by
    itself. The expression is PostgreSQL's, which takes no longer for a bad one; Python goes by `matches`.
    """
    words = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    return "".join(words.get(word, re.escape(word) + r"\.") for word in routing_key.split("."))


def matches(pattern: str, routing_key: str) -> bool:
    """Tell whether a routing key fits a binding key of a topic exchange, in time that no pattern can stretch.

    A regular expression of Python's tries every way to share the words among several ``#``.
    """
    wanted = pattern.split(".")
    places = _beyond_any(wanted, {0})
    for word in routing_key.split("."):
        after = {place + 1 for place in places if place < len(wanted) and wanted[place] in ("*", word)}
        after |= {place for place in places if place < len(wanted) and wanted[place] == "#"}
        places = _beyond_any(wanted, after)
    return len(wanted) in places


def _beyond_any(wanted: Sequence[str], places: set[int]) -> set[int]:
    """Add the places that are reached without a word: ``#`` may stand for none."""
    for place in range(len(wanted)):
        if place in places and wanted[place] == "#":
            places.add(place + 1)
    return places
