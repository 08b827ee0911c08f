"""A lock on the table of one queue is no trouble for the others of the process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqrs_core.errors import TableLocked
from pgqrs_core.testing import eventually

from .native_support import Native, Seen


@contextlib.contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    with psycopg.connect(dsn) as connection:
        connection.execute(f"lock table {table} in access exclusive mode")
        yield
        connection.rollback()


@pytest.fixture
def queues(client: Any) -> None:
    client.admin.create_queue("a", lease_seconds=2.0)
    client.admin.create_queue("b", lease_seconds=2.0, max_attempts=1)


@pytest.mark.usefixtures("queues")
def test_leases_of_one_queue_are_renewed_while_another_is_locked(native: Native, client: Any, pgqrs_dsn: str) -> None:
    worker, began, go = native.worker(client, concurrency=4), Seen(), threading.Event()

    def handle(message: Any) -> None:
        began.add((message.queue, message.payload))
        go.wait(30)

    worker.handler("a")(handle)
    worker.handler("b")(handle)
    with native.working(worker):
        client.producer.enqueue("a", 1)
        client.producer.enqueue("b", 1)
        began.wait_for(2)
        with locked(pgqrs_dsn, "pgqrs.q_a"), psycopg.connect(pgqrs_dsn, autocommit=True) as other:
            # Twice the time of a lease; nobody else could take it over, for it was renewed in time each time.
            worst = []
            ended = other.execute("select now() + interval '4 s'").fetchone()

            def over() -> bool:
                left, done = other.execute(
                    "select extract(epoch from min(lease_until) - now()), now() > %s from pgqrs.q_b", ended
                ).fetchone() or (0, True)
                worst.append(left)
                return bool(done)

            eventually(over)
            assert min(worst) > 0
        go.set()
        eventually(lambda: client.admin.queue_metrics("b").in_flight == 0)
        eventually(lambda: client.admin.queue_metrics("a").in_flight == 0)
    assert sorted(began.items) == [("a", 1), ("b", 1)]
    assert client.admin.queue_metrics("b").dead == 0


@pytest.mark.usefixtures("queues")
def test_messages_of_one_queue_are_handled_while_another_is_locked_and_then_its_own(
    native: Native, client: Any, pgqrs_dsn: str
) -> None:
    worker, seen = native.worker(client), Seen()
    for name in ("a", "b"):
        worker.handler(name)(lambda message: seen.add((message.queue, message.payload)))
    client.producer.enqueue("a", 1)
    with locked(pgqrs_dsn, "pgqrs.q_a"), native.working(worker):
        for number in range(10):
            client.producer.enqueue("b", number)
            eventually(lambda number=number: ("b", number) in seen.items, patience=5)
        assert ("a", 1) not in seen.items
    worker = native.worker(client)
    worker.handler("a")(lambda message: seen.add((message.queue, message.payload)))
    with native.working(worker):
        eventually(lambda: ("a", 1) in seen.items)


@pytest.mark.usefixtures("queues")
def test_a_queue_is_worked_on_again_when_its_lock_is_gone(native: Native, client: Any, pgqrs_dsn: str) -> None:
    worker, seen = native.worker(client), Seen()
    worker.handler("a")(lambda message: seen.add(message.payload))
    with native.working(worker):
        client.producer.enqueue("a", 1)
        seen.wait_for(1)
        with locked(pgqrs_dsn, "pgqrs.q_a"):
            eventually(lambda: client.engine.wakeups._unseen if native.kind == "sync" else True)
        client.producer.enqueue("a", 2)
        seen.wait_for(2)


@pytest.mark.usefixtures("queues")
def test_a_reader_that_waits_outwaits_a_lock_and_one_that_does_not_is_told(
    native: Native, client: Any, pgqrs_dsn: str
) -> None:
    client.producer.enqueue("a", 1)
    with locked(pgqrs_dsn, "pgqrs.q_a"), pytest.raises(TableLocked) as caught:
        client.consumer.read("a")
    assert caught.value.retryable

    released = threading.Timer(1.0, lambda: lock.close())
    lock = contextlib.ExitStack()
    lock.enter_context(locked(pgqrs_dsn, "pgqrs.q_a"))
    released.start()
    assert client.consumer.read("a", wait=30).payload == 1


@pytest.mark.usefixtures("queues")
def test_an_enqueue_waits_for_a_lock_as_long_as_the_query_timeout_allows(
    native: Native, client: Any, pgqrs_dsn: str
) -> None:
    lock = contextlib.ExitStack()
    lock.enter_context(locked(pgqrs_dsn, "pgqrs.q_a"))
    threading.Timer(2.5, lock.close).start()
    assert client.producer.enqueue("a", 1) == 1


@pytest.mark.usefixtures("queues")
def test_a_with_block_keeps_what_it_handled_until_it_can_be_settled(
    native: Native, client: Any, pgqrs_dsn: str
) -> None:
    client.admin.create_queue("c", lease_seconds=20.0)
    client.producer.enqueue("c", 1)
    lock = contextlib.ExitStack()
    with client.consumer.lease("c") as message:
        assert message.payload == 1
        lock.enter_context(locked(pgqrs_dsn, "pgqrs.q_c"))
        threading.Timer(2.5, lock.close).start()
    assert client.admin.queue_metrics("c").in_flight == 0


@pytest.mark.usefixtures("queues")
def test_a_direct_ack_that_meets_a_lock_is_told_and_may_be_repeated(
    native: Native, client: Any, pgqrs_dsn: str
) -> None:
    client.producer.enqueue("a", 1)
    message = client.consumer.read("a", lock_time=60)
    with locked(pgqrs_dsn, "pgqrs.q_a"), pytest.raises(TableLocked) as caught:
        client.consumer.dequeue(message)
    assert caught.value.retryable
    client.consumer.dequeue(message)
    assert client.admin.queue_metrics("a").in_flight == 0
