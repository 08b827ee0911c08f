"""What networks and poolers do between the crowd and its server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from pgqrs_core.testing import Proxy
from tests.adapters.test_pgbouncer import Pooler, pooler  # noqa: F401 - a fixture

from .crowd import KINDS, Crowd

pytestmark = pytest.mark.faults


@pytest.fixture
def proxy(pgqrs_dsn: str) -> Iterator[Proxy]:
    with Proxy(pgqrs_dsn) as running:
        yield running


def repeatedly(action: Callable[[Proxy], None], times: int = 5, pause: float = 0.5) -> Callable[[Proxy], None]:
    def inject(proxy: Proxy) -> None:
        for _ in range(times):
            action(proxy)
            time.sleep(pause)

    return inject


def refuse(proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut()
    time.sleep(2)
    proxy.refuses = False


def slow_down(proxy: Proxy) -> None:
    proxy.delay = 0.02
    time.sleep(3)
    proxy.delay = 0.0


FAULTS: dict[str, Callable[[Proxy], None]] = {
    "connections are cut": repeatedly(Proxy.cut),
    # Replies to enqueues are replies to their COMMIT: each is a transaction by itself.
    "replies to commits are swallowed": repeatedly(Proxy.swallow_replies, times=3, pause=2.0),
    "connections are half open": repeatedly(Proxy.freeze, times=3, pause=2.0),
    "connections are refused": refuse,
    "everything is late": slow_down,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_when(
    fault: str, kind: str, proxy: Proxy, pgqrs_dsn: str, gather: Callable[..., Crowd]
) -> None:
    options = {**KINDS[kind], "lease": 1.0}
    crowd = gather(proxy.dsn, direct=pgqrs_dsn, pause=0.005, timeout=1.0, **options)
    crowd.begin()

    FAULTS[fault](proxy)
    crowd.flow()

    assert crowd.finish() == []


def test_nothing_is_lost_when_pgbouncer_is_restarted(
    pooler: Pooler,  # noqa: F811
    pgqrs_dsn: str,
    gather: Callable[..., Crowd],
) -> None:
    crowd = gather(pooler.dsn, direct=pgqrs_dsn, pause=0.005, lease=1.0)
    crowd.begin()

    for _ in range(3):
        pooler.stop()
        pooler.start()
        crowd.flow(10)

    assert crowd.finish() == []
