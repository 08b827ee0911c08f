"""With the server gone, whatever a program calls raises Dramatiq's error of the connection, with ours as its cause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.results import Results
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend

from pgqrs_core.errors import Unavailable
from pgqrs_core.testing import Proxy

from .dramatiq_support import Station

MESSAGE = dramatiq.Message("default", "act", (), {}, {})

CALLS: dict[str, Callable[[PgqrsBroker, Any, Any, Any], object]] = {
    "send": lambda broker, act, results, limits: act.send(),
    "send later": lambda broker, act, results, limits: act.send_with_options(delay=1000),
    "enqueue_many": lambda broker, act, results, limits: broker.enqueue_many([MESSAGE, MESSAGE]),
    "group": lambda broker, act, results, limits: dramatiq.group([act.message(), act.message()], broker=broker).run(),
    "pipeline": lambda broker, act, results, limits: dramatiq.pipeline([act.message()], broker=broker).run(),
    "batch": lambda broker, act, results, limits: _in_batch(broker, act),
    "consume": lambda broker, act, results, limits: next(broker.consume("other", timeout=5_000)),
    "join": lambda broker, act, results, limits: broker.join("default", timeout=1_000),
    "flush": lambda broker, act, results, limits: broker.flush("default"),
    "flush_all": lambda broker, act, results, limits: broker.flush_all(),
    "counts": lambda broker, act, results, limits: broker.get_queue_message_counts("default"),
    "result": lambda broker, act, results, limits: MESSAGE.get_result(backend=results),
    "wait for a result": lambda broker, act, results, limits: MESSAGE.get_result(
        backend=results, block=True, timeout=1_000
    ),
    "store a result": lambda broker, act, results, limits: results.store_result(MESSAGE, 1, 1_000),
    "concurrent limit": lambda broker, act, results, limits: ConcurrentRateLimiter(limits, "a")._acquire(),
    "bucket": lambda broker, act, results, limits: BucketRateLimiter(limits, "a")._acquire(),
    "window": lambda broker, act, results, limits: WindowRateLimiter(limits, "a")._acquire(),
    "barrier": lambda broker, act, results, limits: Barrier(limits, "b").create(2),
    "wait at a barrier": lambda broker, act, results, limits: limits.wait("b@events", 1_000),
    "notify": lambda broker, act, results, limits: limits.wait_notify("b@events", 1_000),
}


def _in_batch(broker: PgqrsBroker, act: Any) -> None:
    with broker.batch():
        act.send()


@pytest.mark.parametrize("name", CALLS)
def test_it_raises_an_error_of_the_connection(gone: Any, name: str) -> None:
    with pytest.raises((ConnectionFailed, ConnectionClosed)) as raised:
        CALLS[name](*gone)

    assert isinstance(raised.value.__cause__, Unavailable)


@pytest.fixture
def gone(station: Station) -> Iterator[Any]:
    """A broker and backends that were connected to a server that is there no more."""
    with Proxy(station.dsn) as proxy:
        dsn = psycopg.conninfo.make_conninfo(proxy.dsn, connect_timeout=2)
        results, limits = PgqrsResultBackend(dsn), PgqrsRateLimiterBackend(dsn)
        broker = PgqrsBroker(dsn)
        broker.add_middleware(Results(backend=results))
        broker.declare_queue("other")
        act = dramatiq.actor(lambda: None, actor_name="act", broker=broker)
        act.send()
        results.store_result(MESSAGE, 1, 1_000)
        limits.add("x", 1, 1_000)
        proxy.close()
        yield broker, act, results, limits
        for one in (broker, results, limits):
            with contextlib.suppress(Exception):
                one.close()
