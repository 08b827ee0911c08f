"""What the server says about itself and about our tables, without judging it: see `doctor` for that.

Nothing here reads messages or takes a lock that anybody could wait for, so it may be asked every second.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pgqrs_core.effects import Execute, Op
from pgqrs_core.sql import queries

__all__ = ["Pin", "TableFacts", "find_pins", "table_facts"]


class Pin(msgspec.Struct, frozen=True):
    """Something that keeps vacuum from removing dead rows.

    Attributes:
        kind: ``session``, ``prepared transaction``, ``replication slot`` or ``standby``.
        owner: The role, where there is one.
        pid: The server process, where there is one.
        name: The application's name, the prepared transaction's identifier, or the slot's name.
        state: As the server puts it, for example ``idle in transaction``.
        command: The first word of the statement, never more; None where there is none to see.
        seconds: For how long; None where the server does not say.
        transactions: How many transactions have begun since.
    """

    kind: str
    owner: str
    pid: int | None
    name: str
    state: str
    command: str | None
    seconds: float | None
    transactions: int

    def describe(self) -> str:
        """Say who it is, in one phrase."""
        words = [self.kind, *([repr(self.name)] if self.name else [])]
        if self.pid is not None:
            words.append(f"(pid {self.pid})")
        if self.owner:
            words.append(f"of {self.owner}")
        details = [text for text in (self.state, f"in {self.command}" if self.command else "") if text]
        return " ".join(words) + (f", {', '.join(details)}" if details else "")


class TableFacts(msgspec.Struct, frozen=True):
    """What the server has counted in one queue's table since its statistics were last reset."""

    table: str
    inserted: int
    deleted: int
    live: int
    dead: int
    #: None when nobody has vacuumed it yet.
    vacuumed_seconds_ago: float | None
    autovacuum_off: bool


def find_pins() -> Op[list[Pin]]:
    """Return what pins the horizon of this database, the oldest first. Passing transactions are among it."""
    rows = yield Execute(queries["xmin_pins"])
    return [Pin(*row) for row in rows]


def table_facts(schema: str) -> Op[Sequence[TableFacts]]:
    """Return what the server knows of every queue's table in ``schema``."""
    rows = yield Execute(queries["queue_tables"], {"schema": schema})
    return [TableFacts(*row) for row in rows]
