"""Connections that are idle are given back to the server; one that waits for messages keeps what it claims on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from harness import AsyncHarness, Harness, SyncHarness, meanwhile, until

from pgqrs_core.drivers.idle import CLOSER, IdleCloser
from pgqrs_core.operations import schema

#: Seconds after which the pools of these tests close what is idle.
IDLE = 1.0


@pytest.fixture
def idle(open_harness: Callable[..., Harness]) -> Harness:
    made = open_harness(performance={"connection_idle_seconds": IDLE})
    made.transact(schema.install, made.engine.schema)
    made.create("jobs")
    made.send()
    made.take(1)
    return made


def tick(harness: Harness, seconds: float = 0.02) -> None:
    """Let time pass, and the event loop run."""
    if isinstance(harness, AsyncHarness):
        harness.loop.run_until_complete(asyncio.sleep(seconds))
    else:
        threading.Event().wait(seconds)


def test_a_process_that_has_nothing_to_do_holds_no_connection(idle: Harness) -> None:
    until(lambda: tick(idle) or not idle.backends(), "all are closed")

    assert idle.engine.connections.total == 0


def test_it_opens_them_again_and_closes_them_again(idle: Harness) -> None:
    for _ in range(2):
        until(lambda: tick(idle) or not idle.backends(), "all are closed")
        idle.send()
        assert len(idle.backends()) == 1


def test_one_that_is_used_is_not_closed(idle: Harness) -> None:
    until(lambda: tick(idle) or not idle.backends(), "all are closed")
    idle.send()
    (before,) = {pid for pid, _ in idle.backends()}
    for _ in range(10):
        tick(idle, IDLE / 5)
        idle.send()

    assert {pid for pid, _ in idle.backends()} == {before}


def test_one_that_waits_for_messages_keeps_the_connection_on_which_it_claims(idle: Harness) -> None:
    idle.create("quiet")
    other = SyncHarness(idle.dsn)
    with meanwhile(lambda: idle.take(1, queue="quiet", patience=60.0)):
        until(lambda: idle.engine.figures().watched, "it waits")
        # Two are open also before it listens, until the one that nothing claims on is closed.
        until(lambda: idle.engine.connections.usage.idle == 1, "it keeps one to claim on")
        until(lambda: len(idle.backends()) == 2, "it listens on another")
        other.send(queue="quiet")
    other.close()


def test_a_pool_is_served_on_while_all_of_its_connections_are_in_use(engine: SyncHarness) -> None:
    """Else a busy program would start a thread for each statement."""
    engine.send()
    pool = engine.engine.connections
    links = [pool.get(relaxed=False) for _ in range(pool.usage.idle)]
    assert pool.usage.idle == 0

    assert pool.close_idle() is not None

    links.clear()
    assert pool.close_idle() is None


def test_a_pool_does_not_wait_for_one_that_keeps_them_longer() -> None:
    looked = threading.Event()

    class Patient:
        is_watched = False

        def close_idle(self) -> float:
            return 3600.0

    class Other(Patient):
        def close_idle(self) -> float:
            looked.set()
            return 3600.0

    closer, pools = IdleCloser(), [Patient(), Other()]
    closer.watch(pools[0])
    until(lambda: closer._thread and not closer._called.is_set(), "it waits")
    closer.watch(pools[1])

    assert looked.wait(20)
    closer.stop_before_fork()


def test_zero_keeps_them(open_harness: Callable[..., Harness]) -> None:
    made = open_harness(performance={"connection_idle_seconds": 0})
    made.transact(schema.install, made.engine.schema)
    tick(made, 2 * IDLE)

    assert len(made.backends()) == 1


def test_a_process_forks_without_the_thread_and_has_it_again(engine: SyncHarness) -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "pgqrs-idle-connections"]

    engine.send()
    assert len(names()) == 1

    CLOSER.stop_before_fork()
    assert names() == []
    CLOSER.go_on_after_fork()

    assert len(names()) == 1
