"""Producers and consumers that die, hang, or hold leases for too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from .crowd import KINDS, Crowd, until

MESSAGES = 500


def test_competing_processes_lose_and_double_nothing(crowd: Crowd) -> None:
    chance = random.Random(5)
    crowd.options.update(slow=0.1, lease=0.3)
    for _ in range(2):
        crowd.start("producer", count=MESSAGES)
    for _ in range(3):
        crowd.start("consumer", mortal=True)
    crowd.start("consumer")
    crowd.release()

    def the_producers_are_done() -> bool:
        dead = [one for one in crowd.actors if one.role == "consumer" and not one.is_running]
        if len(crowd.of("consumer")) < 4:
            crowd.start("consumer", mortal=len(dead) < 6)
            crowd.release()
        if len(dead) < 3 and chance.random() < 0.1:
            chance.choice(crowd.of("consumer")).kill()
        return not crowd.of("producer")

    until(the_producers_are_done, "the producers are done")
    # Somebody who lives to see the end.
    crowd.start("consumer")
    crowd.release()
    assert crowd.finish() == []
    # There was something to check.
    claims = [event for event in crowd.history() if event["op"] == "claimed"]
    assert len({event["key"] for event in claims}) > MESSAGES
    assert max(event["attempt"] for event in claims) > 1
    assert [event for event in crowd.history() if event["op"] == "settled" and not event["ok"]]
    assert any(one.process.returncode for one in crowd.actors)


def kill_consumers(crowd: Crowd) -> None:
    for one in crowd.of("consumer"):
        one.kill()
    for _ in range(2):
        crowd.start("consumer")
    crowd.release()


def kill_the_producer(crowd: Crowd) -> None:
    crowd.of("producer")[0].kill()
    crowd.start("producer")
    crowd.release()


def stop(role: str) -> Callable[[Crowd], None]:
    def inject(crowd: Crowd) -> None:
        victim = crowd.of(role)[0]
        victim.stop()
        time.sleep(1.5)
        victim.go_on()

    return inject


FAULTS: dict[str, Callable[[Crowd], None]] = {
    "consumers are killed": kill_consumers,
    "the producer is killed": kill_the_producer,
    "a consumer stands still for longer than its lease": stop("consumer"),
    "a producer stands still": stop("producer"),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_when(fault: str, kind: str, crowd: Crowd) -> None:
    crowd.options.update(pause=0.003, **KINDS[kind])
    crowd.begin()

    FAULTS[fault](crowd)
    crowd.flow()

    assert crowd.finish() == []


def test_kombu_and_the_native_client_compete_for_the_same_messages(crowd: Crowd) -> None:
    for adapter in ("native", "kombu"):
        crowd.start("producer", adapter=adapter, count=200, pause=0.005)
        crowd.start("consumer", adapter=adapter, lease=1.0)
    crowd.release()

    assert crowd.finish_within(20) == []
    assert crowd.count("sent") > 300
    assert all(one.noted("claimed") for one in crowd.actors if one.role == "consumer")


@pytest.mark.parametrize("adapter", ["celery", "dramatiq"])
def test_what_a_killed_worker_held_is_run_by_another(adapter: str, crowd: Crowd) -> None:
    # Many are slow, so that there is something to check: the worker is killed while it runs some.
    crowd.options.update(pause=0.005, slow=0.3, count=80, **KINDS[adapter])
    crowd.begin()
    until(lambda: all(one.noted("started") for one in crowd.of("consumer")), "each consumer has something to do")

    crowd.of("consumer")[0].kill()
    crowd.flow()

    assert crowd.finish() == []
    assert max(event["attempt"] for event in crowd.history() if event["op"] == "claimed") > 1


@pytest.mark.faults
@pytest.mark.parametrize("adapter", ["celery", "dramatiq"])
def test_a_single_worker_gets_messages_in_their_order(adapter: str, crowd: Crowd) -> None:
    crowd.options.update(plain=True, count=300, concurrency=1, **KINDS[adapter])
    crowd.start("producer", pause=0.002)
    crowd.start("consumer")
    crowd.release()

    assert crowd.finish(alone=True) == []
