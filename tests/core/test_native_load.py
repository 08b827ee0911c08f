"""What a worker has in hand decides what it claims, and when it is done; no server is asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from pgqrs_native.courses import follow, follow_async
from pgqrs_native.load import Load
from pgqrs_native.routing import Outcome

from pgqrs_core.testing.by_hand import make_queue

QUEUE = make_queue(max_attempts=3)


def deliveries(*attempts: int) -> Any:
    return [SimpleNamespace(attempt=attempt) for attempt in attempts]


def outcomes(count: int) -> list[Outcome]:
    return [Outcome(SimpleNamespace(id=number), "ack") for number in range(count)]


def test_a_worker_refills_when_a_quarter_is_done_not_for_every_message():
    load = Load(16)
    load.take(QUEUE, deliveries(*[1] * 16), 16)

    light = []
    for _ in range(16):
        load.settle(1, [])
        light.append(load.is_light)

    assert light == [False] * 3 + [True] * 13


def test_a_claim_that_was_filled_tells_that_there_may_be_more():
    assert Load(16).take(QUEUE, deliveries(1, 1), 2)
    assert not Load(16).take(QUEUE, deliveries(1, 1), 3)


def test_nothing_is_claimed_beside_a_message_on_its_last_attempt():
    load = Load(16)

    assert load.take(QUEUE, deliveries(3), 16)
    assert (load.is_light, load.room) == (False, 0)
    load.settle(1, [])
    assert (load.is_light, load.room) == (True, 16)


def test_the_last_attempt_of_an_earlier_message_does_not_keep_later_ones_apart():
    load = Load(16)
    load.take(QUEUE, deliveries(3), 16)
    load.settle(1, [])

    load.take(QUEUE, deliveries(1), 16)

    assert (load.is_light, load.room) == (True, 15)


def test_a_stopped_worker_has_no_room():
    load = Load(16)
    load.stopping = True

    assert load.room == 0


def test_what_could_not_be_written_is_written_first():
    load = Load(16)
    first, second = outcomes(2)
    load.report([first])
    failed = load.take_pending()
    load.report([second])

    load.settle(0, failed)

    assert load.take_pending() == [first, second]


def test_a_worker_is_done_when_nothing_is_in_hand_and_nothing_will_come():
    load = Load(16)
    load.take(QUEUE, deliveries(1), 16)
    done = []

    for step in (lambda: None, lambda: setattr(load, "claiming", False), lambda: load.settle(1, [])):
        step()
        done.append(load.is_done)

    assert done == [False, False, True]


class Two:
    """Answers as one kind of engine does."""

    def ask(self, number: int) -> Any:
        if number < 0:
            raise ValueError(number)
        return 2 * number


class AsyncTwo:
    async def ask(self, number: int) -> Any:
        return Two().ask(number)


def course(engine: Any, *numbers: int) -> Any:
    found = []
    for number in numbers:
        try:
            found.append((yield engine.ask(number)))
        except ValueError as error:
            found.append(str(error))
    return found


def test_one_course_serves_blocking_and_asynchronous_engines():
    wanted = [2, "-2", 6]

    assert follow(course(Two(), 1, -2, 3)) == wanted
    assert asyncio.run(follow_async(course(AsyncTwo(), 1, -2, 3))) == wanted
    assert follow(course(Two())) == asyncio.run(follow_async(course(AsyncTwo()))) == []


def test_a_course_that_is_cancelled_puts_its_things_away():
    put_away = []

    class Never:
        async def ask(self) -> None:
            await asyncio.Event().wait()

    def waiting() -> Any:
        try:
            yield Never().ask()
        finally:
            put_away.append("marks")

    async def main() -> None:
        task = asyncio.create_task(follow_async(waiting()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert put_away == ["marks"]
