"""Who takes part in a schedule: producers, consumers, housekeeping, which run the product's operations as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from judge import Judge, JudgedMarks
from steps import Begin, Commit, Number, Rollback, Sleep

from pgqrs_core.doorbell import Doorbell
from pgqrs_core.errors import PgqrsError
from pgqrs_core.events import Draft
from pgqrs_core.operations.claim import receive
from pgqrs_core.operations.dead import replay_dead
from pgqrs_core.operations.enqueue import enqueue
from pgqrs_core.operations.maintenance import maintain
from pgqrs_core.operations.settle import Failure, ack, archive, extend, nack, release

if TYPE_CHECKING:
    from world import Actor, World

    from pgqrs_core.messages import Lease

__all__ = ["Cast"]

#: The longest a consumer keeps a batch, in seconds.
HANDLING = 1.0


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

    def bystander(self) -> Actor:
        """Writes elsewhere, in transactions that are open for long."""
        while self.busy:
            yield Begin()
            yield Number()
            yield self.pause(self.chance.choice([0.5, 4.0]))
            yield Commit()

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
