"""What an actor may do besides what an operation asks for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Begin", "Commit", "Number", "Rollback", "Sleep"]


@dataclass(frozen=True)
class Sleep:
    """Do nothing for some seconds."""

    seconds: float


class Begin:
    """Begin a transaction: what follows belongs to it."""


class Number:
    """Give it a number, as whoever writes to a table has."""


class Commit:
    """Commit it."""


class Rollback:
    """Roll it back."""
