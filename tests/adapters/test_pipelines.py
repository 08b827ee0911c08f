"""A caller's connection in pipeline mode, where a statement has only been sent when ``execute`` returns."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from pgqrs_native import AsyncClient, Client

from pgqrs_core.errors import LeaseLost, PgqrsError


@pytest.fixture
def dsn(pgqrs_dsn: str) -> str:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs", archive=True)
        client.producer.batch_enqueue("jobs", range(6))
        with psycopg.connect(pgqrs_dsn) as connection:
            connection.execute("create table effects (id int primary key)")
    return pgqrs_dsn


def left(dsn: str) -> tuple[Any, ...]:
    """How many messages wait or are held, are archived, and how many effects of the caller's there are."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select (select count(*) from pgqrs.q_jobs), (select count(*) from pgqrs.a_jobs), "
            "(select count(*) from effects)"
        ).fetchone()
    assert row is not None
    return row


@pytest.mark.parametrize("autocommit", [False, True])
def test_all_that_takes_a_connection_works_in_a_pipeline(dsn: str, autocommit: bool) -> None:
    with Client(dsn) as client, psycopg.connect(dsn, autocommit=autocommit) as connection:
        messages = client.consumer.read_batch("jobs", count=6)
        consumer, producer = client.consumer, client.producer
        with connection.pipeline(), connection.transaction():
            connection.execute("insert into effects values (1)")
            consumer.dequeue(messages[0], connection=connection)
            assert consumer.dequeue_batch(messages[1:3], connection=connection) == [True, True]
            connection.execute("insert into effects values (2)")
            consumer.archive(messages[3], connection=connection)
            assert consumer.archive_batch(messages[4:5], connection=connection) == [True]
            first = producer.enqueue("jobs", "new", connection=connection)
            assert producer.batch_enqueue("jobs", [1, 2], connection=connection) == [first + 1, first + 2]
            keyed = producer.enqueue("jobs", "new", idempotency_key="k", connection=connection)
            assert producer.enqueue("jobs", "new", idempotency_key="k", connection=connection) == keyed
            with pytest.raises(LeaseLost):
                consumer.dequeue(messages[0], connection=connection)
        connection.commit()

        assert left(dsn) == (1 + 4, 2, 2)


def test_what_a_pipeline_rolls_back_has_not_happened(dsn: str) -> None:
    with Client(dsn) as client, psycopg.connect(dsn) as connection:
        messages = client.consumer.read_batch("jobs", count=6)

        def fail_late() -> None:
            with connection.pipeline(), connection.transaction():
                client.consumer.dequeue_batch(messages, connection=connection)
                client.producer.enqueue("jobs", 7, connection=connection)
                connection.execute("insert into effects values (1)")
                connection.execute("insert into effects values (1)")

        with pytest.raises(psycopg.errors.UniqueViolation):
            fail_late()

        assert left(dsn) == (6, 0, 0)
        client.consumer.release_batch(messages)


def test_an_earlier_failure_of_the_callers_is_not_taken_for_a_lost_lease(dsn: str) -> None:
    with Client(dsn) as client, psycopg.connect(dsn) as connection:
        message = client.consumer.read("jobs")
        assert message is not None
        connection.execute("insert into effects values (1)")
        connection.commit()

        def fail_early() -> None:
            with connection.pipeline():
                connection.execute("insert into effects values (1)")
                client.consumer.dequeue(message, connection=connection)

        with pytest.raises(PgqrsError, match="duplicate key") as caught:
            fail_early()

        assert not isinstance(caught.value, LeaseLost)
        connection.rollback()
        assert left(dsn)[0] == 6


def test_on_asyncio_too(dsn: str) -> None:
    async def run() -> None:
        async with AsyncClient(dsn) as client, await psycopg.AsyncConnection.connect(dsn) as connection:
            messages = await client.consumer.read_batch("jobs", count=6)
            async with connection.pipeline(), connection.transaction():
                await connection.execute("insert into effects values (1)")
                await client.consumer.dequeue(messages[0], connection=connection)
                await client.consumer.archive_batch(messages[1:3], connection=connection)
                await client.producer.enqueue("jobs", "new", idempotency_key="k", connection=connection)
                with pytest.raises(LeaseLost):
                    await client.consumer.dequeue(messages[0], connection=connection)
            await connection.commit()

    asyncio.run(run())

    assert left(dsn) == (3 + 1, 2, 1)
