"""Many processes sleep on one queue: a message wakes one of them, and what nobody was told of is found by few."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from harness import AsyncHarness, Harness, until

import pgqrs_core.interest
import pgqrs_core.watch
from pgqrs_core.effects import Op, Wait
from pgqrs_core.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgqrs_core.messages import Queue

SIZE = 4
POLLERS = pgqrs_core.watch.POLLERS
#: Seconds for which a sleeper waits at a stretch: in between it can be closed.
SLICE = 2.0

DEAD = """
insert into pgqrs.waiters select q.queue_id, n, now() + interval '1 minute'
from pgqrs.queues q, generate_series(1, 100) n
"""


def wait_once(queue: Queue, marks: Marks) -> Op[float]:
    return (yield Wait(queue, SLICE, marks))


class Sleeper:
    """An engine with a consumer that waits, as a process has it."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.woken = 0
        self._marks = Marks()
        self._queue = harness.queue()
        self._thread: threading.Thread | None = None
        self._known: int | None = None
        self._closed = False

    def sleep(self) -> None:
        """Wait, until there is news."""
        self._begin(self._wait)

    def work(self) -> None:
        """Do something else until the end."""
        self._begin(self._work)

    def _begin(self, what: Callable[[], object]) -> None:
        if self._thread is not None:
            self._thread.join(20)
        self._thread = threading.Thread(target=what, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        while not self._closed:
            self.harness.run(wait_once, self._queue, self._marks)
            known, self._known = self._known, self._marks.generation
            # The first time is over as soon as the queue is marked.
            if known is not None and known != self._known:
                self.woken += 1
                return

    def _work(self) -> None:
        # An event loop that does not run passes nothing on.
        while isinstance(self.harness, AsyncHarness) and not self._closed:
            self.harness.do(asyncio.sleep, 0.2)

    @property
    def number(self) -> int:
        return int(self.harness.engine.wakeups._consumer)

    @property
    def is_asleep(self) -> bool:
        watch = self.harness.engine.wakeups.watch
        return bool(self._known is not None and watch.marks() and watch.watched)

    def close(self) -> None:
        """End the thread and the engine."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(20)
        self.harness.close()


@pytest.fixture
def only_notifications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing but notifications to wake anybody, and marks that stay."""
    for module, name in ((pgqrs_core.interest, "QUICK"), (pgqrs_core.watch, "QUICK"), (pgqrs_core.watch, "POLL")):
        monkeypatch.setattr(module, name, 60.0)
    monkeypatch.setattr("pgqrs_core.wakeups.POLL", 60.0)
    monkeypatch.setattr(pgqrs_core.watch, "LINGER", 60.0)


@pytest.fixture
def herd(harness: Harness, open_harness: Callable[..., Harness]) -> Iterator[list[Sleeper]]:
    """Some that sleep."""
    sleepers = [Sleeper(open_harness()) for _ in range(SIZE)]
    try:
        for sleeper in sleepers:
            sleeper.sleep()
        for sleeper in sleepers:
            until(lambda sleeper=sleeper: sleeper.is_asleep, "it sleeps")
        yield sleepers
    finally:
        for sleeper in sleepers:
            sleeper.close()


def awake(herd: list[Sleeper]) -> int:
    return sum(sleeper.woken for sleeper in herd)


def figures(herd: list[Sleeper]) -> list[Any]:
    return [sleeper.harness.engine.figures() for sleeper in herd]


@pytest.mark.usefixtures("only_notifications")
class TestNotifications:
    def test_a_message_wakes_one(self, harness: Harness, herd: list[Sleeper]) -> None:
        harness.send()

        until(lambda: awake(herd) == 1, "one is awake")
        # It is passed on once at most, if one is between two waits.
        assert sum(figure.notifications for figure in figures(herd)) <= 2

    def test_many_messages_wake_several(self, harness: Harness, herd: list[Sleeper]) -> None:
        harness.send(*[b"x"] * 2 * SIZE)

        until(lambda: awake(herd) == SIZE, "all are awake")

    def test_those_that_have_died_are_not_told(self, harness: Harness, herd: list[Sleeper]) -> None:
        harness.ask(DEAD)

        harness.send()

        until(lambda: awake(herd) == 1, "one that lives is awake")

    def test_what_one_has_no_time_for_another_that_sleeps_gets(self, harness: Harness, herd: list[Sleeper]) -> None:
        harness.send(*[b"x"] * 2 * SIZE)
        until(lambda: awake(herd) == SIZE, "all are awake, and their rows are still there")
        for sleeper in herd[2:]:
            sleeper.close()
        herd[1].work()

        herd[0].sleep()
        until(lambda: herd[0].is_asleep, "it sleeps")
        harness.send()

        until(lambda: herd[0].woken == 2, "it is awake")


class TestPolls:
    def test_what_nobody_was_told_of_is_found(self, harness: Harness, herd: list[Sleeper]) -> None:
        harness.ask("insert into pgqrs.q_jobs (lane, body) values (0, 'x')")

        until(lambda: awake(herd) >= 1, "one is awake")

    def test_two_poll_for_all(self, herd: list[Sleeper]) -> None:
        def poll() -> int:
            """How many polled while one of them did so three times."""
            before = [figure.probes for figure in figures(herd)]
            counts: list[int] = []

            def three() -> bool:
                counts[:] = [figure.probes - old for figure, old in zip(figures(herd), before)]
                return max(counts) >= 3

            until(three, "one has polled three times")
            return sum(count > 0 for count in counts)

        until(lambda: poll() == POLLERS, "two poll", limit=40.0)

    def test_when_those_that_poll_have_died_others_do(self, harness: Harness, herd: list[Sleeper]) -> None:
        in_order = sorted(herd, key=lambda sleeper: sleeper.number)
        for sleeper in in_order[:POLLERS]:
            sleeper.close()
        harness.ask(DEAD)
        harness.ask("insert into pgqrs.q_jobs (lane, body) values (0, 'x')")

        until(lambda: awake(in_order[POLLERS:]) >= 1, "one of the others is awake")
