"""The model: one queue in plain Python, without SQL, concurrency or plans.

Two tests share it. The state machine predicts every answer of the real server with it; the simulation answers operations
with it, under transactions and faults that a server could not repeat. So what the simulation believes of the statements is
what the state machine has compared with PostgreSQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

DEAD = -100
EPOCH = float("-inf")


class Key(NamedTuple):
    """An idempotency key that is known."""

    message_id: int
    expires_at: float


class Figures(NamedTuple):
    """What the metrics should say."""

    ready: int
    delayed: int
    in_flight: int
    expired: int
    dead: int
    archived: int
    oldest: float | None
    next_due: float | None


@dataclass
class Row:
    """A message."""

    id: int
    lane: int
    priority: int
    body: bytes
    enqueued_at: float
    due_at: float | None = None
    expires_at: float | None = None
    attempt: int = 0
    lease_until: float = EPOCH
    token: int = 0
    error: str | None = None
    #: Inserted by a transaction that has not committed.
    hidden: bool = False
    #: Changed by a transaction that has not ended.
    locked: bool = False
    #: How often its lease was extended.
    moves: int = field(default=0, compare=False)
    #: Since when anybody may claim it, for those who judge delays.
    free_since: float = field(default=0.0, compare=False)

    @property
    def place(self) -> str:
        """Where it is, for whoever holds it: it moves when its lease is extended."""
        return f"({self.id},{self.moves})"

    @property
    def lease(self) -> tuple[int, int, int]:
        return self.lane, self.id, self.token


@dataclass
class Table:
    """A queue's table, its archive and its keys, and a clock that somebody else moves."""

    max_attempts: int = 5
    key_seconds: float = 86_400.0
    now: float = 0.0
    paused: bool = False
    last_id: int = 0
    rows: dict[int, Row] = field(default_factory=dict)
    archive: list[tuple[float, Row]] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)

    def draw(self) -> int:
        """Take the next id, for good."""
        self.last_id += 1
        return self.last_id

    def insert(
        self, message_id: int, body: bytes, *, priority: int = 0, delay: float = 0.0, ttl: float | None = None
    ) -> Row:
        """Store a message under an id that was drawn."""
        row = Row(
            message_id,
            -1 - priority if delay else priority,
            priority,
            body,
            self.now,
            self.now + delay if delay else None,
            None if ttl is None else self.now + ttl,
            free_since=self.now + delay,
        )
        self.rows[message_id] = row
        return row

    def known(self, key: str) -> int | None:
        """The message stored under a key that has not run out."""
        found = self.keys.get(key)
        return found.message_id if found is not None and found.expires_at > self.now else None

    def remember(self, key: str, message_id: int) -> None:
        self.keys[key] = Key(message_id, self.now + self.key_seconds)

    def is_free(self, row: Row) -> bool:
        """Whether nobody holds, hides or locks it, and its time has come and is not over."""
        return (
            not (row.hidden or row.locked)
            and row.lane != DEAD
            and row.lease_until <= self.now
            and not (row.expires_at is not None and row.expires_at <= self.now)
            and (row.lane >= 0 or (row.due_at is not None and row.due_at <= self.now))
        )

    def candidates(self, starts: dict[int, int] | None = None) -> list[Row]:
        """What may be claimed, first come first."""
        found = []
        for row in self.rows.values():
            if self.is_free(row) and (row.lane < 0 or starts is None or row.id >= starts[row.lane]):
                waited = row.lane < 0
                found.append((-row.priority, not waited, row.due_at if waited else 0.0, row.id, row))
        return [item[-1] for item in sorted(found, key=lambda item: item[:-1])]

    def claim(self, limit: int, lease: float, token: int, starts: dict[int, int] | None = None) -> list[Row]:
        """Take messages, in the order in which they are found."""
        taken = [] if self.paused else self.candidates(starts)[:limit]
        for row in taken:
            row.attempt += 1
            row.lease_until = self.now + lease
            row.token = token
            row.free_since = row.lease_until
        return taken

    def held(self, lease: tuple[int, int, int]) -> Row | None:
        """The message that this lease still fences."""
        lane, message_id, token = lease
        row = self.rows.get(message_id)
        return row if row is not None and token and row.lease == (lane, message_id, token) else None

    def remove(self, row: Row) -> None:
        del self.rows[row.id]

    def put_away(self, row: Row) -> None:
        """Archive it."""
        del self.rows[row.id]
        self.archive.append((self.now, row))

    def release(self, row: Row, *, refund: bool = True) -> None:
        self._back(row, row.enqueued_at)
        row.attempt -= refund

    def nack(self, row: Row, delay: float, *, bury: bool = False, error: str | None = None) -> str:
        """Give it back after a delay, or bury it."""
        dies = bury or row.attempt >= self.max_attempts
        self._back(row, self.now + (0.0 if dies else delay))
        row.error = error
        if dies:
            row.lane = DEAD
        return "dead" if dies else "nacked"

    def extend(self, row: Row, seconds: float) -> None:
        row.lease_until = row.free_since = self.now + seconds
        row.moves += 1

    def _back(self, row: Row, due_at: float) -> None:
        row.lane = -1 - row.priority
        row.due_at = due_at
        row.lease_until, row.token = EPOCH, 0
        row.free_since = max(due_at, self.now)

    def dead(self) -> list[Row]:
        """The latest first."""
        return sorted((row for row in self.rows.values() if row.lane == DEAD), key=lambda row: (row.due_at, row.id))[
            ::-1
        ]

    def revive(self, row: Row) -> None:
        """Replay a dead message."""
        self._back(row, self.now)
        row.attempt, row.expires_at = 0, None

    def revive_archived(self, row: Row) -> Row:
        """Replay an archived message, as a new one."""
        self.archive = [item for item in self.archive if item[1] is not row]
        return self.insert(self.draw(), row.body, priority=row.priority)

    def purge(self) -> int:
        """Remove what waits and nobody holds."""
        return self._drop([row for row in self.rows.values() if row.lane != DEAD and self._loose(row)])

    def expire(self) -> int:
        return self._drop(
            [
                row
                for row in self.rows.values()
                if row.lane != DEAD and row.expires_at is not None and row.expires_at <= self.now and self._loose(row)
            ]
        )

    def prune_dead(self, seconds: float) -> int:
        return self._drop([row for row in self.dead() if row.due_at is not None and row.due_at < self.now - seconds])

    def prune_archive(self, seconds: float) -> int:
        before = len(self.archive)
        self.archive = [item for item in self.archive if not item[0] < self.now - seconds]
        return before - len(self.archive)

    def prune_keys(self) -> int:
        over = [key for key, known in self.keys.items() if known.expires_at <= self.now]
        for key in over:
            del self.keys[key]
        return len(over)

    def _loose(self, row: Row) -> bool:
        return row.lease_until <= self.now and not (row.hidden or row.locked)

    def _drop(self, rows: list[Row]) -> int:
        for row in rows:
            del self.rows[row.id]
        return len(rows)

    def figures(self) -> Figures:
        """Count as the metrics do: what has expired and is not removed yet is counted apart, unless it is held."""
        living = [row for row in self.rows.values() if row.lane != DEAD]
        free = [row for row in living if row.lease_until <= self.now]
        expired = [row for row in free if row.expires_at is not None and row.expires_at <= self.now]
        loose = [row for row in free if row not in expired]
        due = [row for row in loose if row.due_at is None or row.due_at <= self.now]
        ages = [self.now - (row.enqueued_at if row.due_at is None else row.due_at) for row in due]
        times = [
            row.due_at - self.now
            for row in living
            if row.due_at is not None
            and row.due_at > self.now
            and not (row.expires_at is not None and row.expires_at <= row.due_at)
        ]
        return Figures(
            ready=len(due),
            delayed=len(loose) - len(due),
            in_flight=len(living) - len(free),
            expired=len(expired),
            dead=len(self.rows) - len(living),
            archived=len(self.archive),
            oldest=max(ages, default=None),
            next_due=min(times, default=None),
        )
