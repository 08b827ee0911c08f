"""A subscription tells a sleeper once that there is news, and says where."""

from __future__ import annotations

import threading

from pgqrs_core.subscriptions import Subscription
from pgqrs_core.testing.by_hand import make_queue
from pgqrs_core.watch import POLL, Watch

A, B, MAIL = make_queue("a", 1), make_queue("b", 2), make_queue("mail", -7)


class FakeWakeups:
    """The wake-ups' side of it, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = Watch(clock=lambda: self.now)
        self.lock = threading.Condition()
        self.subscriptions: set[Subscription] = set()
        self.alerts = 0

    def serve(self, subscription: Subscription, *, urgent: bool) -> None:
        self.subscriptions.add(subscription)

    def alert(self) -> None:
        self.alerts += 1

    def tell(self) -> None:
        for subscription in self.subscriptions:
            subscription.tell()


def at_rest(wakeups: FakeWakeups, *queues: object) -> Subscription:
    """Return a subscription that has looked once and rests."""
    subscription = Subscription(wakeups, wakeups.alert)  # type: ignore[arg-type]
    subscription.rest(queues)  # type: ignore[arg-type]
    wakeups.watch.marked([(queue.id, 0, 0) for queue in queues if queue.id > 0])  # type: ignore[attr-defined]
    wakeups.tell()
    subscription.rise()
    subscription.rest(queues)  # type: ignore[arg-type]
    wakeups.alerts = 0
    return subscription


def test_the_first_rest_ends_at_once_for_a_last_look() -> None:
    wakeups = FakeWakeups()
    subscription = Subscription(wakeups, wakeups.alert)  # type: ignore[arg-type]
    subscription.rest([A, MAIL])
    assert wakeups.alerts == 0
    wakeups.watch.marked([(1, 0, 0)])
    wakeups.tell()
    assert wakeups.alerts == 1
    assert list(subscription.rise()) == [A, MAIL]


def test_a_ring_alerts_once_and_says_where() -> None:
    wakeups = FakeWakeups()
    subscription = at_rest(wakeups, A, B, MAIL)
    wakeups.watch.rang(2)
    wakeups.watch.rang(-7)
    wakeups.tell()
    wakeups.tell()
    assert wakeups.alerts == 1
    assert list(subscription.rise()) == [B, MAIL]
    assert list(subscription.rise()) == []


def test_what_rings_between_two_rests_ends_the_second_at_once() -> None:
    wakeups = FakeWakeups()
    subscription = at_rest(wakeups, A, MAIL)
    subscription.rise()
    wakeups.watch.rang(-7)
    subscription.rest([A, MAIL])
    assert wakeups.alerts == 1
    assert list(subscription.rise()) == [MAIL]


def test_numbers_below_one_are_neither_marked_nor_looked_at_twice() -> None:
    wakeups = FakeWakeups()
    at_rest(wakeups, MAIL)
    assert wakeups.watch.agenda().mark == []
    wakeups.now += 10 * POLL
    agenda = wakeups.watch.agenda()
    wakeups.watch.probed(agenda.probe, [], 0.0)
    wakeups.now += 10 * POLL
    wakeups.watch.probed(wakeups.watch.agenda().probe, [(-7, False, None, None, None)], 0.0)
    wakeups.watch.rang(-7)
    assert wakeups.watch.agenda().probe == []


def test_a_connection_that_hangs_sends_everybody_to_look_everywhere() -> None:
    wakeups = FakeWakeups()
    subscription = at_rest(wakeups, A, B)
    assert not subscription.is_over()
    wakeups.now += 4 * POLL
    assert subscription.is_over()
    assert list(subscription.rise()) == [A, B]


def test_a_closed_subscription_is_told_nothing() -> None:
    wakeups = FakeWakeups()
    subscription = at_rest(wakeups, A)
    subscription.close()
    wakeups.watch.rang(1)
    wakeups.tell()
    assert wakeups.alerts == 0
    assert not subscription.is_over()
