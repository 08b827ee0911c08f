"""Middleware is called in the order in which Dramatiq's own brokers call it, whatever is stored together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware
from pgqrs_dramatiq import PgqrsBroker

from pgqrs_core.testing import eventually

from .dramatiq_support import Station

WAYS: dict[str, Callable[[Any, list[Any]], object]] = {
    "one by one": lambda broker, messages: [broker.enqueue(message) for message in messages],
    "group": lambda broker, messages: dramatiq.group(messages, broker=broker).run(),
    "group with a delay": lambda broker, messages: dramatiq.group(messages, broker=broker).run(delay=10),
    "pipelines": lambda broker, messages: dramatiq.group(
        [dramatiq.pipeline([message], broker=broker) for message in messages], broker=broker
    ).run(),
}
TOGETHER: dict[str, Callable[[PgqrsBroker, list[Any]], object]] = {
    **WAYS,
    "enqueue_many": lambda broker, messages: broker.enqueue_many(messages),
    "batch": lambda broker, messages: in_batch(broker, messages),
}
#: Of a message that goes out alone a worker may have it before the hook, as on any broker.
del TOGETHER["one by one"]


def in_batch(broker: PgqrsBroker, messages: list[Any]) -> None:
    with broker.batch():
        for message in messages:
            broker.enqueue(message)


class Diary(Middleware):
    """Writes down which hook was called with which message."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.lines: list[tuple[str, Any]] = []
        self._seconds = seconds

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        self.lines.append(("before_enqueue", message.args[0]))

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        # As long as a row takes that is written to a table, of django_dramatiq for instance.
        threading.Event().wait(self._seconds)
        self.lines.append(("after_enqueue", message.args[0]))

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.lines.append(("before_process_message", message.args[0]))


def messages(count: int) -> list[Any]:
    return [dramatiq.Message("default", "act", (number,), {}, {}) for number in range(count)]


@pytest.mark.parametrize("way", WAYS)
def test_hooks_surround_each_member_as_on_dramatiqs_own_brokers(broker: PgqrsBroker, way: str) -> None:
    ours, theirs, stub = Diary(), Diary(), StubBroker()
    stub.add_middleware(theirs)
    stub.declare_queue("default")
    broker.add_middleware(ours)
    broker.declare_queue("default")

    WAYS[way](stub, messages(3))
    WAYS[way](broker, messages(3))

    assert ours.lines == theirs.lines


@pytest.mark.parametrize("way", TOGETHER)
def test_no_worker_has_a_message_before_its_after_enqueue(station: Station, broker: PgqrsBroker, way: str) -> None:
    diary, count = Diary(0.005), 50

    def act(number: int) -> None: ...

    broker.add_middleware(diary)
    dramatiq.actor(act, actor_name="act", broker=broker)
    with station.worker(broker, threads=8):
        TOGETHER[way](broker, messages(count))
        eventually(lambda: sum(name == "before_process_message" for name, _ in diary.lines) == count)

    for number in range(count):
        names = [name for name, of in diary.lines if of == number]
        assert names == ["before_enqueue", "after_enqueue", "before_process_message"]
