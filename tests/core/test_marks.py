"""Low-water marks against a model of the database: late commits, crashes, retries; and no message is forgotten."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from pgqrs_core import marks as module
from pgqrs_core.marks import HELD, LAG, QUESTION_SHARE, RESCAN, RESCAN_SHARE, SETTLE, Marks, Seen, highest_ids
from pgqrs_core.messages import CLAIM_LANES, delayed_lane
from pgqrs_core.testing.by_hand import starts

LEASE = 3.0
PLACES = {lane: place for place, lane in enumerate(CLAIM_LANES)}


class ForgottenError(AssertionError):
    """A message waits although claims go by it."""


@dataclass
class Row:
    """One message in the model's table."""

    lane: int
    number: int
    committed: bool = False
    delivered: bool = False
    lease_until: float = 0.0
    due_at: float = 0.0
    #: When the last obstacle to claiming it went away.
    free_since: float = 0.0

    @property
    def priority(self) -> int:
        return self.lane if self.lane >= 0 else -1 - self.lane

    @property
    def rank(self) -> tuple[float, ...]:
        return (PLACES[self.lane], self.due_at if self.lane < 0 else 0, self.number)

    def is_claimable(self, now: float) -> bool:
        return self.committed and self.lease_until <= now and self.due_at <= now


@dataclass
class Transaction:
    """One that has not committed yet: a producer that has drawn ids, or a bystander that has not."""

    xid: int
    rows: list[Row] = field(default_factory=list)


class Table:
    """A queue as PostgreSQL keeps it: ids are drawn in order, commits come in any order, snapshots see some."""

    def __init__(self, kind: type[Marks], *, consumers: int = 2) -> None:
        self.now = 1000.0
        self.rows: dict[int, Row] = {}
        self.next_id = 1
        self.next_xid = 500
        self.open: dict[int, Transaction] = {}
        #: What consumers hold, with the end of the lease that makes each claim distinct.
        self.held: list[tuple[Row, float]] = []
        self.consumers = [kind(clock=lambda: self.now) for _ in range(consumers)]
        self.slowest = 0.0

    def begin(self, producer: int) -> Transaction:
        """Somebody writes, not to the queue yet, and does not commit."""
        transaction = self.open.get(producer)
        if transaction is None:
            transaction = self.open[producer] = Transaction(self.next_xid)
            self.next_xid += 1
        return transaction

    def draw(self, producer: int, lane: int) -> None:
        """A producer inserts a message and does not commit yet."""
        transaction = self.begin(producer)
        row = self.rows[self.next_id] = Row(lane, self.next_id)
        self.next_id += 1
        transaction.rows.append(row)

    def commit(self, producer: int) -> None:
        transaction = self.open.pop(producer, None)
        for row in transaction.rows if transaction else ():
            row.committed = True
            row.free_since = self.now

    def roll_back(self, producer: int) -> None:
        transaction = self.open.pop(producer, None)
        for row in transaction.rows if transaction else ():
            del self.rows[row.number]

    def send(self, lane: int) -> None:
        """A producer inserts and commits at once."""
        self.draw(-1, lane)
        self.commit(-1)

    def claim(self, consumer: int, limit: int, cost: float = 0.0) -> list[Row]:
        """A consumer claims as the statement does, from where its marks say; then the promise is checked."""
        marks = self.consumers[consumer]
        if marks.wants_writers():
            writers = (transaction.xid for transaction in self.open.values() if transaction.rows)
            marks.learn(min(writers, default=self.next_xid))
        lowest = starts(marks.start())
        waiting = sorted((row for row in self.rows.values() if row.is_claimable(self.now)), key=lambda row: row.rank)
        taken = [row for row in waiting if row.lane < 0 or row.number >= lowest[row.lane]][:limit]
        self._check(waiting, taken, full=len(taken) == limit)
        oldest = min((transaction.xid for transaction in self.open.values()), default=self.next_xid)
        newest = self.next_xid
        # A claim writes, so it is a transaction as well.
        self.next_xid += bool(taken)
        began = self.now
        for row in taken:
            row.lease_until = row.free_since = began + LEASE
            row.delivered = True
        self.now += cost
        self.slowest = max(self.slowest, cost)
        seen = Seen(highest_ids((row.lane, row.number) for row in taken), oldest, newest) if taken else None
        marks.finish(seen, full=len(taken) == limit)
        self.held += [(row, row.lease_until) for row in taken]
        return taken

    def _check(self, waiting: list[Row], taken: list[Row], *, full: bool) -> None:
        """Raise if a message that could have been claimed for longer than the promise is passed over."""
        bound = max(RESCAN, self.slowest / RESCAN_SHARE) + 2 * self.slowest + 1e-6
        for row in waiting:
            if row not in taken and self.now - row.free_since > bound:
                overtaken = [other.number for other in taken if other.rank > row.rank]
                if overtaken or not full:
                    raise ForgottenError(
                        f"message {row.number} of lane {row.lane} has waited {self.now - row.free_since:g} s; "
                        f"taken in its place: {overtaken or 'nothing'}"
                    )

    def below_marks(self) -> list[int]:
        """The committed messages that nobody was given yet and that some consumer's marks hide."""
        return [
            row.number
            for row in self.rows.values()
            for marks in self.consumers
            if row.committed and not row.delivered and row.lane >= 0 and row.number < marks.mark(row.lane)
        ]

    def _holding(self, place: int) -> Row | None:
        self.held = [(row, until) for row, until in self.held if row.lease_until == until > self.now]
        return self.held.pop(place % len(self.held))[0] if self.held else None

    def ack(self, place: int) -> None:
        row = self._holding(place)
        if row is not None:
            del self.rows[row.number]

    def give_back(self, place: int, delay: float) -> None:
        """A release or a nack: through the delayed lane."""
        row = self._holding(place)
        if row is not None:
            row.lane, row.lease_until = delayed_lane(row.priority), 0.0
            row.due_at = row.free_since = self.now + delay

    def crash(self) -> None:
        """A consumer dies with what it holds: nobody settles it, and its leases expire."""
        self.held.clear()

    def tick(self, seconds: float) -> None:
        self.now += seconds


LANES = st.sampled_from([0, 0, 0, 5, 9])
PRODUCERS = st.integers(0, 2)
LIMITS = st.sampled_from([1, 1, 2, 3, 100])
COMMON = [
    st.tuples(st.just("begin"), PRODUCERS),
    st.tuples(st.just("draw"), PRODUCERS, LANES),
    st.tuples(st.just("commit"), PRODUCERS),
    st.tuples(st.just("roll_back"), PRODUCERS),
    st.tuples(st.just("send"), LANES),
    st.tuples(st.just("ack"), st.integers(0, 9)),
    st.tuples(st.just("give_back"), st.integers(0, 9), st.sampled_from([0.0, 0.5])),
]
COSTS = st.sampled_from([0.0, 0.0, 0.002, 0.02])


def burst(lane: int, limit: int, pause: float) -> list[tuple[Any, ...]]:
    """A queue with traffic: messages come and are taken, one by one or in batches, and none is left over."""
    return [("send", lane), ("claim", 0, limit, 0.0), ("tick", pause)] * 3


def histories(pauses: list[float], ticks: list[float], *more: Any) -> Any:
    """Single steps in any order, and bursts, without which marks would rarely move."""
    scenes = st.one_of(
        *(strategy.map(lambda step: [step]) for strategy in (*COMMON, *more)),
        st.sampled_from(ticks).map(lambda seconds: [("tick", seconds)]),
        st.builds(burst, LANES, LIMITS, st.sampled_from(pauses)),
    )
    return st.lists(scenes, max_size=30).map(lambda found: [step for scene in found for step in scene])


def duration(steps: list[tuple[Any, ...]]) -> float:
    return sum(step[1] for step in steps if step[0] == "tick")


ANY_TIME = histories(
    [0.02, 0.3, 0.7],
    [0.001, 0.02, 0.3, 0.9, 1.1, 2.5],
    st.tuples(st.just("claim"), st.integers(0, 1), LIMITS, COSTS),
    st.tuples(st.just("crash")),
)
#: Short enough that no mark moves by age alone and no lease expires.
SHORT_TIME = histories(
    [SETTLE, 0.02], [0.001, SETTLE, 0.02], st.tuples(st.just("claim"), st.integers(0, 1), LIMITS)
).filter(lambda steps: duration(steps) < LAG)


def run(kind: type[Marks], steps: list[tuple[Any, ...]], *, hides_nothing: bool = False) -> Table:
    """Play a history; raise `ForgottenError` where the promise is broken."""
    table = Table(kind)
    with mock.patch.object(module, "WORTH", 1):
        play(table, steps, hides_nothing=hides_nothing)
    return table


def play(table: Table, steps: list[tuple[Any, ...]], *, hides_nothing: bool) -> None:
    for name, *arguments in steps:
        getattr(table, name)(*arguments)
        if hides_nothing and (hidden := table.below_marks()):
            raise ForgottenError(f"marks hide {hidden}, which nobody was given")


THOROUGH = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


#: Each rescan is filled by a retry, and between the rescans younger messages are served: what came late would starve.
STARVED = [
    *[("draw", 0, 0), ("send", 0), ("claim", 0, 1, 0.0), ("tick", 2.5)],
    *[("send", 0), ("claim", 0, 1, 0.0), ("send", 0), ("claim", 0, 1, 0.0), ("commit", 0)],
]
for _ in range(3):
    STARVED += [("give_back", 0, 0.0), ("send", 0), ("tick", 1.1), ("claim", 0, 1, 0.0)]
    STARVED += [("send", 0), ("claim", 0, 1, 0.0)]


@THOROUGH
@given(ANY_TIME)
@example(STARVED)
def test_no_history_leaves_a_claimable_message_unclaimed_longer_than_the_rescan_interval(
    steps: list[tuple[Any, ...]],
) -> None:
    run(Marks, steps)


@THOROUGH
@given(SHORT_TIME)
@example(
    # Two come late; the batch that shows that nothing runs any more takes the first and has no room for the second.
    [
        *[("draw", 0, 0), ("draw", 1, 0), ("send", 0), ("claim", 0, 1)],
        *[("commit", 0), ("commit", 1), ("tick", 0.02), ("claim", 0, 1)],
    ]
)
@example(
    # The same, but the batch is filled by a message of another lane.
    [("draw", 0, 0), ("send", 0), ("claim", 0, 1), ("commit", 0), ("send", 9), ("tick", 0.02), ("claim", 0, 1)]
)
def test_a_message_that_is_committed_within_the_lag_is_never_hidden_by_a_mark(steps: list[tuple[Any, ...]]) -> None:
    run(Marks, steps, hides_nothing=True)


@THOROUGH
@given(ANY_TIME)
def test_marks_decide_only_when_a_message_is_claimed_and_never_whether(steps: list[tuple[Any, ...]]) -> None:
    """Whatever happened before, a consumer that goes on claiming is given everything, each message once a lease."""
    table = run(Marks, steps)
    for producer in list(table.open):
        table.commit(producer)
    table.crash()
    table.tick(LEASE + 0.5)
    expected = {row.number for row in table.rows.values()}

    given_out: list[int] = []
    for _ in range(3):
        while taken := table.claim(0, 2):
            given_out += [row.number for row in taken]
        table.tick(0.5)

    assert sorted(given_out) == sorted(expected)


class AdvancesAtOnce(Marks):
    """Takes whatever it was given for the mark, whoever has yet to commit below it."""

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        super().finish(seen, full=full)
        for lane, top in (seen.highest if seen else {}).items():
            if lane >= 0:
                self._marks[PLACES[lane]] = max(top, self._marks[PLACES[lane]])
        self._pending = deque()


class BelievesOldSnapshots(Marks):
    """Takes a claim for the mark at the next claim, whatever that one saw running."""

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        super().finish(seen._replace(oldest=2**62) if seen else None, full=full)


class BelievesThatNobodyWrites(Marks):
    """Takes whoever holds a mark back for a bystander."""

    def learn(self, oldest_writer: int) -> None:
        super().learn(2**62)


class NeverRescans(Marks):
    """Starts at its marks for ever."""

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        super().finish(seen, full=full)
        self._rescan_at, self._dry = float("inf"), False


class RescansTooSeldom(Marks):
    """Takes its time."""

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        before = self._rescan_at
        super().finish(seen, full=full)
        self._dry = False
        if self._rescan_at != before:
            self._rescan_at += 2 * RESCAN


class ForgetsARescanThatWasFull(Marks):
    """Takes a rescan for complete although its batch had no room for all that it found."""

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        super().finish(seen, full=full and not self._rescanning)


@pytest.mark.parametrize(
    ("mutant", "histories", "hides_nothing"),
    [
        (AdvancesAtOnce, SHORT_TIME, True),
        (BelievesOldSnapshots, SHORT_TIME, True),
        (BelievesThatNobodyWrites, SHORT_TIME, True),
        (NeverRescans, ANY_TIME, False),
        (RescansTooSeldom, ANY_TIME, False),
        (ForgetsARescanThatWasFull, ANY_TIME, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_model_catches_broken_marks(mutant: type[Marks], histories: Any, hides_nothing: bool) -> None:
    def is_caught(steps: list[tuple[Any, ...]]) -> bool:
        try:
            run(mutant, steps, hides_nothing=hides_nothing)
        except ForgottenError:
            return True
        return False

    quick = settings(
        max_examples=3_000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    try:
        find(histories, is_caught, settings=quick)
    except NoSuchExample:
        pytest.fail(f"no history shows that {mutant.__name__} is broken")


class TestWithoutStragglers:
    """Where nobody commits late, a claim starts near the head."""

    def test_marks_follow_the_claims_by_one_batch(self) -> None:
        table = Table(Marks, consumers=1)
        for _ in range(100):
            for _ in range(10):
                table.send(0)
            head = table.next_id
            table.claim(0, 10, 0.001)
            while table.held:
                table.ack(0)
            table.tick(0.02)

            assert head - table.consumers[0].mark(0) <= 21

    def test_marks_follow_within_the_lag_while_one_transaction_stays_open(self) -> None:
        table = Table(Marks, consumers=1)
        table.draw(0, 0)
        heads: list[tuple[float, int]] = []
        for _ in range(300):
            table.send(0)
            heads.append((table.now, table.next_id - 1))
            table.claim(0, 10, 0.001)
            table.tick(0.02)

        reached = table.consumers[0].mark(0)
        assert reached >= max(number for at, number in heads if at < table.now - LAG - 0.1)

    def test_marks_follow_at_once_while_a_transaction_stays_open_that_does_not_write_to_the_queue(self) -> None:
        table = Table(Marks, consumers=1)
        table.begin(0)
        behind: list[int] = []
        for _ in range(100):
            for _ in range(200):
                table.send(0)
            head = table.next_id
            table.claim(0, 1000, 0.001)
            table.tick(0.01)
            behind.append(head - table.consumers[0].mark(0))

        # 200 messages in 11 ms.
        assert max(behind[20:]) <= 200 * (2 * HELD / 0.011 + 3)

    def test_nobody_is_asked_for_writers_where_little_is_to_be_won(self) -> None:
        """A slow consumer would ask before each claim; what died in front of it costs it less than that."""
        table = Table(Marks, consumers=1)
        table.begin(0)
        asked = []
        for _ in range(100):
            table.send(0)
            asked.append(table.consumers[0].wants_writers())
            table.claim(0, 10, 0.001)
            table.tick(0.1)

        assert not any(asked)

    def test_an_idle_consumer_does_not_ask_for_writers(self) -> None:
        table = Table(Marks, consumers=1)
        table.begin(0)
        while not table.consumers[0].wants_writers():
            for _ in range(500):
                table.send(0)
            table.claim(0, 1000, 0.001)
            table.tick(0.02)
        table.claim(0, 10)

        asked = []
        for _ in range(10):
            table.tick(1.0)
            asked.append(table.consumers[0].wants_writers())
            table.claim(0, 10)
        assert not any(asked)

    def test_questions_for_writers_take_a_small_part_of_the_time(self) -> None:
        now = [0.0]
        marks = Marks(lambda: now[0])
        spent = 0.0
        for number in range(0, 200_000, 100):
            if marks.wants_writers():
                now[0] += 0.05
                spent += 0.05
                marks.learn(1)
            marks.start()
            now[0] += 0.01
            marks.finish(Seen({0: number}, 1, number), full=False)

        assert 0 < spent <= 1.1 * QUESTION_SHARE * now[0]

    def test_lanes_have_marks_of_their_own(self) -> None:
        table = Table(Marks, consumers=1)
        for lane in (0, 9, 9, 9):
            table.send(lane)
            table.claim(0, 10)
            table.tick(0.02)

        assert (table.consumers[0].mark(0), table.consumers[0].mark(9)) == (1, 3)

    def test_a_mark_goes_with_at_most_so_many_claims_in_waiting(self) -> None:
        table = Table(Marks, consumers=1)
        table.draw(0, 0)
        for _ in range(500):
            table.send(0)
            table.claim(0, 1)
            table.tick(0.001)

        assert len(table.consumers[0]._pending) <= module._PENDING

    def test_claims_that_are_merged_in_waiting_keep_their_lanes(self) -> None:
        now = [5.0]
        marks = Marks(lambda: now[0])
        for number in range(1, module._PENDING + 2):
            marks.start()
            marks.finish(Seen({9 if number == module._PENDING else 0: number}, 1, 2), full=False)
        now[0] += LAG
        marks.start()
        marks.finish(Seen({0: 1000}, 1, 2), full=False)

        assert (marks.mark(0), marks.mark(9)) == (module._PENDING + 1, module._PENDING)


class TestIdsWithoutANumber:
    """A transaction draws an id, and a moment later takes the number by which snapshots show it."""

    def claims(self, *steps: tuple[float, float, int, int, int], full: bool = False) -> Marks:
        """Claims of one message each: when they begin and end, the id, the oldest running transaction and the next."""
        now = [0.0]
        marks = Marks(lambda: now[0])
        for began, ended, number, oldest, newest in steps:
            now[0] = began
            marks.start()
            now[0] = ended
            marks.finish(Seen({0: number}, oldest, newest), full=full)
        return marks

    def test_one_that_gets_its_number_after_the_claim_holds_the_mark_back_until_it_has_ended(self) -> None:
        first, long_after = (0.0, 0.001, 10, 100, 100), (0.5, 0.501, 11, 100, 101)

        assert self.claims(first, long_after).mark(0) == 0
        assert self.claims(first, long_after, (0.6, 0.601, 12, 101, 102)).mark(0) == 10

    def test_a_claim_right_after_the_first_does_not_show_all_who_may_have_drawn_a_lower_id(self) -> None:
        first, right_after = (5.0, 5.001, 10, 100, 100), (5.002, 5.003, 11, 100, 100)
        # Now 100 runs, which drew its id before the first claim.
        later = (5.5, 5.501, 12, 100, 101)

        assert self.claims(first, right_after, later).mark(0) == 0

    def test_a_full_claim_has_read_its_lane_up_to_the_id_that_it_took_and_no_further(self) -> None:
        first, settled = (5.0, 5.001, 10, 100, 100), (5.5, 5.501)

        assert self.claims(first, (*settled, 10, 101, 101), full=True).mark(0) == 10
        assert self.claims(first, (*settled, 9, 101, 101), full=True).mark(0) == 0

    def test_every_lane_of_a_claim_must_have_been_read_again(self) -> None:
        now = [5.0]
        marks = Marks(lambda: now[0])
        for highest in ({9: 10, 0: 12}, {9: 11}):
            marks.start()
            marks.finish(Seen(highest, 100, 100), full=True)
            now[0] += 0.5

        # The second batch was full before lane 0.
        assert (marks.mark(9), marks.mark(0)) == (0, 0)

    def test_a_full_claim_has_read_all_lanes_before_the_last_that_it_took_from(self) -> None:
        now = [5.0]
        marks = Marks(lambda: now[0])
        for highest in ({0: 12}, {9: 11, 0: 13}):
            marks.start()
            marks.finish(Seen(highest, 100, 100), full=True)
            now[0] += 0.5

        assert marks.mark(0) == 12

    def test_a_snapshot_is_as_old_as_the_beginning_of_its_claim(self) -> None:
        """However late its answer came."""
        slow = (0.002, 0.5, 11, 101, 101)

        assert self.claims((0.0, 0.001, 10, 100, 100), slow).mark(0) == 0

    def test_where_nobody_runs_the_next_claim_is_enough(self) -> None:
        assert self.claims((0.0, 0.001, 10, 100, 100), (0.002 + SETTLE, 0.02, 11, 101, 101)).mark(0) == 10


class TestRescans:
    def marks(self) -> tuple[Marks, list[float]]:
        now = [1000.0]
        return Marks(clock=lambda: now[0]), now

    def claim(self, marks: Marks, now: list[float], cost: float, seen: Seen | None) -> bool:
        """Claim once, and tell whether it read everything from the start."""
        rescans = max(starts(marks.start()).values()) <= 0
        now[0] += cost
        marks.finish(seen, full=False)
        return rescans

    def busy(self, number: int) -> Seen:
        return Seen({0: number}, number, number)

    def count(self, cost: float, pause: float, seconds: float) -> float:
        """The part of the time that rescans take of a busy consumer."""
        marks, now = self.marks()
        self.claim(marks, now, 0.0, self.busy(1))
        now[0] += 5
        self.claim(marks, now, 0.0, self.busy(2))
        spent, number, end = 0.0, 3, now[0] + seconds
        while now[0] < end:
            now[0] += pause
            spent += cost if self.claim(marks, now, cost, self.busy(number)) else 0.0
            number += 1
        return spent / seconds

    @pytest.mark.parametrize("cost", [0.0001, 0.01, 0.1, 1.0])
    def test_they_take_a_small_part_of_the_time_however_dear_they_are(self, cost: float) -> None:
        assert self.count(cost, 0.01, 500) <= 1.5 * RESCAN_SHARE

    def test_a_claim_that_found_nothing_is_followed_by_one_where_that_is_cheap(self) -> None:
        marks, now = self.marks()
        self.claim(marks, now, 0.0001, self.busy(5))
        now[0] += 0.1
        self.claim(marks, now, 0.0001, self.busy(6))
        self.claim(marks, now, 0.0001, None)

        assert self.claim(marks, now, 0.0001, None)

    def test_a_claim_that_found_nothing_is_not_followed_by_one_where_that_is_dear(self) -> None:
        marks, now = self.marks()
        self.claim(marks, now, 0.05, self.busy(5))
        now[0] += 0.1
        self.claim(marks, now, 0.0, self.busy(6))
        self.claim(marks, now, 0.0, None)

        assert not self.claim(marks, now, 0.0, None)

    def test_after_one_the_next_claim_starts_at_the_marks_again(self) -> None:
        """Although none of them has moved."""
        marks, now = self.marks()
        for number in (5, 6):
            self.claim(marks, now, 0.0, self.busy(number))
            now[0] += 5
        assert marks.mark(0) == 5
        assert self.claim(marks, now, 0.1, None)

        assert starts(marks.start())[0] == 5

    def test_one_whose_batches_are_full_reads_on_where_it_stopped(self) -> None:
        marks, now = self.marks()
        for number in (100, 200):
            self.claim(marks, now, 0.0, self.busy(number))
            now[0] += 5
        for number, place in ((40, 41), (60, 61), (250, 200)):
            marks.start()
            marks.finish(self.busy(number), full=True)

            assert starts(marks.start())[0] == place

    def test_a_claim_that_never_ends_leaves_the_marks_usable(self) -> None:
        marks, now = self.marks()
        marks.start()

        assert self.claim(marks, now, 0.0, self.busy(5))


def test_the_highest_id_is_taken_per_lane() -> None:
    assert highest_ids([(0, 3), (9, 1), (0, 7), (0, 5)]) == {0: 7, 9: 1}
