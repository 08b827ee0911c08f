"""Counters and events of rate limiters: exact, whoever comes at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
from pgqrs_dramatiq import PgqrsRateLimiterBackend

from pgqrs_core.testing import eventually

from .dramatiq_support import Station


@pytest.fixture
def backend(station: Station) -> PgqrsRateLimiterBackend:
    return station.limits()


def expire(station: Station, key: str) -> None:
    station.sql("update pgqrs.dramatiq_limits set expires_at = now() - interval '1 second' where key = %s", key)


def value(station: Station, key: str) -> Any:
    found = station.sql("select value from pgqrs.dramatiq_limits where key = %s", key)
    return found[0][0] if found else None


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """Do something in many threads at once, and return what they answer."""
    answers: list[Any] = []
    ready = threading.Barrier(count)

    def run() -> None:
        ready.wait()
        answers.append(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == count
    return answers


class TestCounters:
    def test_add_sets_what_is_absent_or_expired(self, station: Station, backend: PgqrsRateLimiterBackend) -> None:
        assert backend.add("k", 5, 60_000) is True
        assert backend.add("k", 7, 60_000) is False
        assert value(station, "k") == 5
        expire(station, "k")
        assert backend.add("k", 9, 60_000) is True
        assert value(station, "k") == 9

    def test_incr_counts_from_zero_up_to_the_maximum(self, station: Station, backend: PgqrsRateLimiterBackend) -> None:
        assert backend.incr("k", 2, 3, 60_000) is True
        assert backend.incr("k", 2, 3, 60_000) is False
        assert value(station, "k") == 2
        assert backend.incr("k", 1, 3, 60_000) is True
        expire(station, "k")
        assert backend.incr("k", 3, 3, 60_000) is True
        assert value(station, "k") == 3

    def test_an_amount_beyond_the_maximum_is_refused_even_for_a_new_key(
        self, station: Station, backend: PgqrsRateLimiterBackend
    ) -> None:
        assert backend.incr("k", 4, 3, 60_000) is False
        assert value(station, "k") is None

    def test_decr_counts_down_to_the_minimum(self, station: Station, backend: PgqrsRateLimiterBackend) -> None:
        backend.add("k", 2, 60_000)

        assert backend.decr("k", 1, 1, 60_000) is True
        assert backend.decr("k", 1, 1, 60_000) is False
        assert value(station, "k") == 1
        assert backend.decr("absent", 1, 1, 60_000) is False
        assert backend.decr("absent", 1, -1, 60_000) is True
        assert backend.incr("absent", 3, 2, 60_000) is True
        assert value(station, "absent") == 2

    @pytest.mark.parametrize("change", ["incr", "decr"])
    def test_a_change_begins_the_time_to_live_anew_and_a_refusal_does_not(
        self, station: Station, backend: PgqrsRateLimiterBackend, change: str
    ) -> None:
        backend.add("k", 5, 1_000)

        def left() -> float:
            found = station.sql("select extract(epoch from expires_at - now())::float8 from pgqrs.dramatiq_limits")
            return found[0][0]

        if change == "incr":
            assert backend.incr("k", 1, 5, 600_000) is False
            assert left() <= 1
            backend.incr("k", 1, 9, 600_000)
        else:
            assert backend.decr("k", 1, 5, 600_000) is False
            assert left() <= 1
            backend.decr("k", 1, 0, 600_000)
        assert left() > 500

    def test_a_sum_is_limited_and_so_is_the_counter(self, station: Station, backend: PgqrsRateLimiterBackend) -> None:
        calls: list[int] = []

        def keys() -> list[str]:
            calls.append(1)
            return ["w@1", "w@2", "w@3"]

        backend.add("w@2", 2, 60_000)
        assert backend.incr_and_sum("w@1", keys, 1, 3, 60_000) is True
        assert backend.incr_and_sum("w@1", keys, 1, 3, 60_000) is False
        expire(station, "w@2")
        assert backend.incr_and_sum("w@1", keys, 2, 3, 60_000) is True
        assert value(station, "w@1") == 3
        # Once to find out what to lock, and again with the lock.
        assert len(calls) == 6

    def test_sixteen_threads_get_no_more_than_there_is(
        self, station: Station, backend: PgqrsRateLimiterBackend
    ) -> None:
        assert sum(at_once(16, lambda: backend.incr("a", 1, 5, 60_000))) == 5
        assert sum(at_once(16, lambda: backend.add("b", 1, 60_000))) == 1
        keys = [f"c@{number}" for number in range(4)]
        turns = iter(range(16))
        answers = at_once(16, lambda: backend.incr_and_sum(keys[next(turns) % 4], lambda: keys, 1, 5, 60_000))
        assert sum(answers) == 5


class TestEvents:
    def test_whoever_comes_late_finds_the_event_until_it_expires(
        self, station: Station, backend: PgqrsRateLimiterBackend
    ) -> None:
        backend.wait_notify("e", 60_000)

        assert backend.wait("e", 1000) is True
        assert backend.wait("e", None) is True
        expire(station, "e")
        assert backend.wait("e", 50) is False

    def test_a_wait_of_less_than_a_second_ends_in_time(self, backend: PgqrsRateLimiterBackend) -> None:
        backend.add("k", 1, 1000)
        began = time.monotonic()

        assert backend.wait("e", 100) is False
        assert 0.1 <= time.monotonic() - began < 1

    @pytest.mark.parametrize("turn", range(3))
    def test_the_parties_of_a_barrier_go_on_together(self, station: Station, turn: int) -> None:
        # In processes of their own they would not share connections.
        backends = [station.limits(max_connections=number) for number in (3, 4, 5)]
        barrier = Barrier(backends[0], f"b{turn}", ttl=60_000)
        barrier.create(3)
        assert barrier.create(3) is False
        times: list[float] = []

        def arrive(backend: PgqrsRateLimiterBackend) -> None:
            assert Barrier(backend, f"b{turn}", ttl=60_000).wait(timeout=20_000)
            times.append(time.perf_counter())

        threads = [threading.Thread(target=arrive, args=[backend]) for backend in backends[:2]]
        for thread in threads:
            thread.start()
        eventually(lambda: station.sql("select count(*) from pgqrs.dramatiq_waiters") == [(2,)])
        arrive(backends[2])
        for thread in threads:
            thread.join(20)

        assert len(times) == 3
        # It takes a millisecond or two here; other tests may be running.
        assert max(times) - min(times) < 0.5

    def test_a_barrier_that_is_not_blocked_on_counts(self, backend: PgqrsRateLimiterBackend) -> None:
        barrier = Barrier(backend, "b", ttl=60_000)

        assert barrier.create(2) is True
        assert barrier.create(2) is False
        assert barrier.wait(block=False) is False
        assert barrier.wait(block=False) is True


class TestLimiters:
    def test_a_concurrent_limiter_frees_what_it_took(self, backend: PgqrsRateLimiterBackend) -> None:
        limiter = ConcurrentRateLimiter(backend, "mutex", limit=1)

        for _ in range(2):
            with limiter.acquire(), pytest.raises(dramatiq.RateLimitExceeded), limiter.acquire():
                pass

    def test_a_bucket_holds_its_limit(self, backend: PgqrsRateLimiterBackend) -> None:
        limiter = BucketRateLimiter(backend, "bucket", limit=2, bucket=86_400_000)

        def acquire() -> bool:
            with limiter.acquire(raise_on_failure=False) as acquired:
                return bool(acquired)

        assert sum(at_once(8, acquire)) == 2

    def test_a_window_holds_its_limit(self, backend: PgqrsRateLimiterBackend) -> None:
        limiter = WindowRateLimiter(backend, "window", limit=3, window=60)

        def acquire() -> bool:
            with limiter.acquire(raise_on_failure=False) as acquired:
                return bool(acquired)

        assert sum(at_once(8, acquire)) == 3
