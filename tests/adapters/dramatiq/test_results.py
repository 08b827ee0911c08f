"""Results: stored, waited for, expired; of values, of nothing, and of failures."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import dramatiq
import pytest
from dramatiq.encoder import PickleEncoder
from dramatiq.middleware import CurrentMessage, GroupCallbacks
from dramatiq.results import ResultFailure, ResultMissing, Results, ResultTimeout
from pgqrs_dramatiq import PgqrsBroker, PgqrsResultBackend

from pgqrs_core.config import Config
from pgqrs_core.testing import eventually

from .dramatiq_support import Station, quiet


@pytest.fixture
def backend(station: Station) -> PgqrsResultBackend:
    return station.results()


def message(name: str = "act") -> dramatiq.Message[Any]:
    return dramatiq.Message("default", name, (), {}, {})


class TestBackend:
    @pytest.mark.parametrize("value", [None, 0, "", "a\0b", [1, {"x": None}]], ids=repr)
    def test_what_is_stored_is_a_result_whatever_it_is(self, backend: PgqrsResultBackend, value: Any) -> None:
        one = message()
        backend.store_result(one, value, 60_000)

        assert backend.get_result(one) == value
        assert backend.get_result(one, block=True, timeout=0) == value

    def test_what_is_not_there_is_missing(self, backend: PgqrsResultBackend) -> None:
        with pytest.raises(ResultMissing):
            backend.get_result(message())

    @pytest.mark.parametrize("timeout", [0, 150])
    def test_a_wait_ends_when_it_should(self, backend: PgqrsResultBackend, timeout: int) -> None:
        with pytest.raises(ResultMissing):
            backend.get_result(message())
        began = time.monotonic()

        with pytest.raises(ResultTimeout):
            backend.get_result(message(), block=True, timeout=timeout)

        assert timeout / 1000 <= time.monotonic() - began < timeout / 1000 + 1

    def test_a_result_that_has_expired_is_missing(self, station: Station, backend: PgqrsResultBackend) -> None:
        one = message()
        backend.store_result(one, 1, 60_000)
        station.sql("update pgqrs.dramatiq_results set expires_at = now() - interval '1 second'")

        with pytest.raises(ResultMissing):
            backend.get_result(one)

    def test_a_result_stored_again_replaces_the_first(self, backend: PgqrsResultBackend) -> None:
        one = message()
        backend.store_result(one, 1, 60_000)
        backend.store_result(one, 2, 60_000)

        assert backend.get_result(one) == 2

    @pytest.mark.parametrize("listen", [True, False])
    def test_a_hundred_waiters_share_the_connections(self, station: Station, listen: bool) -> None:
        config = Config.load(url=station.dsn, max_connections=4, enable_listen_notify=listen)
        backend = station._keep(PgqrsResultBackend(config))
        storing = station.results(max_connections=3)
        storing.store_result(message(), 0, 60_000)
        messages = [message() for _ in range(100)]
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda one=one: found.append(backend.get_result(one, block=True, timeout=20_000)))
            for one in messages
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: station.sql("select count(*) from pgqrs.dramatiq_waiters") == [(100,)])
        for number, one in enumerate(messages):
            storing.store_result(one, number, 60_000)
        most = station.connections()
        for thread in threads:
            thread.join(20)

        assert sorted(found) == list(range(100))
        assert most <= 4 + 2
        eventually(lambda: station.sql("select count(*) from pgqrs.dramatiq_waiters") == [(0,)])

    def test_who_waits_is_woken_and_does_not_poll(self, station: Station, backend: PgqrsResultBackend) -> None:
        storing = station.results(max_connections=3)
        storing.store_result(message(), 0, 60_000)
        seconds: list[float] = []
        for _ in range(7):
            one = message()
            ended: list[float] = []

            def wait(one: Any = one, ended: list[float] = ended) -> None:
                backend.get_result(one, block=True, timeout=20_000)
                ended.append(time.monotonic())

            thread = threading.Thread(target=wait)
            thread.start()
            eventually(lambda: station.sql("select 1 from pgqrs.dramatiq_waiters"))
            stored = time.monotonic()
            storing.store_result(one, 1, 60_000)
            thread.join(20)
            seconds.append(ended[0] - stored)
            eventually(lambda: not station.sql("select 1 from pgqrs.dramatiq_waiters"))

        # A look a second would find most of them late: each wait begins when another has just been found.
        assert statistics.median(seconds) < 0.4

    def test_the_connections_may_be_lost_while_somebody_waits(
        self, station: Station, backend: PgqrsResultBackend
    ) -> None:
        one = message()
        backend.store_result(message(), 0, 60_000)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(backend.get_result(one, block=True, timeout=20_000)))
        thread.start()
        eventually(lambda: station.sql("select 1 from pgqrs.dramatiq_waiters"))

        # What a crash of the server does to an unlogged table.
        station.sql("truncate pgqrs.dramatiq_waiters")
        assert station.terminate()
        eventually(lambda: station.sql("select 1 from pgqrs.dramatiq_waiters"))
        station.results(max_connections=3).store_result(one, 7, 60_000)

        thread.join(20)
        assert found == [7]

    def test_another_encoder_may_be_used_for_results(self, station: Station) -> None:
        backend = station.results(encoder=PickleEncoder())
        one = message()
        backend.store_result(one, {1, 2}, 60_000)

        assert backend.get_result(one) == {1, 2}

    def test_what_is_closed_opens_again(self, backend: PgqrsResultBackend) -> None:
        one = message()
        backend.store_result(one, 1, 60_000)
        backend.close()
        backend.close()

        assert backend.get_result(one) == 1

    def test_what_has_expired_is_removed(self, station: Station) -> None:
        config = Config.load(url=station.dsn, max_connections=4, cleanup_interval_seconds=1)
        broker = station._keep(PgqrsBroker(config))
        broker.declare_queue("default")
        backend = station._keep(PgqrsResultBackend(config))
        backend.store_result(message(), 1, 1)

        with station.worker(broker):
            eventually(lambda: station.sql("select count(*) from pgqrs.dramatiq_results") == [(0,)])


class TestMiddleware:
    @pytest.fixture(autouse=True)
    def results(self, station: Station, broker: PgqrsBroker, backend: PgqrsResultBackend) -> None:
        broker.add_middleware(Results(backend=backend, store_results=True))
        broker.add_middleware(GroupCallbacks(station.limits()))
        broker.add_middleware(CurrentMessage())

    def test_broker_and_results_share_their_connections(self, station: Station, broker: PgqrsBroker) -> None:
        act = dramatiq.actor(lambda: 1, actor_name="act", broker=broker)

        with station.worker(broker):
            for _ in range(20):
                assert act.send().get_result(backend=broker.get_results_backend(), block=True) == 1
            assert station.connections() <= 4

        broker.close()
        eventually(lambda: station.connections() == 0)

    def test_a_failure_is_told_as_soon_as_the_message_is_dead(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker, max_retries=1, min_backoff=0, max_backoff=0)
        def act() -> None:
            raise ValueError("no")

        with quiet(), station.worker(broker):
            sent = act.send()
            with pytest.raises(ResultFailure, match="ValueError: no"):
                sent.get_result(backend=broker.get_results_backend(), block=True, timeout=20_000)

    def test_a_message_that_kills_its_workers_is_told_too(self, station: Station, broker: PgqrsBroker) -> None:
        act = dramatiq.actor(lambda: 1, actor_name="act", broker=broker)
        sent = act.send()
        station.sql("update pgqrs.q_default set attempt = 20")

        with quiet(), station.worker(broker), pytest.raises(ResultFailure, match="AttemptsExhausted"):
            sent.get_result(backend=broker.get_results_backend(), block=True, timeout=20_000)

    def test_the_result_of_an_unknown_actor_is_waited_for_until_the_timeout(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        broker.declare_queue("default")
        sent = broker.enqueue(message("nobody"))

        with quiet(), station.worker(broker):
            eventually(lambda: station.sql("select 1 from pgqrs.q_default where lane < 0"))
            with pytest.raises(ResultTimeout):
                sent.get_result(backend=broker.get_results_backend(), block=True, timeout=100)

    def test_results_flow_through_a_pipeline(self, station: Station, broker: PgqrsBroker) -> None:
        @dramatiq.actor(broker=broker)
        def add(x: int, y: int) -> int:
            return x + y

        with station.worker(broker):
            pipe = dramatiq.pipeline([add.message(1, 2), add.message(3), add.message(4)], broker=broker).run()
            assert pipe.get_result(block=True) == 10
            assert list(pipe.get_results()) == [3, 6, 10]

    def test_a_group_runs_its_callback_once_when_all_have_succeeded(
        self, station: Station, broker: PgqrsBroker
    ) -> None:
        called: list[int] = []
        together = threading.Barrier(5, timeout=20)

        @dramatiq.actor(broker=broker)
        def member(number: int) -> int:
            together.wait()
            return number

        callback = dramatiq.actor(lambda: called.append(1), actor_name="callback", broker=broker)
        with station.worker(broker, threads=8):
            group = dramatiq.group([member.message(number) for number in range(5)], broker=broker)
            group.add_completion_callback(callback.message())
            group.run()
            assert list(group.get_results(block=True)) == list(range(5))
            broker.join("default", timeout=10_000)

        assert called == [1]

    def test_a_group_with_a_failing_member_does_not_call_back(self, station: Station, broker: PgqrsBroker) -> None:
        called: list[int] = []

        @dramatiq.actor(broker=broker, max_retries=0)
        def member(number: int) -> int:
            if number == 1:
                raise ValueError("one")
            return number

        callback = dramatiq.actor(lambda: called.append(1), actor_name="callback", broker=broker)
        with quiet(), station.worker(broker):
            group = dramatiq.group([member.message(number) for number in range(3)], broker=broker)
            group.add_completion_callback(callback.message())
            group.run()
            broker.join("default", timeout=10_000)
            results = group.get_results()
            assert next(results) == 0
            with pytest.raises(ResultFailure, match="one"):
                next(results)

        assert called == []

    def test_success_and_failure_call_their_actors(self, station: Station, broker: PgqrsBroker) -> None:
        told: list[Any] = []

        @dramatiq.actor(broker=broker)
        def success(data: dict[str, Any], result: int) -> None:
            told.append((data["actor_name"], result))

        @dramatiq.actor(broker=broker)
        def failure(data: dict[str, Any], error: dict[str, str]) -> None:
            told.append((data["actor_name"], error["type"]))

        @dramatiq.actor(broker=broker, on_success="success", on_failure="failure", max_retries=0)
        def act(number: int) -> float:
            return 1 / number

        with quiet(), station.worker(broker):
            act.send(1)
            act.send(0)
            eventually(lambda: len(told) == 2)
            broker.join("default", timeout=10_000)

        assert set(told) == {("act", 1.0), ("act", "ZeroDivisionError")}
