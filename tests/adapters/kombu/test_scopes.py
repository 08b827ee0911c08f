"""What runs beside a batch or a transaction, and after it, publishes by itself: nothing is lost with the block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from kombu import Producer, Queue
from pgqrs_kombu import batch, in_transaction

from tests.support.versions import needs_batches

from .kombu_support import Bench


@pytest.fixture
def publish(bench: Bench) -> Callable[..., None]:
    """Publishes to a queue."""
    connection = bench.connect()
    Queue("q")(connection.channel()).declare()
    producer = Producer(connection)

    def send(body: object = "x", **options: Any) -> None:
        producer.publish(body, routing_key="q", **options)

    send.producer = producer  # type: ignore[attr-defined]
    return send


@pytest.mark.parametrize("kind", ["batch", pytest.param("producer", marks=needs_batches), "transaction"])
def test_a_task_that_is_started_in_a_block_publishes_by_itself(bench: Bench, publish: Any, kind: str) -> None:
    connection = psycopg.connect(bench.dsn)
    blocks = {
        "batch": batch,
        "producer": lambda: publish.producer.batch(),
        "transaction": lambda: in_transaction(connection),
    }

    async def main() -> None:
        ended = asyncio.Event()

        async def beside() -> None:
            publish("while it lasts")
            await ended.wait()
            publish("after it")

        with contextlib.suppress(ZeroDivisionError), blocks[kind]():
            publish("of the block")
            task = asyncio.create_task(beside())
            asyncio.get_running_loop().call_soon(publish, "callback")
            await asyncio.sleep(0.01)
            assert bench.rows("q") == 2
            raise ZeroDivisionError
        ended.set()
        await task

    asyncio.run(main())
    connection.rollback()
    connection.close()
    assert bench.rows("q") == 3


def test_a_thread_that_is_started_by_asyncio_in_a_block_publishes_by_itself(bench: Bench, publish: Any) -> None:
    async def main() -> None:
        with contextlib.suppress(ZeroDivisionError), batch():
            await asyncio.to_thread(publish)
            assert bench.rows("q") == 1
            raise ZeroDivisionError

    asyncio.run(main())
    assert bench.rows("q") == 1


def test_a_transaction_within_a_batch_takes_what_is_published_in_it(bench: Bench, publish: Any) -> None:
    with psycopg.connect(bench.dsn) as connection:
        with batch():
            publish("batch")
            with in_transaction(connection):
                publish("transaction")
                with batch():
                    publish("both")
            assert bench.rows("q") == 0
        assert bench.rows("q") == 1
        connection.rollback()
    assert bench.rows("q") == 1


@needs_batches
def test_a_transaction_within_a_producers_batch_takes_what_is_published_in_it(bench: Bench, publish: Any) -> None:
    with psycopg.connect(bench.dsn) as connection:
        with publish.producer.batch():
            publish("batch")
            with in_transaction(connection):
                publish("transaction")
        assert bench.rows("q") == 1
        connection.rollback()
    assert bench.rows("q") == 1


@needs_batches
def test_a_producers_batch_within_a_batch_waits_for_its_end(bench: Bench, publish: Any) -> None:
    with batch():
        with publish.producer.batch():
            publish()
        assert bench.rows("q") == 0
    assert bench.rows("q") == 1


def test_a_generator_that_is_closed_in_its_batch_says_what_is_discarded(
    publish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers() -> Any:
        with batch():
            for number in range(10):
                publish(number)
                yield number

    made = numbers()
    assert [next(made), next(made)] == [0, 1]
    made.close()
    assert "2 messages of a batch were discarded" in caplog.text


def test_a_batch_that_has_ended_takes_nothing_more(publish: Any) -> None:
    with batch() as held:
        publish()
    with pytest.raises(RuntimeError, match="ended"):
        held.add(publish.producer.channel.broker.publisher, None)  # type: ignore[arg-type]
