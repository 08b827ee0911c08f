"""What happens around a worker: connections broken off, a server restarted, exceptions raised in the middle of our code."""

from __future__ import annotations

import threading
import time
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.middleware import Retries, Shutdown, ShutdownNotifications, TimeLimit, TimeLimitExceeded
from dramatiq.middleware.threading import raise_thread_exception
from dramatiq.rate_limits import ConcurrentRateLimiter
from pgqrs_dramatiq import PgqrsBroker

from pgqrs_core.cluster import Cluster
from pgqrs_core.drivers import sync
from pgqrs_core.testing import eventually

from .dramatiq_support import Station, noting, quiet


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Dramatiq start a failed consumer again soon."""
    monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.1)


def actor_of(broker: PgqrsBroker, done: list[int]) -> Any:
    return dramatiq.actor(noting(done.append), actor_name="act", broker=broker)


def test_a_worker_goes_on_after_all_its_connections_are_broken_off(station: Station, broker: PgqrsBroker) -> None:
    done: list[int] = []
    act = actor_of(broker, done)
    other = station.broker(max_connections=5)
    other.declare_queue("default")
    with quiet(), station.worker(broker):
        for turn in range(5):
            other.enqueue(act.message(turn))
            eventually(lambda turn=turn: turn in done)
            assert station.terminate()
            other.close()
        broker.join("default", timeout=20_000)

    assert sorted(set(done)) == list(range(5))


def test_looking_at_a_queue_goes_on_after_connections_are_broken_off(station: Station, broker: PgqrsBroker) -> None:
    broker.declare_queue("default")
    for _ in range(50):
        broker.join("default", timeout=10_000)
        # They are told to end, and may answer once more, or not.
        assert station.terminate()
        assert broker.get_queue_message_counts("default") == (0, 0, 0)


def test_nothing_is_lost_while_connections_are_broken_off(station: Station, broker: PgqrsBroker) -> None:
    done: list[int] = []
    act = actor_of(broker, done)
    broker.enqueue_many([act.message(number) for number in range(2000)])
    with quiet(), station.worker(broker):
        for _ in range(5):
            reached = len(done) + 100
            eventually(lambda reached=reached: len(done) >= min(reached, 1900))
            station.terminate()
        broker.join("default", timeout=30_000)

    assert set(done) == set(range(2000))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_worker_survives_a_restart_of_the_server(pgqrs_private_cluster: Cluster, mode: str) -> None:
    station = Station(pgqrs_private_cluster.dsn)
    broker = station.broker()
    done: list[int] = []
    act = actor_of(broker, done)
    try:
        with quiet(), station.worker(broker):
            act.send(1)
            eventually(lambda: done == [1])
            broker.join("default", timeout=10_000)
            pgqrs_private_cluster.stop(mode)
            with pytest.raises((ConnectionClosed, ConnectionFailed)):
                act.send(0)
            pgqrs_private_cluster.start()
            eventually(lambda: act.send(2))
            eventually(lambda: 2 in done)
            broker.join("default", timeout=10_000)
    finally:
        station.close()


def test_notifications_without_end_do_not_keep_a_consumer_from_looking(station: Station, broker: PgqrsBroker) -> None:
    done: list[int] = []
    act = actor_of(broker, done)
    act.send(0)
    stop = threading.Event()
    noisy = Station(station.dsn)

    def ring() -> None:
        while not stop.wait(0.0005):
            noisy.sql("select pg_notify('pgqrs:pgqrs', '1'), pg_notify('pgqrs:pgqrs', 'x')")

    thread = threading.Thread(target=ring)
    thread.start()
    try:
        with station.worker(broker):
            eventually(lambda: done == [0])
            # Nobody rings for these.
            station.sql("insert into pgqrs.q_default (lane, body) values (0, %s)", act.message(1).encode())
            eventually(lambda: done == [0, 1])
    finally:
        stop.set()
        thread.join()
        noisy.close()


def test_an_idle_worker_runs_less_than_a_statement_a_second(
    station: Station, broker: PgqrsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    real = sync.perform

    def perform(link: Any, known: Any, effect: Any, **options: Any) -> Any:
        statements.append(effect.query.name)
        return real(link, known, effect, **options)

    monkeypatch.setattr(sync, "perform", perform)
    done: list[int] = []
    for number in range(10):
        dramatiq.actor(noting(done.append), actor_name=f"act_{number}", queue_name=f"queue_{number}", broker=broker)
    act = actor_of(broker, done)
    with station.worker(broker, timeout=1000):
        act.send(1)
        eventually(lambda: done == [1])
        broker.join("default", timeout=10_000)
        pause = threading.Event()
        # What it does about the one message is over by then.
        pause.wait(4)
        statements.clear()
        began = time.monotonic()
        pause.wait(6)
        assert len(statements) <= time.monotonic() - began, statements


class TestInterrupts:
    def test_exceptions_in_the_middle_of_our_code_leave_nothing_behind(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        results = station.results()
        limiter = ConcurrentRateLimiter(station.limits(), "limit", limit=1000)
        running: set[int] = set()
        ended: list[str] = []

        @dramatiq.actor(broker=broker, max_retries=0)
        def act() -> None:
            running.add(threading.get_ident())
            try:
                while True:
                    other.send()
                    with limiter.acquire():
                        results.store_result(message, 1, 60_000)
                        results.get_result(message, block=True)
            finally:
                running.discard(threading.get_ident())

        other = dramatiq.actor(lambda: ended.append("other"), actor_name="other", queue_name="other", broker=broker)
        message = act.message()
        broker.declare_queue("other")
        with quiet(), station.worker(broker, threads=4, queues={"default"}):
            for turn in range(60):
                act.send()
                ident = next(iter(eventually(lambda: set(running))))
                threading.Event().wait(0.003 * (turn % 7))
                raise_thread_exception(ident, TimeLimitExceeded if turn % 2 else Shutdown)
                eventually(lambda ident=ident: ident not in running)
            broker.join("default", timeout=20_000)
            # Everything still works, on as many connections as ever.
            other.send()
            assert station.connections() <= 4
            engine = broker._database.engine
            links = [engine.connections.get(relaxed=False) for _ in range(2)]
            for link in links:
                engine.connections.put(link)

        assert broker.get_queue_message_counts("default") == (0, 0, 60)

    def test_an_exception_while_an_ack_is_given_leaves_no_lock_behind(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        broker.enqueue_many([dramatiq.Message("default", "act", (), {}, {}) for _ in range(3000)])
        consumer = broker.consume("default", prefetch=5000, timeout=1000)
        messages = [eventually(lambda: next(consumer)) for _ in range(3000)]
        struck = 0

        def ack_all() -> None:
            nonlocal struck
            for message in messages:
                try:
                    consumer.ack(message)
                except TimeLimitExceeded:
                    struck += 1

        thread = threading.Thread(target=ack_all)
        thread.start()
        while thread.is_alive():
            raise_thread_exception(thread.ident, TimeLimitExceeded)
            time.sleep(0)
        thread.join()

        for message in messages:
            consumer.ack(message)
        eventually(lambda: station.rows() == 0)

    def test_a_time_limit_ends_a_task_that_waits_for_a_result(self, station: Station) -> None:
        broker = station.broker(middleware=[TimeLimit(interval=50)])
        results = station.results()
        ended = threading.Event()

        @dramatiq.actor(broker=broker, time_limit=200)
        def act() -> None:
            try:
                results.get_result(act.message(), block=True, timeout=60_000)
            except TimeLimitExceeded:
                ended.set()
                raise

        with quiet(), station.worker(broker) as worker:
            broker.emit_after("process_boot")
            act.send()
            assert ended.wait(20)
            assert worker is not None

    def test_an_actor_that_is_told_of_the_shutdown_is_retried(self, station: Station) -> None:
        broker = station.broker(middleware=[ShutdownNotifications(), Retries()])
        results = station.results()
        began, told = threading.Event(), threading.Event()

        @dramatiq.actor(broker=broker, notify_shutdown=True)
        def act() -> None:
            began.set()
            try:
                results.get_result(act.message(), block=True, timeout=60_000)
            except Shutdown:
                told.set()
                raise

        with quiet(), station.worker(broker):
            act.send()
            assert began.wait(20)

        assert told.is_set()
        assert broker.get_queue_message_counts("default") == (0, 1, 0)
