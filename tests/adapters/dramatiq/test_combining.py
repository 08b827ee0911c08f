"""Threads that enqueue at once share statements, and none of them pays for another one's mistake."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import pytest
from pgqrs_dramatiq import PgqrsBroker, Refused
from pgqrs_dramatiq.combining import Combiner

from pgqrs_core.errors import InvalidArgument, Unavailable
from pgqrs_core.events import Draft
from pgqrs_core.testing import eventually

from .dramatiq_support import Station


def draft(number: int) -> Draft:
    return Draft("jobs", b"%d" % number, "text/plain")


class Writer:
    """Notes what is written together; the first write waits until it is let go."""

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self.go = threading.Event()
        self.error: Exception | None = None

    def __call__(self, drafts: list[Draft]) -> None:
        numbers = [int(one.body) for one in drafts]
        if not self.written:
            self.written.append(numbers)
            assert self.go.wait(20)
            return
        if self.error is not None and (len(numbers) > 1 or numbers == [3]):
            raise self.error
        self.written.append(numbers)


def send_all(combiner: Combiner, writer: Writer, count: int) -> dict[int, Exception]:
    """Send from many threads, all but the first while that one writes; return what they raised."""
    raised: dict[int, Exception] = {}

    def run(number: int) -> None:
        try:
            combiner.send(draft(number))
        except Exception as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    threads[0].start()
    eventually(lambda: writer.written)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(combiner._left) == count - 1)
    writer.go.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return raised


def test_what_comes_while_another_writes_is_written_together() -> None:
    writer = Writer()

    assert send_all(Combiner(writer), writer, 8) == {}

    assert writer.written[0] == [0]
    assert sorted(writer.written[1]) == list(range(1, 8))


def test_large_messages_are_not_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is one byte; together they would be more than the server takes, and all of them would fail."""
    monkeypatch.setattr("pgqrs_dramatiq.combining.COALESCED_BYTES", 3)
    writer = Writer()

    assert send_all(Combiner(writer), writer, 8) == {}

    assert [len(one) for one in writer.written] == [1, 3, 3, 1]


def test_one_that_is_refused_fails_alone() -> None:
    writer = Writer()
    writer.error = InvalidArgument("delay", 3, "shorter")

    assert send_all(Combiner(writer), writer, 6) == {3: writer.error}

    assert sorted(number for numbers in writer.written for number in numbers) == [0, 1, 2, 4, 5]


def test_where_the_outcome_is_unknown_all_are_told() -> None:
    writer = Writer()
    writer.error = Unavailable("gone", target="here", in_flight=True)

    raised = send_all(Combiner(writer), writer, 4)

    assert sorted(raised) == [1, 2, 3]
    assert all(isinstance(error, Unavailable) and error.in_flight for error in raised.values())
    assert len({id(error) for error in raised.values()}) == 3


def test_a_thread_that_is_struck_while_it_writes_for_others_strands_nobody() -> None:
    writer = Writer()
    writer.error = KeyboardInterrupt()  # type: ignore[assignment]
    combiner = Combiner(writer)
    raised: list[str] = []

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            combiner.send(draft(0))

    def second(number: int) -> None:
        try:
            combiner.send(draft(number))
        except Unavailable:
            raised.append("unavailable")

    threads = [threading.Thread(target=first), *(threading.Thread(target=second, args=[n]) for n in (1, 2))]
    threads[0].start()
    eventually(lambda: writer.written)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(combiner._left) == 2)
    writer.go.set()
    for thread in threads:
        thread.join(20)

    assert raised == ["unavailable"] * 2
    writer.error = None
    combiner.send(draft(9))
    assert writer.written[-1] == [9]


def test_many_threads_store_each_message_once(station: Station, broker: PgqrsBroker) -> None:
    broker.declare_queue("default")
    refused: list[Any] = []

    def run(thread: int) -> None:
        for number in range(50):
            options = {"broker_priority": -1} if number == 25 else {}
            try:
                broker.enqueue(dramatiq.Message("default", "act", (thread, number), {}, options))
            except Refused as error:
                refused.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(refused) == 8
    bodies = station.sql("select convert_from(body, 'utf8')::json ->> 'args' from pgqrs.q_default")
    assert len(bodies) == len(set(bodies)) == 8 * 49
