"""What runs beside a batch or a transaction, and after it, enqueues by itself: nothing is lost with the block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq.middleware import Middleware
from pgqrs_dramatiq import PgqrsBroker

from .dramatiq_support import Station


def message(number: object = 0, actor: str = "act") -> Any:
    return dramatiq.Message("default", actor, (number,), {}, {})


@pytest.fixture
def ready(broker: PgqrsBroker) -> PgqrsBroker:
    """A broker whose queue is there."""
    broker.declare_queue("default")
    return broker


def commits(station: Station) -> list[tuple[Any, ...]]:
    """Which transactions wrote the messages, and how many each."""
    return station.sql("select count(*) from pgqrs.q_default group by xmin::text order by 1")


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_task_that_is_started_in_a_block_enqueues_by_itself(station: Station, ready: PgqrsBroker, kind: str) -> None:
    connection = psycopg.connect(station.dsn)
    ready.enqueue(message())

    async def main() -> None:
        ended = asyncio.Event()

        async def beside() -> None:
            ready.enqueue(message("while it lasts"))
            await ended.wait()
            ready.enqueue(message("after it"))

        with (
            contextlib.suppress(ZeroDivisionError),
            ready.batch() if kind == "batch" else ready.transaction(connection),
        ):
            ready.enqueue(message("of the block"))
            task = asyncio.create_task(beside())
            asyncio.get_running_loop().call_soon(ready.enqueue, message("callback"))
            await asyncio.to_thread(ready.enqueue, message("thread"))
            assert station.rows() == 4
            raise ZeroDivisionError
        ended.set()
        await task

    asyncio.run(main())
    connection.rollback()
    connection.close()
    assert station.rows() == 5


def test_a_transaction_within_a_batch_takes_what_is_enqueued_in_it(station: Station, ready: PgqrsBroker) -> None:
    ready.enqueue(message())
    with psycopg.connect(station.dsn) as connection:
        with ready.batch():
            ready.enqueue(message())
            with ready.transaction(connection):
                ready.enqueue(message())
                dramatiq.group([message(), message()], broker=ready).run()
        assert station.rows() == 2
        connection.rollback()
    assert station.rows() == 2


def test_a_generator_that_is_closed_in_its_batch_says_what_is_discarded(
    ready: PgqrsBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers() -> Iterator[int]:
        with ready.batch():
            for number in range(10):
                ready.enqueue(message(number))
                yield number

    made = numbers()
    assert [next(made), next(made)] == [0, 1]
    made.close()
    assert "2 messages of a batch were discarded" in caplog.text


class Auditing(Middleware):
    """Enqueues a message for each that is enqueued."""

    def before_enqueue(self, broker: Any, enqueued: Any, delay: int | None) -> None:
        if enqueued.actor_name != "audit":
            broker.enqueue(message(actor="audit"))
        if enqueued.args == ("broken",):
            enqueued.options["broker_priority"] = "none"


@pytest.mark.parametrize("many", ["group", "pipelines", "enqueue_many"])
def test_what_middleware_enqueues_goes_by_itself(station: Station, many: str) -> None:
    broker = station.broker(middleware=[Auditing()])
    broker.declare_queue("default")

    def run(*numbers: object) -> None:
        if many == "enqueue_many":
            broker.enqueue_many(message(number) for number in numbers)
        elif many == "group":
            dramatiq.group([message(number) for number in numbers], broker=broker).run()
        else:
            chains = [dramatiq.pipeline([message(number), message()], broker=broker) for number in numbers]
            dramatiq.group(chains, broker=broker).run()

    with contextlib.suppress(dramatiq.BrokerError):
        run(1, "broken")
    assert commits(station) == [(1,), (1,)]
    run(1, 2)
    assert commits(station) == [(1,), (1,), (1,), (1,), (2,)]


def test_what_a_generator_enqueues_goes_by_itself(station: Station, ready: PgqrsBroker) -> None:
    def messages() -> Iterator[Any]:
        ready.enqueue(message("by itself"))
        yield message()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ready.enqueue_many(messages())
    assert station.rows() == 1
