"""Who watches the actors of a schedule: compares what they are told with what the server did.

It raises `Violation` as soon as a promise is broken.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from table import DEAD

from pgqrs_core.marks import LAG, RESCAN, RESCAN_SHARE, Marks
from pgqrs_core.watch import POLL

if TYPE_CHECKING:
    from fake import FakeServer
    from table import Row
    from world import World

    from pgqrs_core.events import Draft
    from pgqrs_core.marks import Seen
    from pgqrs_core.messages import Delivery, Lease

__all__ = ["Judge", "JudgedMarks", "Violation"]

#: The promises as they are written down, apart from the constants that seeded bugs change.
PROMISED_LAG, PROMISED_RESCAN, PROMISED_SHARE = LAG, RESCAN, RESCAN_SHARE
#: Seconds that a consumer may sleep beside a message: a poll, and what a statement takes.
ASLEEP = 2 * POLL + 1.0


class Violation(AssertionError):
    """A promise was broken."""


class JudgedMarks(Marks):
    """Marks that are looked at whenever they have moved."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge.world.clock)
        self._judge = judge
        #: When the last rescan that is over began, and when the next one is due.
        self.looked_since = 0.0
        self._rescan_began = 0.0
        self._due_at = 0.0
        #: Which marks were reached when: time, lane, mark.
        self._moves: list[tuple[float, int, int]] = []

    def start(self) -> str:
        text = super().start()
        if not (self._rescanning or self._unread) and self._began > self._due_at + 1e-9:
            self._judge.fail(f"a rescan was due at {self._due_at:.3f} s")
        return text

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        super().finish(seen, full=full)
        now = self._judge.world.now
        if self._rescanning:
            self._rescan_began = self._began
            self._due_at = now + max(PROMISED_RESCAN, (now - self._began) / PROMISED_SHARE)
        if not self._unread:
            self.looked_since = self._rescan_began
        for lane in seen.highest if seen is not None else ():
            if lane >= 0:
                self._moves.append((now, lane, self.mark(lane)))
        self._judge.marks_moved(self)

    def passed_at(self, row: Row) -> float:
        """When a mark passed a message; never if none did."""
        return next((at for at, lane, mark in self._moves if lane == row.lane and mark > row.id), float("inf"))


class Judge:
    """Knows what was promised to whom."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server: FakeServer = world.server
        self.stored: dict[bytes, int] = {}
        self.keys: dict[str, int] = {}
        self.acked: Counter[int] = Counter()
        self.delivered: Counter[int] = Counter()
        #: Per lane, the last first delivery of a schedule in which order can be promised.
        self.last: dict[int, int] | None = None

    def fail(self, what: str) -> None:
        raise Violation(f"at {self.world.now:.3f} s: {what}")

    def marks_moved(self, marks: Marks) -> None:
        """No mark passes a message that is not committed, unless that has been under way for longer than the lag."""
        server = self.server
        for row in server.table.rows.values():
            if row.hidden and row.lane >= 0 and row.id < marks.mark(row.lane):
                age = self.world.now - server.drawn_at[row.id]
                if age < PROMISED_LAG - 1e-9:
                    self.fail(f"a mark passed message {row.id}, which is not committed and {age:.3f} s old")

    def enqueued(self, drafts: list[Draft], ids: list[int]) -> None:
        """A producer was told that these are stored."""
        for draft, number in zip(drafts, ids):
            key = draft.idempotency_key
            if key is not None:
                if self.keys.setdefault(key, number) != number:
                    self.fail(f"key {key} was answered with {number} and {self.keys[key]}")
            elif self.server.committed.get(number) != draft.body:
                self.fail(f"message {number} was acknowledged and is not stored")
            self.stored[draft.body] = number

    def claimed(self, found: list[Delivery], limit: int, marks: JudgedMarks, looked_since: float) -> None:
        """A consumer got these."""
        if not found:
            return
        claim = self.server.claims[found[0].token]
        ids = [item.id for item in found]
        spent = [number for number in claim.ids if number not in ids]
        for number in spent:
            row = self.server.table.rows.get(number)
            if row is not None and row.token == claim.token and row.lane != DEAD and row.lease_until > self.world.now:
                self.fail(f"message {number} was claimed and neither delivered nor buried")
        if len(found) > limit or len(set(ids)) < len(ids) or not set(ids) <= set(claim.ids):
            self.fail(f"asked for {limit}, claimed {claim.ids}, delivered {ids}")
        if claim.stolen:
            self.fail(f"messages {claim.stolen} were claimed while somebody held them")
        for row in claim.overtaken:
            hidden_since = max(row.free_since, marks.passed_at(row))
            if hidden_since < looked_since or row.lane < 0:
                self.fail(f"message {row.id} was overtaken although a look from the start should have found it")
        for item in found:
            self.delivered[item.id] += 1
            if not 1 <= item.attempt <= self.world.queue.options.max_attempts:
                self.fail(f"message {item.id} was delivered at attempt {item.attempt}")
            if item.body != self.server.committed.get(item.id):
                self.fail(f"message {item.id} was delivered and never committed, or with another body")
            if self.last is not None and item.attempt == 1 and item.lane >= 0:
                if item.id < self.last.get(item.lane, 0):
                    self.fail(f"message {item.id} came after {self.last[item.lane]}")
                self.last[item.lane] = item.id

    def asked(self, how: str, leases: list[Lease]) -> set[Lease]:
        """Return those of the leases with which this was done before."""
        return {lease for lease in leases if self._is_applied(how, lease)}

    def _is_applied(self, how: str, lease: Lease) -> bool:
        return (how, (lease.lane, lease.message_id, lease.token)) in self.server.applied

    def settled(self, how: str, leases: list[Lease], kept: list[bool], before: set[Lease]) -> None:
        """A consumer was told which of its leases still held."""
        for lease, alive in zip(leases, kept, strict=True):
            applied = self._is_applied(how, lease)
            if alive and not applied:
                self.fail(f"{how} of message {lease.message_id} was confirmed and not done")
            if applied and not alive and lease not in before:
                self.fail(f"{how} of message {lease.message_id} was done and denied")
        if how in ("ack", "archive"):
            for lease in {lease for lease, alive in zip(leases, kept) if alive}:
                self.acked[lease.message_id] += 1
                if self.acked[lease.message_id] > 1:
                    self.fail(f"message {lease.message_id} was acked twice")

    def nobody_sleeps_beside_a_message(self) -> None:
        if self.server.table.paused:
            return
        now = self.world.now
        asleep = [p.waits_since for p in self.world.processes if p.alive and p.waits_since is not None]
        waiting = [row for row in self.server.table.candidates() if now - row.free_since > ASLEEP]
        if waiting and any(now - since > ASLEEP for since in asleep):
            self.fail(
                f"message {waiting[0].id} waits for {now - waiting[0].free_since:.1f} s beside a sleeping consumer"
            )

    def verdict(self) -> None:
        """When all is over: everything that was acknowledged has had its end, and one copy of each key exists."""
        server = self.server
        for row in server.table.rows.values():
            if row.lane != DEAD:
                self.fail(f"message {row.id} in lane {row.lane} is stuck")
        for body, number in self.stored.items():
            if number not in server.fates and number not in server.table.rows:
                self.fail(f"message {number}, {body!r}, is lost")
        copies = Counter(body for body in server.committed.values() if body.startswith(b"key"))
        for body, count in copies.items():
            if count > 1:
                self.fail(f"{body!r} is stored {count} times under one key")
