"""Who takes part in a schedule, and the judge who watches them.

The actors run the product's operations as they are. The judge compares what they are told with what the server did, and
raises `Violation` as soon as a promise is broken.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from table import DEAD
from world import Begin, Commit, Rollback, Sleep

from pgqrs_core.doorbell import Doorbell
from pgqrs_core.errors import PgqrsError
from pgqrs_core.events import Draft
from pgqrs_core.marks import LAG, RESCAN, RESCAN_SHARE, Marks
from pgqrs_core.operations.claim import receive
from pgqrs_core.operations.dead import replay_dead
from pgqrs_core.operations.enqueue import enqueue
from pgqrs_core.operations.maintenance import maintain
from pgqrs_core.operations.settle import Failure, ack, archive, extend, nack, release
from pgqrs_core.watch import POLL

if TYPE_CHECKING:
    from fake import FakeServer
    from table import Row
    from world import Actor, World

    from pgqrs_core.marks import Seen
    from pgqrs_core.messages import Delivery, Lease

__all__ = ["Cast", "Judge", "Violation"]

#: The promises as they are written down, apart from the constants that seeded bugs change.
PROMISED_LAG, PROMISED_RESCAN, PROMISED_SHARE = LAG, RESCAN, RESCAN_SHARE
#: Seconds that a consumer may sleep beside a message: a poll, and what a statement takes.
ASLEEP = 2 * POLL + 1.0
#: The longest a consumer keeps a batch, in seconds.
HANDLING = 1.0


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


class Cast:
    """The actors of one schedule."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world = world
        self.judge = judge
        self.chance = world.chance
        self.queue = world.queue
        self.doorbell = Doorbell("pgqrs", world.clock)
        #: While set, actors do what goes wrong in real life, and begin new work.
        self.busy = True
        self._bodies = 0

    def pause(self, longest: float) -> Sleep:
        return Sleep(self.chance.random() * longest)

    def drafts(self, *, keyed: bool = False, calm: bool = False) -> list[Draft]:
        chance, drafts = self.chance, []
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            self._bodies += 1
            name = f"{'key' if keyed else 'body'}{self._bodies}"
            draft = Draft("jobs", name.encode(), "", priority=chance.choice([0, 0, 0, 9]))
            if keyed:
                draft.idempotency_key = name
            if not calm:
                draft.delay = chance.choice([None, None, None, 0.5, 3.0])
                draft.ttl = chance.choice([None, None, None, None, 2.0])
            drafts.append(draft)
        return drafts

    def producer(self, *, calm: bool = False) -> Actor:
        """Enqueues, and where the outcome is unknown, again if there is a key."""
        while self.busy:
            keyed = self.chance.random() < 0.3
            drafts = self.drafts(keyed=keyed, calm=calm)
            for _ in range(20 if keyed else 1):
                try:
                    ids = yield from enqueue(self.queue, drafts, self.doorbell)
                except PgqrsError:
                    yield self.pause(0.1)
                else:
                    self.judge.enqueued(drafts, ids)
                    break
            yield self.pause(1.0)

    def slow_producer(self) -> Actor:
        """Enqueues in a transaction of its own, which may be open for long and may be rolled back."""
        while self.busy:
            yield Begin()
            try:
                drafts = self.drafts(keyed=self.chance.random() < 0.3)
                ids = yield from enqueue(self.queue, drafts)
                yield self.pause(self.chance.choice([0.05, 0.5, 4.0]))
            except PgqrsError:
                continue
            if self.chance.random() < 0.2:
                yield Rollback()
            else:
                yield Commit()
                self.judge.enqueued(drafts, ids)
            yield self.pause(1.0)

    def consumer(self, *, limit: int | None = None) -> Actor:
        """Claims and settles, keeps some leases too long, and uses stale ones."""
        marks = JudgedMarks(self.judge)
        stale: list[Lease] = []
        while True:
            count = limit or self.chance.choice([1, 2, 10])
            lease = self.chance.choice([0.5, 2.0])
            try:
                looked_since = marks.looked_since
                found = yield from receive(self.queue, marks, limit=count, lease=lease, patience=5.0)
                self.judge.claimed(found, count, marks, looked_since)
                if found:
                    leases = [item.lease for item in found]
                    yield self.pause(HANDLING if self.busy else 0.1)
                    yield from self.settle(leases, stale)
                    stale = (stale + leases)[-4:]
            except PgqrsError:
                yield self.pause(0.1)

    def settle(self, leases: list[Lease], stale: list[Lease]) -> Actor:
        chance = self.chance
        how = chance.choice(["ack", "ack", "archive", "nack", "release", "forget", "own"] if self.busy else ["ack"])
        if how == "forget":
            return
        if how == "own":
            yield from self.ack_in_a_transaction(leases)
            return
        if chance.random() < 0.2:
            before = self.judge.asked("extend", leases)
            kept = yield from extend(self.queue, leases, 1.0)
            self.judge.settled("extend", leases, kept, before)
            yield self.pause(1.0)
        if chance.random() < 0.3:
            leases = [*leases, *stale]
            chance.shuffle(leases)
        if how == "nack":
            yield from self.nack(leases)
            return
        operations: dict[str, Any] = {"ack": ack, "archive": archive}
        before = self.judge.asked(how, leases)
        if how in operations:
            kept = yield from operations[how](self.queue, leases)
        else:
            kept = yield from release(self.queue, leases, self.doorbell)
        self.judge.settled(how, leases, kept, before)

    def nack(self, leases: list[Lease]) -> Actor:
        chance = self.chance
        failures = [
            Failure(lease, chance.choice([0.0, 0.3, 2.0]), {"type": "Boom"}, chance.random() < 0.1) for lease in leases
        ]
        before = self.judge.asked("nack", leases)
        fates = yield from nack(self.queue, failures, self.doorbell)
        self.judge.settled("nack", leases, [fate != "lost" for fate in fates], before)

    def ack_in_a_transaction(self, leases: list[Lease]) -> Actor:
        before = self.judge.asked("ack", leases)
        yield Begin()
        kept = yield from ack(self.queue, leases)
        yield self.pause(1.0)
        if self.chance.random() < 0.3:
            yield Rollback()
        else:
            yield Commit()
            self.judge.settled("ack", leases, kept, before)

    def housekeeper(self) -> Actor:
        while True:
            try:
                yield from maintain("pgqrs")
                if self.busy and self.chance.random() < 0.3:
                    yield from replay_dead(self.queue, None, self.doorbell)
            except PgqrsError:
                pass
            yield self.pause(4.0)

    def watchman(self) -> Actor:
        """Looks whether somebody sleeps who should not."""
        while True:
            self.judge.nobody_sleeps_beside_a_message()
            yield Sleep(0.5)
