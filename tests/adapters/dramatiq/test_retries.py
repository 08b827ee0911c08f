"""Retries: as often as they should be, when they should be, and never lost, whatever happens on the way."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import CurrentMessage, Middleware, MiddlewareError
from pgqrs_dramatiq import PgqrsBroker
from pgqrs_dramatiq.publishing import Publisher

from pgqrs_core.errors import Unavailable
from pgqrs_core.testing import eventually
from pgqrs_core.watch import POLL

from .dramatiq_support import Station, quiet, take


class TestTimes:
    @pytest.mark.parametrize("run", range(4))
    def test_twelve_immediate_attempts_are_twelve_and_quick(
        self, station: Station, broker: PgqrsBroker, run: int
    ) -> None:
        runs: list[float] = []

        @dramatiq.actor(broker=broker, max_retries=11, min_backoff=0, max_backoff=0)
        def act() -> None:
            runs.append(time.perf_counter())
            raise ValueError(run)

        with quiet(), station.worker(broker):
            act.send()
            broker.join("default", timeout=20_000, interval=10)

        gaps = [later - earlier for earlier, later in itertools.pairwise(runs)]
        assert len(runs) == 12
        # Those that only a poll finds take half of the time between two on average, some of them all of it.
        assert statistics.median(gaps) < POLL / 4
        assert len(station.dead()) == 1

    def test_a_retry_with_a_delay_is_neither_early_nor_a_poll_late(self, station: Station, broker: PgqrsBroker) -> None:
        runs: list[float] = []

        @dramatiq.actor(broker=broker)
        def act() -> None:
            runs.append(time.perf_counter())
            if len(runs) < 4:
                raise dramatiq.Retry(delay=100)

        with station.worker(broker):
            act.send()
            broker.join("default", timeout=20_000)

        gaps = [later - earlier for earlier, later in itertools.pairwise(runs)]
        assert len(runs) == 4
        assert all(gap >= 0.099 for gap in gaps)
        assert min(gaps) < 0.15


class TestPlace:
    def test_a_retry_takes_the_place_of_its_message_with_the_news(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker, max_retries=1, min_backoff=60_000)
        def act() -> None:
            raise ValueError("first")

        with quiet(), station.worker(broker):
            act.send()
            eventually(lambda: broker.get_queue_message_counts("default") == (0, 1, 0))

        (row,) = station.sql("select message_id, attempt, last_error, convert_from(body, 'utf8') from pgqrs.q_default")
        assert row[:2] == (1, 0)
        assert row[2]["type"] == "ValueError"
        assert '"retries":1' in row[3]

    def test_an_actor_that_enqueues_its_own_message_makes_a_second_one(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.add_middleware(CurrentMessage())
        runs: list[int] = []

        @dramatiq.actor(broker=broker)
        def act() -> None:
            runs.append(station.rows())
            if len(runs) < 3:
                broker.enqueue(CurrentMessage.get_current_message())
                runs[-1] = station.rows()

        with station.worker(broker, threads=1):
            act.send()
            broker.join("default", timeout=10_000)

        # The one that runs, and the one that it enqueued.
        assert runs[0] == 2
        assert len(runs) == 3

    def test_a_failed_message_that_goes_to_another_broker_is_a_message_there(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
        elsewhere = station.broker(schema="elsewhere")
        elsewhere.declare_queue("default")
        consumer = broker.consume("default", timeout=1000)
        message = take(consumer)
        message.stuff_exception(ValueError("no"))

        elsewhere.enqueue(message)
        consumer.ack(message)
        consumer.close()

        assert station.rows() == 0
        assert station.sql("select count(*) from elsewhere.q_default") == [(1,)]

    def test_priorities_survive_a_retry(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker, min_backoff=60_000, broker_priority=3)
        def act() -> None:
            raise ValueError

        with quiet(), station.worker(broker):
            act.send()
            eventually(lambda: broker.get_queue_message_counts("default") == (0, 1, 0))

        assert station.sql("select priority from pgqrs.q_default") == [(3,)]

    def test_a_zombies_retry_does_not_touch_what_another_worker_runs(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
        consumer = broker.consume("default", timeout=1000)
        zombie = take(consumer)
        station.let_leases_end()
        other = station.broker(max_connections=5)
        other.declare_queue("default")
        second = other.consume("default", timeout=1000)
        live = take(second)

        zombie.stuff_exception(ValueError("late"))
        broker.enqueue(zombie, delay=0)
        consumer.ack(zombie)
        consumer.close()

        assert station.rows() == 1
        second.ack(live)
        second.close()
        assert station.rows() == 0


class TestFailures:
    def test_a_retry_that_cannot_be_stored_leaves_the_message(
        self, station: Station, broker: PgqrsBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs: list[int] = []
        real = Publisher.retry

        def fail(*args: Any) -> None:
            if len(runs) == 1:
                raise Unavailable("the server is gone", target="here")
            real(*args)

        monkeypatch.setattr(Publisher, "retry", fail)

        @dramatiq.actor(broker=broker, max_retries=2, min_backoff=0, max_backoff=0)
        def act() -> None:
            runs.append(1)
            if len(runs) < 3:
                raise ValueError

        with quiet(), station.worker(broker):
            act.send()
            broker.join("default", timeout=20_000)

        assert len(runs) == 3

    def test_a_retry_that_middleware_refuses_leaves_the_message(self, station: Station, broker: PgqrsBroker) -> None:
        class Veto(Middleware):
            def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
                if message.options.get("retries") and len(runs) == 1:
                    raise MiddlewareError("no")

        broker.add_middleware(Veto())
        runs: list[int] = []

        @dramatiq.actor(broker=broker)
        def act() -> None:
            runs.append(1)
            if len(runs) == 1:
                raise ValueError

        with quiet(), station.worker(broker):
            act.send()
            broker.join("default", timeout=20_000)

        assert len(runs) == 2

    def test_the_retry_of_a_message_that_grew_too_large_is_dead_in_the_end(self, station: Station) -> None:
        broker = station.broker(max_body_bytes=600, max_attempts=2)
        runs: list[int] = []

        @dramatiq.actor(broker=broker, min_backoff=0)
        def act(text: str) -> None:
            runs.append(1)
            raise ValueError("x" * 600)

        with quiet(), station.worker(broker):
            act.send("short")
            broker.join("default", timeout=20_000)

        assert len(runs) == 2
        assert station.dead()[0]["type"] == "AttemptsExhausted"
