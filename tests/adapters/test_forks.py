"""Web servers make their clients, use them, and fork. In each child many threads begin at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pgqrs_native import Client

from pgqrs_core.engine import Engine
from pgqrs_core.testing import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

CHILDREN = 6
THREADS = 8


def fork(work: Callable[[], object]) -> int:
    """Do something in a child, which exits with 0 if it returns."""
    with warnings.catch_warnings():
        # From Python 3.12 on; a forking web server does it too.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(60)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def at_once(work: Callable[[int], object], threads: int = THREADS) -> None:
    """Let many threads begin at the same moment; raise what one of them raised."""
    # So that a thread is interrupted within a few instructions, and what is not safe shows.
    sys.setswitchinterval(1e-5)
    barrier = threading.Barrier(threads)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(30)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in running), "a thread hangs"


def storm(work: Callable[[int], object], parent: Callable[[], object]) -> None:
    """Fork children one after the other, while the parent goes on using what they inherited."""
    children = []
    for _ in range(CHILDREN):
        children.append(fork(lambda: at_once(work)))
        parent()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    parent()
    assert statuses == [0] * CHILDREN


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture
def dsn(pgqrs_dsn: str) -> str:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
    return pgqrs_dsn


def test_a_client_made_before_the_fork_serves_the_threads_of_every_child(dsn: str) -> None:
    with Client(dsn) as client:
        sent = Counter[str]()

        def parent() -> None:
            client.producer.enqueue("jobs", "parent")
            sent["parent"] += 1
            with client.consumer.lease("jobs", wait=0.01) as message:
                assert message is None or message.payload in ("parent", "child")
                sent["taken"] += message is not None

        def child(number: int) -> None:
            ids = [client.producer.enqueue("jobs", "child") for _ in range(5)]
            assert len(set(ids)) == 5
            message = client.consumer.read("jobs", wait=0.05)
            assert message is not None
            client.consumer.release(message)

        storm(child, parent)

        rows = ask(dsn, "select count(*) from pgqrs.q_jobs")
        assert rows == [(CHILDREN * THREADS * 5 + sent["parent"] - sent["taken"],)]


def test_a_fork_in_the_midst_of_statements_of_other_threads_leaves_no_lock_behind(dsn: str) -> None:
    """The lock of a pool, a keeper or a plugin manager may be held by a thread that the child does not have."""
    with Client(dsn) as client:
        over = threading.Event()

        def bustle(_: int) -> None:
            while not over.is_set():
                client.producer.enqueue("jobs", "bustle")
                with client.consumer.lease("jobs"):
                    pass
                Engine(dsn)

        threads = [threading.Thread(target=bustle, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            storm(lambda _: Client(dsn).producer.enqueue("jobs", client.producer.enqueue("jobs", "child")), lambda: 0)
        finally:
            over.set()
            for thread in threads:
                thread.join(30)


def test_a_child_renews_no_lease_of_its_parent(dsn: str) -> None:
    with Client(dsn) as client:
        client.producer.enqueue("jobs", "parents")
        with client.consumer.lease("jobs", lock_time=0.3) as message:
            assert message is not None
            child = fork(lambda: (client.producer.enqueue("jobs", "child"), client.keeper._ledger.__len__() and 1 / 0))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_keeps_no_session_of_a_parent_that_was_killed(dsn: str) -> None:
    """Its copy of the socket would hide from the server that the parent has died."""
    reader, writer = os.pipe()

    def parent() -> None:
        with psycopg.connect(dsn) as connection:
            assert connection
        client = Client(dsn)
        client.producer.enqueue("jobs", "parent")
        with client.engine.transaction() as connection:
            pid = connection.info.backend_pid
            fork(lambda: time.sleep(20))
            os.write(writer, str(pid).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(parent), 0)
    pid = int(os.read(reader, 100))
    try:
        eventually(
            lambda: not ask(dsn, f"select 1 from pg_stat_activity where pid = {pid}"), 10, what="the session has ended"
        )
    finally:
        os.close(reader)
        os.close(writer)


def test_kombu_publishes_from_every_thread_of_every_child(dsn: str) -> None:
    from kombu import Connection

    with Connection(f"pgqrs+{dsn}") as connection:
        channel = connection.default_channel
        channel.queue_declare("celery", durable=True)

        def publish(target: Any) -> None:
            with target.Producer() as producer:
                producer.publish("x", routing_key="celery", retry=True, retry_policy={"max_retries": 1})

        # As Celery's pool of producers: each thread has a connection, made before the fork.
        pool = [connection.clone() for _ in range(THREADS)]
        for one in pool:
            publish(one)
        before = THREADS

        storm(lambda number: [publish(pool[number]) for _ in range(3)], lambda: None)

        table = ask(dsn, "select table_suffix from pgqrs.queues where name = 'celery'")[0][0]
        assert ask(dsn, f'select count(*) from pgqrs."q_{table}"') == [(before + CHILDREN * THREADS * 3,)]
        for one in pool:
            one.release()


def test_celerys_results_are_stored_and_awaited_by_every_thread_of_every_child(dsn: str) -> None:
    from celery import Celery

    app = Celery("forked", backend=f"pgqrs+{dsn}", broker="memory://")
    app.backend.store_result("first", 1, "SUCCESS")
    assert app.AsyncResult("first").get(timeout=10) == 1

    def child(number: int) -> None:
        name = f"{os.getpid()}-{number}"
        app.backend.store_result(name, number, "SUCCESS")
        assert app.AsyncResult(name).get(timeout=20) == number

    storm(child, lambda: app.AsyncResult("first").get(timeout=10))


def test_dramatiq_enqueues_from_every_thread_of_every_child(dsn: str) -> None:
    import dramatiq
    from pgqrs_dramatiq import PgqrsBroker

    broker = PgqrsBroker(dsn)
    broker.declare_queue("dramatiq")

    def send(count: int = 1) -> None:
        for _ in range(count):
            broker.enqueue(dramatiq.Message("dramatiq", "actor", (), {}, {}))

    send()
    parents = Counter(sent=1)

    def parent() -> None:
        send()
        parents["sent"] += 1

    storm(lambda _: send(3), parent)

    table = ask(dsn, "select table_suffix from pgqrs.queues where name = 'dramatiq'")[0][0]
    assert ask(dsn, f'select count(*) from pgqrs."q_{table}"') == [(parents["sent"] + CHILDREN * THREADS * 3,)]
    broker.close()
