"""What was deleted is not watched any more: the server logs no error for it again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from kombu import Producer, Queue
from pgqrs_dramatiq import PgqrsBroker
from pgqrs_native import Client, Worker

from pgqrs_core.errors import PgqrsError
from pgqrs_core.testing import PATIENCE, eventually
from tests.adapters.kombu.kombu_support import Bench, Inbox, drain
from tests.support.own_server import OwnServer, own_server

#: Seconds after which a queue that was set aside has been tried again.
WHILE = 6.0


@pytest.fixture(scope="module")
def server(pgqrs_bindir: Path) -> Iterator[OwnServer]:
    with own_server(pgqrs_bindir) as made:
        yield made


@pytest.fixture
def bench(server: OwnServer) -> Iterator[Bench]:
    made = Bench(server.dsn)
    yield made
    made.close()


def let_pass(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_reply_queue_whose_consumer_was_cancelled_is_not_watched_by_a_connection_that_stays_open(
    bench: Bench, server: OwnServer
) -> None:
    # One consumer keeps the process watching; the other connection is left alone, as one in a pool is.
    stays = Inbox(bench.connect(), Queue("stays"))
    left_alone = Inbox(bench.connect(), Queue("reply", auto_delete=True))
    assert left_alone.nothing(0.1)
    assert stays.nothing(0.1)
    server.errors()

    left_alone.consumer.cancel()

    assert not drain(stays.connection, 3.0)
    assert server.errors() == []


def test_a_broadcast_queue_that_one_of_two_connections_leaves_is_watched_for_the_other(
    bench: Bench, server: OwnServer
) -> None:
    queue = Queue("news", expires=60)
    stays, leaves = Inbox(bench.connect(), queue), Inbox(bench.connect(), queue)
    assert stays.nothing(0.1)
    assert leaves.nothing(0.1)
    server.errors()

    leaves.consumer.cancel()
    assert stays.nothing(1.5)
    Producer(bench.connect()).publish("x", routing_key="news")

    stays.wait(1)
    assert server.errors() == []


def test_a_durable_queue_that_another_program_deleted_is_not_claimed_from_until_it_is_there_again(
    bench: Bench, server: OwnServer
) -> None:
    with Client(server.dsn) as client:
        bench.connect().default_channel.close()
        client.admin.create_queue("gone")
        inbox = Inbox(bench.connect(), Queue("gone", no_declare=True))
        other = Inbox(bench.connect(), Queue("other"))
        assert inbox.nothing(0.1)

        client.admin.delete_queue("gone")
        # It learns of that by an error, or by two: of a claim, and of the wake-up connection.
        eventually(lambda: not drain(inbox.connection, 0.2) and server.errors())
        assert not drain(inbox.connection, 2.0)
        server.errors()
        assert not drain(inbox.connection, WHILE)
        assert other.nothing(0.1)

        assert server.errors() == []
        client.admin.create_queue("gone")
        client.producer.enqueue("gone", "again")
        inbox.wait(1)


def test_a_native_worker_does_not_ask_for_a_queue_that_was_deleted_again_and_again(server: OwnServer) -> None:
    with Client(server.dsn) as client:
        client.admin.install()
        client.admin.create_queue("going")
        client.admin.create_queue("staying")
        worker, seen = Worker(client, concurrency=1), []

        def handle(message: Any) -> None:
            seen.append(message.payload)

        worker.handler("going", str)(handle)
        worker.handler("staying", str)(handle)
        thread = threading.Thread(target=worker.run, kwargs={"signals": False})
        thread.start()
        try:
            client.producer.enqueue("going", "first")
            eventually(lambda: seen == ["first"])
            client.admin.delete_queue("going")
            let_pass(2.0)
            server.errors()
            let_pass(3.0)

            assert server.errors() == []
            client.producer.enqueue("staying", "last")
            eventually(lambda: seen == ["first", "last"])
        finally:
            worker.stop()
            thread.join(PATIENCE)


def test_a_wait_for_a_queue_that_is_deleted_meanwhile_ends_with_an_error_that_says_so(server: OwnServer) -> None:
    with Client(server.dsn) as client:
        client.admin.install()
        client.admin.create_queue("vanishing")
        raised: list[BaseException] = []

        def read() -> None:
            try:
                client.consumer.read("vanishing", wait=PATIENCE)
            except PgqrsError as error:
                raised.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: client.engine.figures().watched == 1)
        client.admin.delete_queue("vanishing")
        reader.join(PATIENCE)

        assert [type(error).__name__ for error in raised] == ["QueueNotFound"]
        server.errors()
        let_pass(2.5)
        assert server.errors() == []


def test_the_leases_of_a_deleted_queue_are_lost_and_not_renewed_again_and_again(server: OwnServer) -> None:
    with Client(server.dsn) as client:
        client.admin.install()
        client.admin.create_queue("held", lease_seconds=1.0)
        worker, begun, done, lost = Worker(client, concurrency=1), threading.Event(), threading.Event(), []

        @worker.handler("held", str)
        def handle(message: Any) -> None:
            begun.set()
            assert done.wait(PATIENCE)
            lost.append(message.lease_lost)

        client.producer.enqueue("held", "x")
        thread = threading.Thread(target=worker.run, kwargs={"signals": False})
        thread.start()
        try:
            assert begun.wait(PATIENCE)
            client.admin.delete_queue("held")
            let_pass(2.0)
            server.errors()
            let_pass(3.0)

            assert server.errors() == []
        finally:
            done.set()
            worker.stop()
            thread.join(PATIENCE)
    assert lost == [True]


def test_a_consumer_of_dramatiq_makes_its_queue_anew_where_another_program_deleted_it(server: OwnServer) -> None:
    broker = PgqrsBroker(server.dsn)
    broker.declare_queue("dramatic")
    seen: list[Any] = []
    dramatiq.actor(seen.append, actor_name="act", broker=broker, queue_name="dramatic")
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=100)
    logger = logging.getLogger("dramatiq")
    before, logger.level = logger.level, logging.CRITICAL + 1
    worker.start()
    try:
        broker.enqueue(dramatiq.Message("dramatic", "act", (1,), {}, {}))
        eventually(lambda: seen == [1])
        with Client(server.dsn) as client:
            client.admin.delete_queue("dramatic")
        let_pass(2.0)
        server.errors()
        let_pass(3.0)

        assert server.errors() == []
        broker.enqueue(dramatiq.Message("dramatic", "act", (2,), {}, {}))
        eventually(lambda: seen == [1, 2])
    finally:
        worker.stop()
        logger.level = before
        broker.close()
