"""What an examination says: one finding per thing it looked at."""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Literal, TypeAlias

import msgspec

__all__ = ["Finding", "Status", "span"]

Status: TypeAlias = Literal["ok", "warn", "fail", "info"]

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Finding(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        check: A stable name, the same for every finding of one check.
        status: ``ok``; ``info``: nothing to judge; ``warn``: works, but look at it; ``fail``: does not work.
        summary: One sentence, with figures.
        remedy: What to do, in words, or None.
        commands: What to paste for it, one line each: into a shell what begins with ``pgqrs``, ``export`` or ``pip``, into
            psql what ends with a semicolon.
    """

    check: str
    status: Status
    summary: str
    remedy: str | None = None
    commands: tuple[str, ...] = ()


def span(seconds: float) -> str:
    """Show a length of time for people: ``850 ms``, ``3.2 s``, ``30 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for (unit, size), (smaller, part) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("unreachable")
