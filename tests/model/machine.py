"""Random use of a queue on a server, every answer of which the model has to predict.

Time is advanced by ageing all times in the tables, so nobody sleeps. All durations are multiples of a hundred seconds and
an example takes a few, so what is due is never in doubt.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from harness import borrow, draft
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from table import Row, Table

from pgqrs_core.marks import Marks
from pgqrs_core.messages import Lease
from pgqrs_core.operations import archives, claim, dead, enqueue, maintenance, metrics, queues, settle

if TYPE_CHECKING:
    import psycopg
    from harness import Harness

    from pgqrs_core.messages import Queue

__all__ = ["Machine"]

DEAD_FOR, ARCHIVED_FOR, KNOWN_FOR = 500.0, 700.0, 600.0
#: Seconds by which real time and the model's may differ within an example.
SLACK = 50.0

AGE = """
update pgqrs.q_jobs set enqueued_at = enqueued_at - i.s, due_at = due_at - i.s, expires_at = expires_at - i.s,
  lease_until = case when lease_until > 'epoch' then lease_until - i.s else lease_until end
from (select %s * interval '1 second' as s) i
"""
AGE_MORE = (
    "update pgqrs.a_jobs set archived_at = archived_at - %s * interval '1 second'",
    "update pgqrs.idempotency_keys set expires_at = expires_at - %s * interval '1 second'",
)
CLEAN = (
    "delete from pgqrs.q_jobs",
    "delete from pgqrs.a_jobs",
    "delete from pgqrs.idempotency_keys",
    "update pgqrs.queues set paused_at = null",
)
NEXT_ID = "select nextval(pg_get_serial_sequence('pgqrs.q_jobs', 'message_id'))"

drafts = st.lists(
    st.fixed_dictionaries(
        {
            "priority": st.sampled_from([0, 0, 0, 1, 9]),
            "delay": st.sampled_from([0, 0, 0, 100, 300]),
            "ttl": st.sampled_from([None, None, None, 200, 400]),
            "idempotency_key": st.sampled_from([None, None, None, "a", "b", "c"]),
        }
    ),
    min_size=1,
    max_size=4,
)
seconds = st.sampled_from([100.0, 200.0, 300.0])
#: Which of the leases seen, counted from the last; what exceeds them is taken modulo their number.
picks = st.lists(st.integers(0, 11), min_size=1, max_size=5)


class Machine(RuleBasedStateMachine):
    """One example. Derive it for a harness."""

    harness: Harness
    queue: Queue
    #: A connection for what no operation does.
    by_hand: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        for statement in CLEAN:
            self.by_hand.execute(statement)
        self.model = Table(max_attempts=self.queue.options.max_attempts, key_seconds=KNOWN_FOR)
        self.model.last_id = self.by_hand.execute(NEXT_ID).fetchall()[0][0]
        # A consumer keeps its marks; its clock is the model's, so that its rescans do not depend on the machine's speed.
        self.marks = Marks(lambda: self.model.now)
        #: How many claims to come take one message each, after a last attempt was among others.
        self.cautious = 0
        self.leases: list[Lease] = []
        self.bodies = (b"%d" % number for number in itertools.count())

    def on(self, make: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an operation; the model's clock moves on a little, as the server's does."""
        self.model.now += 0.001
        return self.harness.run(make, self.queue, *args, **kwargs)

    # Producers.

    def store(self, specs: list[dict[str, Any]], bodies: list[bytes]) -> list[int]:
        """What the model makes of an enqueue."""
        ids: dict[int, int] = {}
        keyed = any(spec["idempotency_key"] for spec in specs)
        first: dict[str, int] = {}
        for place, (spec, body) in enumerate(zip(specs, bodies)):
            key = spec["idempotency_key"]
            if key in first:
                continue
            drawn = self.model.draw() if keyed or key is None else 0
            known = self.model.known(key) if key else None
            ids[place] = known if known is not None else drawn
            if key:
                first[key] = ids[place]
            if known is None:
                if key:
                    self.model.remember(key, drawn)
                fields = {name: spec[name] for name in ("priority", "delay", "ttl")}
                self.model.insert(drawn, body, **fields)
        return [ids[place] if place in ids else first[spec["idempotency_key"]] for place, spec in enumerate(specs)]

    @rule(specs=drafts)
    def enqueue(self, specs: list[dict[str, Any]]) -> None:
        bodies = [next(self.bodies) for _ in specs]
        made = [draft(body, **spec) for body, spec in zip(bodies, specs)]

        found = self.on(enqueue.enqueue, made, self.harness.engine.doorbell)

        assert found == self.store(specs, bodies)

    @rule(specs=drafts, commits=st.booleans())
    def enqueue_in_a_transaction(self, specs: list[dict[str, Any]], commits: bool) -> None:
        bodies = [next(self.bodies) for _ in specs]
        made = [draft(body, **spec) for body, spec in zip(bodies, specs)]
        connection = borrow(self.harness, "psycopg")
        try:
            self.model.now += 0.001
            found = self.harness.run_in(connection.raw, enqueue.enqueue, self.queue, made)
            (connection.commit if commits else connection.rollback)()
        finally:
            connection.close()
        if commits:
            assert found == self.store(specs, bodies)
        else:
            # Ids that were drawn are never drawn again.
            keyed = [spec["idempotency_key"] for spec in specs if spec["idempotency_key"]]
            self.model.last_id += len(specs) - len(keyed) + len(set(keyed))

    # Consumers.

    @rule(limit=st.integers(1, 6), lease=seconds, fresh=st.booleans())
    def claim(self, limit: int, lease: float, fresh: bool) -> None:
        marks = Marks(lambda: self.model.now) if fresh else self.marks
        found = self.on(claim.claim, marks, limit=limit, lease=lease)

        expected = self.predict(limit, lease, marks)
        assert [(item.id, item.attempt, item.body, item.priority) for item in found] == [
            (row.id, row.attempt, row.body, row.priority) for row in expected
        ]
        for item, row in zip(found, expected):
            assert (item.lane, row.token) == (row.lane, -1)
            row.token = item.token
        self.leases += [item.lease for item in found]

    def predict(self, limit: int, lease: float, marks: Marks) -> list[Row]:
        """What a claim takes; those without attempts left are buried on the way, and a last attempt comes alone."""
        known = self.cautious if marks is self.marks else 0
        while True:
            taken = self.model.claim(1 if known else limit, lease, -1)
            known = max(known - 1, 0)
            spent = [row for row in taken if row.attempt > self.model.max_attempts]
            for row in spent:
                assert self.model.nack(row, 0.0, error="AttemptsExhausted") == "dead"
            left = [row for row in taken if row not in spent]
            if left or not taken:
                break
        left.sort(key=lambda row: (-row.priority, row.lane >= 0, row.id))
        last = next((row for row in left if row.attempt == self.model.max_attempts > 1), None)
        if last is not None and len(left) > 1:
            for row in left:
                if row is not last:
                    self.model.release(row)
            known, left = len(left) - 1, [last]
        if marks is self.marks:
            self.cautious = known if taken else 0
        return left

    def some(self, chosen: list[int]) -> list[Lease]:
        return [self.leases[-1 - place % len(self.leases)] for place in chosen]

    @precondition(lambda self: self.leases)
    @rule(chosen=picks, how=st.sampled_from(["ack", "archive", "release", "release counted", "extend"]), time=seconds)
    def settle(self, chosen: list[int], how: str, time: float) -> None:
        """Leases may be stale, and may be named twice."""
        leases = self.some(chosen)
        operations: dict[str, Any] = {
            "ack": lambda queue: settle.ack(queue, leases),
            "archive": lambda queue: settle.archive(queue, leases),
            "release": lambda queue: settle.release(queue, leases, self.harness.engine.doorbell),
            "release counted": lambda queue: settle.release(queue, leases, counts=True),
            "extend": lambda queue: settle.extend(queue, leases, time),
        }
        answers = self.on(operations[how])

        expected: dict[Lease, bool] = {}
        for lease in leases:
            if lease in expected:
                continue
            row = self.model.held((lease.lane, lease.message_id, lease.token))
            expected[lease] = row is not None
            if row is None:
                continue
            if how == "ack":
                self.model.remove(row)
            elif how == "archive":
                self.model.put_away(row)
            elif how == "extend":
                self.model.extend(row, time)
            else:
                self.model.release(row, refund=how == "release")
        assert answers == [expected[lease] for lease in leases]

    @precondition(lambda self: self.leases)
    @rule(chosen=picks, delay=st.sampled_from([0.0, 100.0, 300.0]), bury=st.booleans())
    def nack(self, chosen: list[int], delay: float, bury: bool) -> None:
        leases = list(dict.fromkeys(self.some(chosen)))
        failures = [settle.Failure(lease, delay, {"type": "Boom"}, bury) for lease in leases]

        fates = self.on(settle.nack, failures)

        expected = []
        for lease in leases:
            row = self.model.held((lease.lane, lease.message_id, lease.token))
            expected.append("lost" if row is None else self.model.nack(row, delay, bury=bury, error="Boom"))
        assert fates == expected

    @precondition(lambda self: self.leases)
    @rule()
    def crash(self) -> None:
        """A consumer dies: nobody settles what it holds, and its marks die with it."""
        self.leases.clear()
        self.marks = Marks(lambda: self.model.now)
        self.cautious = 0

    # Time and housekeeping.

    @rule(by=st.sampled_from([100.0, 200.0, 500.0]))
    def advance(self, by: float) -> None:
        for statement in (AGE, *AGE_MORE):
            self.by_hand.execute(statement, (by,))
        self.model.now += by

    @rule()
    def keep_house(self) -> None:
        self.model.now += 0.001
        done = self.harness.run(maintenance.maintain, "pgqrs")

        model = self.model
        keys = model.prune_keys()
        expected = (model.expire(), model.prune_dead(DEAD_FOR), model.prune_archive(ARCHIVED_FOR), 0, keys)
        assert (done.expired, done.dead_pruned, done.archive_pruned, done.vacuumed, done.keys_pruned) == expected

    # Administrators.

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause: bool) -> None:
        self.harness.run(queues.pause_queue if pause else queues.resume_queue, "jobs")
        self.model.paused = pause

    @rule()
    def purge(self) -> None:
        assert self.on(queues.purge_queue) == self.model.purge()

    @rule(chosen=st.none() | picks, purge=st.booleans())
    def replay_or_purge_the_dead(self, chosen: list[int] | None, purge: bool) -> None:
        rows = self.model.dead()
        if chosen is not None and rows:
            rows = list({row.id: row for row in (rows[place % len(rows)] for place in chosen)}.values())
        ids = None if chosen is None else [row.id for row in rows]

        assert self.on(dead.purge_dead if purge else dead.replay_dead, ids) == len(rows)

        for row in rows:
            (self.model.remove if purge else self.model.revive)(row)

    @precondition(lambda self: self.model.archive)
    @rule(place=st.integers(0, 5))
    def replay_from_the_archive(self, place: int) -> None:
        row = self.model.archive[place % len(self.model.archive)][1]

        assert self.on(archives.replay_archive, [row.id, -1]) == 1

        self.model.revive_archived(row)

    # What is always true.

    @invariant()
    def figures_agree(self) -> None:
        (found,) = self.harness.run(metrics.measure, [self.harness.run(queues.find_queue, "jobs")])
        expected = self.model.figures()
        counts = (found.ready, found.delayed, found.in_flight, found.expired, found.dead, found.archived)
        assert (*counts, found.paused) == (*expected[:6], self.model.paused)
        for age, predicted in (
            (found.oldest_ready_seconds, expected.oldest),
            (found.next_due_seconds, expected.next_due),
        ):
            assert (age is None) == (predicted is None)
            assert age is None or predicted is None or abs(age - predicted) < SLACK

    @invariant()
    def lists_agree(self) -> None:
        listed = self.harness.run(dead.list_dead, self.queue, 100)
        # Those that died by one call died at one time, or one after the other.
        assert [item.died_at for item in listed] == sorted((item.died_at for item in listed), reverse=True)
        assert sorted((item.id, item.attempt, item.body, item.error["type"]) for item in listed) == sorted(
            (row.id, row.attempt, row.body, row.error) for row in self.model.dead()
        )
        kept = self.harness.run(archives.list_archive, self.queue, 100)
        assert [(item.id, item.attempt, item.body) for item in kept] == sorted(
            ((row.id, row.attempt, row.body) for _, row in self.model.archive), reverse=True
        )
