"""What a process that waits does next: marks, probes, rings, renewals; and it costs next to nothing when idle."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqrs_core.doorbell import QUIET
from pgqrs_core.interest import CALM, QUICK, SPELL, STORM
from pgqrs_core.testing.by_hand import make_queue
from pgqrs_core.waiter import Waiter
from pgqrs_core.watch import (
    GROWTH,
    LINGER,
    MARK_SECONDS,
    PASS_ON,
    POLL,
    RENEW,
    SELDOM,
    YOUNG,
    Agenda,
    Watch,
)

if TYPE_CHECKING:
    from pgqrs_core.messages import Queue

A, B = make_queue("a", 1), make_queue("b", 2)


class Desk:
    """A watch with a clock of its own, and the connection's part played by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = Watch(clock=lambda: self.now)
        self.statements: list[tuple[float, str, list[int]]] = []
        #: How many other processes sleep on each queue, and how many of them have lower numbers.
        self.others = 0
        self.place = 0
        #: The queues that hold something, what comes first there, for how long it has, and when the next one is due.
        self.full: set[int] = set()
        self.first = 1
        self.age = 1.0
        self.due: dict[int, float] = {}
        #: What a probe takes, in seconds.
        self.cost = 0.0

    def step(self) -> Agenda:
        """Do what is to be done now, as the wake-up connection does."""
        agenda = self.watch.agenda()
        if agenda.unmark:
            self.statements.append((self.now, "unmark", agenda.unmark))
        for number, count in agenda.pass_on.items():
            self.statements.append((self.now, "pass on", [number] * count))
            self.watch.passed_on(number, min(count, self.others))
        if agenda.mark:
            self.statements.append((self.now, "mark", agenda.mark))
            self.watch.marked((number, self.others, self.place) for number in agenda.mark)
        if agenda.probe:
            self.statements.append((self.now, "probe", [queue.id for queue in agenda.probe]))
            rows = [(queue.id, *self._found(queue)) for queue in agenda.probe]
            self.watch.probed(agenda.probe, rows, self.cost)
        return agenda

    def _found(self, queue: Queue) -> tuple[Any, ...]:
        full = queue.id in self.full
        return full, self._due_in(queue), self.first if full else None, self.age if full else None

    def _due_in(self, queue: Queue) -> float | None:
        left = self.due.get(queue.id, self.now) - self.now
        return left if left > 0 else None

    def run(self, seconds: float) -> None:
        """Go on for a while, sleeping as long as the agenda says."""
        end = self.now + seconds
        while True:
            agenda = self.step()
            if agenda.works:
                continue
            if self.now + agenda.sleep >= end:
                break
            # A real sleep ends a little late.
            self.now += agenda.sleep + 0.000_1
        self.now = end

    def settle(self, queue: Queue) -> int:
        """Wait for a queue as a consumer does that found nothing, twice; return what it outwaits."""
        generation = self.watch.join(queue)
        while generation is None:
            self.step()
            self.watch.leave(queue)
            generation = self.watch.join(queue)
        return generation

    def of(self, kind: str) -> list[tuple[float, str, list[int]]]:
        return [item for item in self.statements if item[1] == kind]


@pytest.fixture
def desk() -> Desk:
    return Desk()


class TestMarking:
    def test_the_first_to_wait_is_to_look_once_more_when_the_queue_is_marked(self, desk: Desk) -> None:
        assert desk.watch.join(A) is None
        assert not desk.watch.is_marked(A)

        assert desk.step().mark == [A.id]

        assert desk.watch.is_marked(A)

    def test_who_joins_a_marked_queue_may_sleep_at_once(self, desk: Desk) -> None:
        desk.settle(A)

        assert desk.watch.join(A) is not None

    def test_without_notifications_nothing_is_marked(self, desk: Desk) -> None:
        desk.watch.listening = False

        assert desk.watch.join(A) is not None
        desk.run(5)

        assert desk.of("mark") == []
        assert desk.watch.is_marked(A)

    def test_a_mark_is_kept_while_the_consumer_comes_back_soon(self, desk: Desk) -> None:
        desk.settle(A)
        for _ in range(20):
            desk.watch.leave(A)
            desk.run(LINGER * 0.9)
            assert desk.watch.join(A) is not None
            desk.run(0.1)

        assert len(desk.of("mark")) == 1
        assert desk.of("unmark") == []

    def test_whoever_comes_back_for_a_second_look_wakes_a_connection_that_sleeps_beyond_it(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.rang(A.id)
        desk.watch.leave(A)
        assert desk.step().sleep > QUICK

        waiter = Waiter(desk.watch, [A])

        assert not waiter.unmarked
        assert waiter.urgent
        assert desk.step().sleep <= QUICK

    def test_whoever_comes_back_when_no_look_is_due_lets_the_connection_sleep(self, desk: Desk) -> None:
        desk.settle(A)
        desk.run(5)
        desk.step()
        desk.watch.leave(A)
        waiter = Waiter(desk.watch, [A])

        assert not waiter.urgent

    def test_a_queue_is_unmarked_once_nobody_has_waited_for_a_while(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.leave(A)

        desk.run(LINGER + 0.1)

        assert [item[2] for item in desk.of("unmark")] == [[A.id]]
        assert desk.watch.marks() == []

    def test_one_of_two_who_leaves_takes_no_mark_with_him(self, desk: Desk) -> None:
        desk.settle(A)
        desk.settle(A)
        desk.watch.leave(A)

        desk.run(5)

        assert desk.watch.marks() == [A.id]

    def test_a_mark_is_renewed_long_before_it_runs_out(self, desk: Desk) -> None:
        desk.settle(A)

        desk.run(10 * MARK_SECONDS)

        times = [item[0] for item in desk.of("mark")]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert max(gaps) <= RENEW + 2 * POLL < MARK_SECONDS / 1.5
        assert min(gaps) >= RENEW

    def test_a_mark_is_noted_only_once_it_is_in_the_database(self, desk: Desk) -> None:
        desk.watch.join(A)

        desk.watch.agenda()

        assert not desk.watch.is_marked(A)

    def test_a_mark_for_a_queue_that_was_given_up_meanwhile_does_no_harm(self, desk: Desk) -> None:
        desk.watch.marked([(99, 0, 0)])

        assert desk.watch.marks() == []


class TestNews:
    def test_nothing_new_is_no_news(self, desk: Desk) -> None:
        generation = desk.settle(A)

        assert not desk.watch.has_news(A, generation)

    def test_a_ring_is_news(self, desk: Desk) -> None:
        generation = desk.settle(A)

        desk.watch.rang(A.id)

        assert desk.watch.has_news(A, generation)

    def test_a_ring_is_news_for_its_queue_only(self, desk: Desk) -> None:
        generation = desk.settle(B)
        desk.settle(A)

        desk.watch.rang(A.id)

        assert not desk.watch.has_news(B, generation)

    @pytest.mark.parametrize("number", [0, -1, 2**70])
    def test_a_ring_for_a_queue_that_nobody_watches_is_nothing(self, desk: Desk, number: int) -> None:
        generation = desk.settle(A)

        desk.watch.rang(number)

        assert not desk.watch.has_news(A, generation)

    def test_news_between_a_claim_and_the_wait_that_follows_is_not_slept_through(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.leave(A)  # It claims, finds nothing ...

        desk.watch.rang(A.id)  # ... and only now a message comes.

        assert desk.watch.join(A) is None

    def test_news_is_told_once(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.leave(A)
        desk.watch.rang(A.id)
        desk.watch.join(A)
        desk.watch.leave(A)

        assert desk.watch.join(A) is not None

    def test_a_probe_that_finds_something_is_news(self, desk: Desk) -> None:
        generation = desk.settle(A)
        desk.full.add(A.id)

        desk.run(2 * POLL)

        assert desk.watch.has_news(A, generation)

    def test_a_queue_that_the_probe_does_not_answer_for_counts_as_full(self, desk: Desk) -> None:
        generation = desk.settle(A)

        desk.watch.probed([A], [], 0.0)

        assert desk.watch.has_news(A, generation)

    def test_a_delayed_message_is_news_when_it_is_due(self, desk: Desk) -> None:
        generation = desk.settle(A)
        desk.due[A.id] = desk.now + 0.5
        desk.run(0.4)
        assert not desk.watch.has_news(A, generation)

        desk.run(0.12)

        assert desk.watch.has_news(A, generation)

    def test_sleep_ends_when_the_next_delayed_message_is_due(self, desk: Desk) -> None:
        desk.settle(A)
        desk.run(30)
        desk.watch.probed([A], [(A.id, False, 0.25, None, None)], 0.0)

        assert desk.watch.agenda().sleep == pytest.approx(0.25)

    def test_a_lost_connection_wakes_everybody_to_look_for_himself(self, desk: Desk) -> None:
        generations = [(queue, desk.settle(queue)) for queue in (A, B)]

        desk.watch.lost()

        assert all(desk.watch.has_news(queue, generation) for queue, generation in generations)
        assert not desk.watch.is_marked(A)

    def test_marks_are_made_anew_after_a_lost_connection(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.lost()

        desk.run(0.1)

        assert len(desk.of("mark")) == 2


class TestStorm:
    def storm(self, desk: Desk) -> None:
        """Let several producers ring at a time."""
        desk.settle(A)
        for _ in range(STORM):
            desk.watch.rang(A.id)
            desk.run(SPELL / STORM / 2)
        desk.step()

    def test_so_many_notifications_take_the_mark_away(self, desk: Desk) -> None:
        self.storm(desk)

        assert desk.watch.marks() == []
        assert [item[2] for item in desk.of("unmark")] == [[A.id]]

    def test_they_take_it_away_while_the_consumer_is_too_busy_to_wait(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.leave(A)

        for _ in range(STORM):
            desk.watch.rang(A.id)
        desk.run(LINGER / 2)

        assert desk.watch.marks() == []
        assert [item[2] for item in desk.of("unmark")] == [[A.id]]

    def test_one_producer_that_never_stops_is_no_storm(self, desk: Desk) -> None:
        desk.settle(A)
        for _ in range(1000):
            desk.watch.rang(A.id)
            desk.run(QUIET)

        assert desk.watch.marks() == [A.id]

    def test_a_consumer_that_comes_in_a_storm_sleeps_until_the_next_look(self, desk: Desk) -> None:
        self.storm(desk)
        desk.watch.leave(A)

        waiter = Waiter(desk.watch, [A])

        assert not waiter.is_over()
        desk.full.add(A.id)
        desk.run(2 * QUICK)
        assert waiter.is_over()

    def test_in_a_storm_it_looks_every_few_milliseconds_as_long_as_something_is_found(self, desk: Desk) -> None:
        self.storm(desk)
        desk.full.add(A.id)
        desk.statements.clear()

        desk.run(2)

        times = [item[0] for item in desk.of("probe")]
        assert max(later - earlier for earlier, later in pairwise(times)) <= 2 * QUICK
        assert desk.of("mark") == []

    def test_a_storm_is_over_when_some_looks_in_a_row_find_nothing(self, desk: Desk) -> None:
        self.storm(desk)
        desk.statements.clear()

        desk.run(2 * CALM * QUICK)

        kinds = [kind for _, kind, _ in desk.statements]
        assert kinds[:CALM].count("probe") >= CALM - 1
        assert desk.watch.marks() == [A.id]

    def test_what_comes_while_the_mark_is_on_its_way_back_is_found_by_a_look_soon_after_it(self, desk: Desk) -> None:
        self.storm(desk)
        desk.run(2 * CALM * QUICK)
        marked = desk.of("mark")[-1][0]

        assert any(marked <= moment <= marked + 2 * QUICK for moment, _, _ in desk.of("probe"))

    def test_a_lost_connection_ends_a_storm(self, desk: Desk) -> None:
        self.storm(desk)

        desk.watch.lost()
        desk.run(0.1)

        assert desk.watch.marks() == [A.id]


class TestProbing:
    def gaps(self, desk: Desk) -> list[float]:
        times = [item[0] for item in desk.of("probe")]
        return [later - earlier for earlier, later in pairwise(times)]

    def test_it_looks_soon_after_a_mark_then_at_growing_intervals_up_to_the_poll(self, desk: Desk) -> None:
        desk.settle(A)
        desk.statements.clear()
        desk.run(60)

        gaps = self.gaps(desk)
        assert desk.of("probe")[0][0] <= 1000.0 + 2 * QUICK
        assert gaps[0] <= 1.2 * GROWTH * QUICK
        assert all(later <= GROWTH * 1.2 * earlier + 0.001 for earlier, later in pairwise(gaps))
        assert all(POLL <= gap <= 1.11 * POLL for gap in gaps[-20:])

    def test_a_ring_makes_it_look_quickly_again_for_what_rang_no_bell_of_its_own(self, desk: Desk) -> None:
        desk.settle(A)
        desk.run(30)
        desk.watch.rang(A.id)
        desk.statements.clear()

        desk.run(0.1)

        assert desk.of("probe")[0][0] <= 1030.0 + 2 * QUICK
        assert len(desk.of("probe")) == 2

    def test_rings_in_quick_succession_do_not_put_the_look_off(self, desk: Desk) -> None:
        desk.settle(A)
        desk.run(30)
        desk.statements.clear()
        for _ in range(20):
            desk.watch.rang(A.id)
            desk.run(QUICK / 2)

        assert len(desk.of("probe")) >= 5

    def test_a_dear_probe_comes_seldom(self, desk: Desk) -> None:
        desk.settle(A)

        desk.watch.probed([A], [(A.id, False, None, None, None)], 1.0)

        desk.statements.clear()
        desk.run(45)
        assert desk.of("probe") == []

    def test_queues_take_turns_together_soon_even_where_each_probe_is_dear(self, desk: Desk) -> None:
        desk.cost = 0.02
        for number in range(1, 6):
            desk.settle(make_queue(f"q{number}", number))
            desk.run(0.2)
        desk.run(4 * POLL)
        desk.statements.clear()

        desk.run(6 * POLL)

        assert len(desk.of("probe")) <= 7

    def test_nobody_probes_for_those_who_left(self, desk: Desk) -> None:
        desk.settle(A)
        desk.watch.leave(A)
        desk.statements.clear()

        desk.run(30)

        assert desk.of("probe") == []

    @pytest.mark.parametrize("queues", [1, 10, 100])
    def test_idle_queues_cost_at_most_one_statement_a_second_however_many_they_are(
        self, desk: Desk, queues: int
    ) -> None:
        for number in range(queues):
            desk.settle(make_queue(f"q{number}", number))
            desk.run(0.037)
        desk.run(10)
        desk.statements.clear()

        desk.run(60)

        renewals = desk.of("mark")
        assert len(desk.statements) - len(renewals) <= 60
        assert len(renewals) <= 5

    def test_idle_queues_are_each_probed_at_least_once_in_two_polls(self, desk: Desk) -> None:
        for number in range(1, 11):
            desk.settle(make_queue(f"q{number}", number))
            desk.run(0.037)
        desk.run(10)
        desk.statements.clear()

        desk.run(60)

        for number in range(1, 11):
            times = [at for at, _, ids in desk.of("probe") if number in ids]
            assert max(later - earlier for earlier, later in pairwise(times)) <= 2 * POLL

    def test_silence_is_noticed(self, desk: Desk) -> None:
        desk.settle(A)
        assert not desk.watch.is_stale()

        desk.now += 4 * POLL

        assert desk.watch.is_stale()

    def test_a_probe_shows_that_the_connection_is_alive(self, desk: Desk) -> None:
        desk.settle(A)

        desk.run(20)

        assert not desk.watch.is_stale()


class TestSharing:
    """Several processes sleep on the same queues."""

    def settle(self, desk: Desk, others: int, place: int) -> int:
        desk.others, desk.place = others, place
        generation = desk.settle(A)
        desk.run(2 * POLL)
        desk.statements.clear()
        return generation

    @pytest.mark.parametrize("place", [0, 1])
    def test_the_first_two_poll(self, desk: Desk, place: int) -> None:
        self.settle(desk, 63, place)
        desk.run(60)

        assert 60 / POLL / 1.1 - 1 <= len(desk.of("probe")) <= 60 / POLL
        assert len(desk.statements) <= 60

    @pytest.mark.parametrize(("others", "seconds"), [(2, 1.5 * POLL), (9, 5 * POLL), (63, 32 * POLL), (1000, RENEW)])
    def test_the_others_only_renew_their_marks_more_often_where_they_are_few(
        self, desk: Desk, others: int, seconds: float
    ) -> None:
        self.settle(desk, others, 2)
        desk.run(10.5 * seconds)

        assert desk.of("probe") == []
        assert 9 <= len(desk.of("mark")) <= 11

    def test_what_no_row_announces_is_looked_at_when_the_connection_is_back(self, desk: Desk) -> None:
        """Such as results and ephemeral queues: what came before the connection listened again was told to no one."""
        desk.watch.join(make_queue("", -5))
        desk.run(60)
        before = len(desk.of("probe"))

        desk.watch.lost()
        desk.run(0.1)

        assert len(desk.of("probe")) > before

    def test_who_is_told_that_another_has_gone_polls_if_it_is_its_turn_now(self, desk: Desk) -> None:
        self.settle(desk, 63, 2)
        desk.place = 1
        desk.watch.renew(A.id)
        desk.run(60)

        assert len(desk.of("probe")) >= 60 / POLL / 1.1 - 1

    def test_whoever_polls_no_more_for_others_says_so(self, desk: Desk) -> None:
        self.settle(desk, 63, 1)
        desk.watch.leave(A)
        desk.run(LINGER)
        agenda = desk.step()

        assert (agenda.unmark, agenda.polled) == ([A.id], True)

    def test_after_a_notification_it_polls_a_few_times_and_no_more(self, desk: Desk) -> None:
        self.settle(desk, 63, 2)
        desk.watch.rang(A.id)
        desk.run(25)

        assert 2 <= len(desk.of("probe")) <= 4

    def test_a_delayed_message_is_served_by_the_first(self, desk: Desk) -> None:
        generation = self.settle(desk, 63, 0)
        desk.due[A.id] = desk.now + 2.0
        desk.run(2.1)

        assert desk.watch.has_news(A, generation)

    @pytest.mark.parametrize("taken", [True, False])
    def test_the_second_looks_whether_the_first_served_it(self, desk: Desk, taken: bool) -> None:
        generation = self.settle(desk, 63, 1)
        due = desk.due[A.id] = desk.now + 3.0
        desk.run(2.999)
        if not taken:
            desk.full.add(A.id)
        desk.run(0.001 + 3 * YOUNG)

        assert [at for at, _, _ in desk.of("probe") if due <= at]
        assert desk.watch.has_news(A, generation) is not taken

    def test_a_message_that_has_just_come_is_left_to_whoever_was_notified(self, desk: Desk) -> None:
        generation = self.settle(desk, 63, 0)
        desk.full.add(A.id)
        desk.age = 0.002
        desk.watch.probed([A], [(A.id, True, None, 1, 0.002)], 0.0)
        assert not desk.watch.has_news(A, generation)

        desk.age = YOUNG
        desk.run(QUICK + 0.001)

        assert desk.watch.has_news(A, generation)

    def test_alone_it_takes_also_what_has_just_come(self, desk: Desk) -> None:
        generation = self.settle(desk, 0, 0)

        desk.watch.probed([A], [(A.id, True, None, 1, 0.002)], 0.0)

        assert desk.watch.has_news(A, generation)


class TestPassingOn:
    """What a process has no time for."""

    def busy(self, desk: Desk, others: int) -> None:
        desk.others, desk.place = others, 2
        desk.settle(A)
        desk.run(2 * POLL)
        desk.watch.rang(A.id)
        desk.watch.leave(A)
        desk.statements.clear()

    def test_a_notification_of_a_busy_process_is_passed_on_at_once(self, desk: Desk) -> None:
        self.busy(desk, 7)
        desk.watch.rang(A.id)

        assert desk.step().pass_on == {A.id: 1}
        assert desk.watch.join(A) is not None

    def test_once_for_each_time_of_work(self, desk: Desk) -> None:
        self.busy(desk, 7)
        for _ in range(10):
            desk.watch.rang(A.id)
            desk.step()

        assert len(desk.of("pass on")) == 1
        assert desk.watch.join(A) is None

    def test_where_nobody_else_sleeps_the_process_looks_itself_when_it_comes_back(self, desk: Desk) -> None:
        self.busy(desk, 7)
        desk.others = 0
        desk.watch.rang(A.id)
        desk.step()

        assert desk.watch.join(A) is None
        desk.watch.leave(A)
        desk.watch.rang(A.id)
        assert desk.step().pass_on == {}

    def test_what_stays_first_in_the_queue_is_passed_on(self, desk: Desk) -> None:
        self.busy(desk, 7)
        desk.full.add(A.id)

        desk.run(LINGER / 2)

        assert desk.of("pass on")[0][2] == [A.id] * PASS_ON
        assert desk.of("pass on")[0][0] <= desk.now - LINGER / 2 + 4 * QUICK

    def test_while_others_take_what_is_there_nothing_is_passed_on(self, desk: Desk) -> None:
        self.busy(desk, 7)
        desk.full.add(A.id)
        for number in range(200):
            desk.first = number
            desk.run(0.001)

        assert desk.of("pass on") == []

    def test_a_process_alone_asks_nothing_while_it_is_busy(self, desk: Desk) -> None:
        self.busy(desk, 0)
        desk.full.add(A.id)
        desk.watch.rang(A.id)
        desk.run(LINGER / 2)

        assert desk.statements == []


class TestQuiet:
    """Whether a consumer that took all there was may sleep without another claim."""

    def test_so_it_may_while_nothing_has_happened(self, desk: Desk) -> None:
        desk.settle(A)
        generation = desk.watch.leave(A)
        desk.run(LINGER / 2)

        assert desk.watch.is_quiet(A, generation)

    @pytest.mark.parametrize("what", ["rang", "lost", "left", "another", "never"])
    def test_otherwise_it_claims(self, desk: Desk, what: str) -> None:
        desk.settle(A)
        generation: int | None = desk.watch.leave(A)
        if what == "rang":
            desk.watch.rang(A.id)
        elif what == "lost":
            desk.watch.lost()
        elif what == "left":
            desk.run(2 * LINGER)
        elif what == "another":
            desk.watch.join(A)
            desk.watch.rang(A.id)
        else:
            generation = None

        assert not desk.watch.is_quiet(A, generation)


def test_a_number_of_an_adapter_is_polled_seldom(desk: Desk) -> None:
    number = make_queue("", -5)
    desk.settle(number)
    desk.run(1)
    desk.statements.clear()
    desk.run(10 * SELDOM)

    assert 8 <= len(desk.statements) <= 11


def test_without_notifications_a_number_of_an_adapter_is_polled_as_a_queue_is(desk: Desk) -> None:
    desk.watch.listening = False
    desk.settle(make_queue("", -5))
    desk.run(60)

    assert len(desk.of("probe")) >= 50


class TestWaiters:
    """One waiter on several queues."""

    def test_it_looks_once_more_when_all_its_queues_are_marked(self, desk: Desk) -> None:
        desk.settle(A)
        waiter = Waiter(desk.watch, [A, B])
        assert not waiter.is_over()

        desk.step()

        assert waiter.is_over()

    def test_it_is_told_to_look_where_it_had_not_been_marked(self, desk: Desk) -> None:
        desk.settle(A)
        waiter = Waiter(desk.watch, [A, B])
        desk.step()

        assert waiter.where() == [B]

    def test_it_sleeps_until_there_is_news_of_one_and_looks_there(self, desk: Desk) -> None:
        for queue in (A, B):
            desk.settle(queue)
        waiter = Waiter(desk.watch, [A, B])
        assert not waiter.is_over()

        desk.watch.rang(B.id)

        assert waiter.is_over()
        assert waiter.where() == [B]

    def test_it_leaves_all_its_queues(self, desk: Desk) -> None:
        waiter = Waiter(desk.watch, [A, B])
        desk.run(0.1)
        waiter.leave()

        desk.run(LINGER + 0.1)

        assert desk.watch.marks() == []

    def test_a_lost_connection_ends_the_sleep(self, desk: Desk) -> None:
        desk.settle(A)
        waiter = Waiter(desk.watch, [A])

        desk.watch.lost()

        assert waiter.is_over()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["arrive", "ring", "take", "join", "leave", "lose"]), st.sampled_from([A, B])),
        st.tuples(st.just("run"), st.sampled_from([0.0, 0.003, 0.02, 0.4, 1.3])),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_whoever_waits_for_a_queue_that_holds_something_is_told_within_two_polls(
    actions: list[tuple[str, Any]],
) -> None:
    """Whatever is rung, lost, joined and left before: the probes see to it."""
    desk = Desk()
    waiting: dict[int, list[int | None]] = {A.id: [], B.id: []}
    for name, value in actions:
        if name == "run":
            desk.run(value)
        elif name == "arrive":
            desk.full.add(value.id)
        elif name == "take":
            desk.full.discard(value.id)
        elif name == "ring":
            desk.watch.rang(value.id)
        elif name == "lose":
            desk.watch.lost()
        elif name == "join":
            waiting[value.id].append(desk.watch.join(value))
        elif waiting[value.id]:
            waiting[value.id].pop()
            desk.watch.leave(value)

    generation = desk.settle(A)
    desk.full.add(A.id)
    desk.run(2 * POLL)

    assert desk.watch.has_news(A, generation)


@settings(max_examples=100, deadline=None)
@given(ACTIONS)
def test_the_agenda_never_asks_to_sleep_longer_than_a_mark_may_wait(actions: list[tuple[str, Any]]) -> None:
    desk = Desk()
    desk.settle(A)
    for name, value in actions:
        if name == "run":
            desk.run(value)
        elif name == "ring":
            desk.watch.rang(value.id)
        elif name == "lose":
            desk.watch.lost()
        assert 0 <= desk.watch.agenda().sleep <= RENEW + 1e-9
