"""Plugins see Dramatiq's messages as they see all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.results import Results, ResultTimeout

from pgqrs_core.events import ConsumeBatch, Consumed, Enqueued, Handling
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins
from pgqrs_core.testing import eventually

from .dramatiq_support import Station


class Diary:
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.outcomes: list[Any] = []
        self.drops = False

    @hookimpl
    def pgqrs_before_enqueue(self, batch: Any) -> None:
        for draft in batch.drafts:
            draft.headers = {**(draft.headers or {}), "origin": "here"}

    @hookimpl
    def pgqrs_before_consume(self, batch: ConsumeBatch) -> None:
        for delivery in list(batch.deliveries) if self.drops else ():
            batch.drop(delivery, "not wanted")

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        self.entries.append(("enqueued", event.adapter, event.count))

    @hookimpl
    def pgqrs_around_handler(self, handling: Handling) -> Any:
        return self._around(handling)

    @contextmanager
    def _around(self, handling: Handling) -> Iterator[None]:
        [handled] = handling.messages
        self.entries.append(("begin", handling.adapter, handling.queue, handled.headers["origin"]))
        try:
            yield
        except BaseException as error:
            self.entries.append(("failed", repr(error)))
            raise
        self.entries.append(("end",))

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        self.outcomes.extend(event.outcomes)


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    plugins, diary = Plugins.core(), Diary()
    plugins.register(diary, "diary")
    import pgqrs_dramatiq.plugin

    plugins.register(pgqrs_dramatiq.plugin, "dramatiq")
    monkeypatch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)
    return diary


def test_an_actor_is_surrounded_and_timed(diary: Diary, station: Station) -> None:
    broker = station.broker()
    seen: list[Any] = []

    @dramatiq.actor(broker=broker)
    def work(number: int) -> None:
        seen.append(list(diary.entries))

    work.send(1)
    with station.worker(broker):
        eventually(lambda: diary.outcomes)

    assert seen == [[("enqueued", "dramatiq", 1), ("begin", "dramatiq", "default", "here")]]
    assert diary.entries[-1] == ("end",)
    [outcome] = diary.outcomes
    assert outcome.kind == "acked"
    assert outcome.seconds_in_handler > 0


def test_what_an_actor_raises_is_seen_and_left_to_dramatiq(diary: Diary, station: Station) -> None:
    broker = station.broker()

    @dramatiq.actor(broker=broker, max_retries=0)
    def fail() -> None:
        raise ValueError("no")

    fail.send()
    with station.worker(broker):
        eventually(lambda: diary.outcomes)

    assert ("failed", "ValueError('no')") in diary.entries
    assert diary.outcomes[0].kind == "dead"


def test_the_result_of_what_a_plugin_drops_is_waited_for_until_the_timeout(diary: Diary, station: Station) -> None:
    broker = station.broker()
    results = station.results()
    broker.add_middleware(Results(backend=results, store_results=True))
    work = dramatiq.actor(lambda: 1, actor_name="work", broker=broker)
    diary.drops = True

    sent = work.send()
    with station.worker(broker):
        eventually(lambda: diary.outcomes)
        with pytest.raises(ResultTimeout):
            sent.get_result(backend=results, block=True, timeout=100)

    assert station.rows() == 0


def test_an_actor_that_is_skipped_leaves_nothing_open(diary: Diary, station: Station) -> None:
    class Skip(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise SkipMessage

    broker = station.broker()
    broker.add_middleware(Skip())

    @dramatiq.actor(broker=broker)
    def work() -> None:
        raise AssertionError

    work.send()
    with station.worker(broker):
        eventually(lambda: diary.outcomes)

    assert [entry[0] for entry in diary.entries] == ["enqueued", "begin", "end"]
