"""Plugins that count: notes are added up together, once, whoever writes them and whatever forks."""

from __future__ import annotations

import multiprocessing
import threading
import time
from datetime import datetime, timezone

import pytest

from pgqrs_core.events import Claimed, Consumed, Enqueued, Outcome
from pgqrs_core.messages import Delivery
from pgqrs_core.plugins import Plugins
from pgqrs_core.tally import Sums, Tally

PATIENCE = 30.0


class Kept(Tally):
    def __init__(self, *, within: float | None = None) -> None:
        super().__init__(within=within)
        self.written: list[tuple[str, str, Sums]] = []
        self.wrote = threading.Event()

    def write(self, queue: str, adapter: str, sums: Sums) -> None:
        self.written.append((queue, adapter, sums))
        self.wrote.set()

    @property
    def enqueued(self) -> int:
        return sum(sums.enqueued for _, _, sums in self.written)


def enqueued(count: int, queue: str = "jobs") -> Enqueued:
    return Enqueued(queue, "native", range(count), count, 0, 0.25)


def delivery(number: int, age: float, *, attempt: int = 1, lane: int = 0) -> Delivery:
    then = datetime.fromtimestamp(1_000_000 - age, timezone.utc)
    return Delivery(lane, number, attempt, 0, then, "x", None, b"", 1)


def test_events_are_added_up_by_queue_and_adapter_and_each_is_written_once() -> None:
    tally, plugins = Kept(), Plugins.core()
    plugins.register(tally, "tally")
    found = [delivery(1, 2.0), delivery(2, 5.0, attempt=2), delivery(3, 1.0, lane=-1), delivery(4, -3.0)]
    outcomes = [Outcome(1, "acked", 1, 2.0, 0.5), Outcome(2, "dead", 2, 5.0, -0.1), Outcome(3, "acked", 1, 1.0)]

    plugins.hooks.after_enqueue(enqueued(3))
    plugins.hooks.after_enqueue(enqueued(2, "other"))
    plugins.hooks.after_claim(Claimed("jobs", "native", found, 1_000_000.0, 0.125, managed=False))
    plugins.hooks.after_consume(Consumed.of("jobs", "native", outcomes))
    assert tally.written == []
    tally.flush()
    tally.flush()

    jobs = Sums(3, [0.25], [4], [0.125], [5.0], [2.0, 5.0, 1.0, 0.0], [2.0, 0.0], {"acked": 2, "dead": 1}, [0.5, 0.0])
    assert tally.written == [("jobs", "native", jobs), ("other", "native", Sums(2, [0.25]))]


def test_outcomes_that_nobody_looks_at_are_not_put_together() -> None:
    def details() -> list[Outcome]:
        raise AssertionError("nobody should ask")

    tally = Kept()
    tally.pgqrs_after_consume(Consumed("jobs", "native", ["acked", "lost", "acked"], [0.5, None, 0.25], details))
    tally.flush()

    assert tally.written == [("jobs", "native", Sums(settled={"acked": 2, "lost": 1}, handled=[0.5, 0.25]))]


def test_messages_that_were_enqueued_together_have_one_age() -> None:
    tally = Kept()
    tally.pgqrs_after_claim(
        Claimed("jobs", "native", [delivery(n, 2.0, attempt=n) for n in (1, 2, 3)], 1_000_000.0, 0.5, managed=False)
    )
    tally.flush()

    assert tally.written == [("jobs", "native", Sums(0, [], [3], [0.5], [2.0], [2.0, 2.0, 2.0], [2.0]))]


def test_notes_do_not_grow_without_end_if_nobody_asks() -> None:
    tally = Kept()

    for _ in range(2_500):
        tally.pgqrs_after_enqueue(enqueued(1))

    assert tally.enqueued == 2_000
    tally.pgqrs_after_enqueue(enqueued(1_000))
    assert tally.enqueued == 3_500


def test_threads_that_note_and_write_at_once_lose_nothing() -> None:
    tally = Kept()

    def note() -> None:
        for _ in range(3_000):
            tally.pgqrs_after_enqueue(enqueued(1))

    threads = [threading.Thread(target=note) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.flush()
    tally.flush()

    assert tally.enqueued == 24_000


def test_where_nobody_asks_a_thread_writes_soon() -> None:
    tally = Kept(within=0.01)

    for _ in range(2):
        tally.wrote.clear()
        tally.pgqrs_after_enqueue(enqueued(1))
        assert tally.wrote.wait(PATIENCE)

    assert tally.enqueued == 2


def test_a_failure_to_write_is_logged_and_the_next_notes_are_written(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Kept):
        def write(self, queue: str, adapter: str, sums: Sums) -> None:
            super().write(queue, adapter, sums)
            if len(self.written) == 1:
                raise OSError("disk full")

    tally = Failing(within=0.01)
    for _ in range(2):
        tally.wrote.clear()
        tally.pgqrs_after_enqueue(enqueued(1))
        assert tally.wrote.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while "could not be written" not in caplog.text:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    assert "disk full" in caplog.text


def _child(tally: Kept, pipe: multiprocessing.connection.Connection) -> None:
    tally.write = lambda queue, adapter, sums: pipe.send(sums.enqueued)  # type: ignore[method-assign]
    tally.pgqrs_after_enqueue(enqueued(1))


def test_a_forked_child_writes_its_own_notes_when_it_ends_and_not_its_parents() -> None:
    tally = Kept(within=600.0)
    tally.pgqrs_after_enqueue(enqueued(5))
    ours, its = multiprocessing.Pipe()
    # As if another thread wrote at this moment.
    with tally._writing:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(tally, its))
        child.start()
        assert ours.poll(PATIENCE)
    child.join(PATIENCE)
    tally.flush()

    assert ours.recv() == 1
    assert not ours.poll(0)
    assert tally.enqueued == 5
