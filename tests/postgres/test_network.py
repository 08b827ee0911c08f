"""What the network does to connections, each test on the blocking and on the asynchronous engine."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from harness import AsyncHarness, ask, meanwhile, until
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import EnqueueUnknown, TimedOut, Unavailable
from pgqrs_core.operations import queues, schema, settle
from pgqrs_core.sql import Query
from pgqrs_core.testing import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Harness


@pytest.fixture
def proxy(pgqrs_dsn: str) -> Iterator[Proxy]:
    with Proxy(pgqrs_dsn) as running:
        yield running


@pytest.fixture
def far(open_harness: Callable[..., Harness], proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """An engine whose server is behind the proxy, and is given up after half a second."""
    monkeypatch.setattr("pgqrs_core.drivers.patience._GRACE", 0.3)
    harness = open_harness(proxy.dsn, query_timeout_seconds=0.2)
    harness.transact(schema.install, harness.engine.schema)
    harness.create("jobs")
    return harness


def stored(dsn: str) -> int:
    return int(ask(dsn, "select count(*) from pgqrs.q_jobs")[0][0])


def test_an_enqueue_whose_reply_never_comes_is_of_unknown_outcome(far: Harness, proxy: Proxy, pgqrs_dsn: str) -> None:
    # Prepared at its first use, one message is all that a statement takes; with a time to live it is the same statement.
    far.send(b"first", ttl=60)
    proxy.swallow_replies()

    with pytest.raises(EnqueueUnknown, match="no answer within"):
        far.send(b"second", ttl=60)

    # It did arrive, and the next one goes over a new connection.
    far.send(b"third")
    assert stored(pgqrs_dsn) == 3


def test_after_a_lost_reply_an_enqueue_under_the_same_key_stores_nothing_even_if_the_first_was_consumed(
    far: Harness, proxy: Proxy, pgqrs_dsn: str
) -> None:
    # From the second time on a statement is prepared, and one message is all it takes.
    far.send(b"first", idempotency_key="j")
    proxy.swallow_replies()
    with pytest.raises(EnqueueUnknown, match="Enqueue again with the same idempotency_key"):
        far.send(b"second", idempotency_key="k")
    found = far.take()
    far.on("jobs", settle.ack, [item.lease for item in found])

    (number,) = far.send(b"second", idempotency_key="k")

    assert [(item.id, item.body) for item in found][1:] == [(number, b"second")]
    assert stored(pgqrs_dsn) == 0


def test_a_server_that_hangs_is_given_up_and_met_again(far: Harness, proxy: Proxy, pgqrs_dsn: str) -> None:
    far.send(b"first")
    proxy.freeze()

    with pytest.raises(Unavailable, match="no answer within"):
        far.send(b"second")

    far.send(b"third")
    assert far.bodies() == [b"first", b"third"]


def test_a_transaction_that_hangs_is_given_up(far: Harness, proxy: Proxy) -> None:
    far.send(b"first")
    proxy.freeze()

    with pytest.raises(Unavailable, match="no answer within"):
        far.create("more")

    far.create("more")
    assert far.run(queues.list_queues)[0].name == "jobs"


def test_a_waiting_consumer_whose_connections_hang_is_told_so_and_served_over_new_ones(
    far: Harness, proxy: Proxy, pgqrs_dsn: str
) -> None:
    def send_late() -> None:
        until(far.waits_for, "it waits")
        proxy.freeze()
        ask(pgqrs_dsn, "insert into pgqrs.q_jobs (lane, body) values (0, 'late')")

    with meanwhile(send_late), pytest.raises(Unavailable, match="no answer within"):
        far.bodies(patience=30)

    assert far.bodies() == [b"late"]


def test_a_connection_that_is_cut_is_replaced(far: Harness, proxy: Proxy) -> None:
    far.send(b"first")
    proxy.cut()

    assert far.bodies() == [b"first"]


def test_a_statement_that_may_take_its_time_is_waited_for(far: Harness) -> None:
    def nap() -> Op[Any]:
        return (yield Execute(Query("nap", "select pg_sleep(1)", frozenset({"patient"}))))

    assert far.run(nap)


def test_a_body_larger_than_all_buffers_gets_through(open_harness: Callable[..., Harness], proxy: Proxy) -> None:
    far = open_harness(proxy.dsn)
    far.transact(schema.install, far.engine.schema)
    far.create("large", max_body_bytes=50_000_000)
    body = bytes(range(256)) * 40_000
    proxy.delay = 0.0001
    far.send(body, queue="large")

    assert far.bodies(queue="large") == [body]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of something that takes connections and never says a word, as if a firewall swallowed the packets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def behind(silent_port: int, dsn: str) -> str:
    """An address of two hosts, of which the first is silent; or of the silent one alone."""
    real = conninfo_to_dict(dsn)
    hosts = {"host": f"127.0.0.1,{real.get('host', '')}", "port": f"{silent_port},{real.get('port', 5432)}"}
    return make_conninfo("", **{**real, **hosts})


def use_once(harness: Harness, *, relaxed: bool) -> None:
    """Take a connection and give it back."""
    connections = harness.engine.connections
    if isinstance(harness, AsyncHarness):

        async def use() -> None:
            await connections.put(await connections.get(relaxed=relaxed))

        harness.do(use)
    else:
        connections.put(connections.get(relaxed=relaxed))


def let_run(*harnesses: Harness) -> None:
    """Let the event loops of harnesses run for a moment."""
    for harness in harnesses:
        if isinstance(harness, AsyncHarness):
            harness.loop.run_until_complete(asyncio.sleep(0.02))


def get_twice(harness: Harness, *, relaxed: bool) -> list[BaseException | None]:
    """Take a connection and give it back, in two threads or tasks at once; return what each raised, the first one first."""
    connections = harness.engine.connections
    if isinstance(harness, AsyncHarness):

        async def use() -> None:
            await connections.put(await connections.get(relaxed=relaxed))

        async def both() -> list[Any]:
            return await asyncio.gather(use(), use(), return_exceptions=True)

        return harness.do(both)  # type: ignore[no-any-return]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: connections.put(connections.get(relaxed=relaxed)))
        until(lambda: connections.total == 1, "a connection is being opened")
        second = pool.submit(lambda: connections.put(connections.get(relaxed=relaxed)))
        return [first.exception(), second.exception()]


@pytest.mark.parametrize("relaxed", [True, False])
def test_a_caller_waits_for_the_second_of_two_hosts_if_the_first_is_silent(
    open_harness: Callable[..., Harness], silent_port: int, pgqrs_dsn: str, relaxed: bool
) -> None:
    harness = open_harness(behind(silent_port, pgqrs_dsn), max_connections=2, connection_timeout_seconds=2)

    assert get_twice(harness, relaxed=relaxed) == [None, None]


@pytest.mark.parametrize("relaxed", [True, False])
def test_a_connection_that_took_long_to_open_is_not_closed_as_soon_as_others(
    open_harness: Callable[..., Harness], silent_port: int, pgqrs_dsn: str, relaxed: bool
) -> None:
    slow = open_harness(
        behind(silent_port, pgqrs_dsn), connection_timeout_seconds=2, performance={"connection_idle_seconds": 0.3}
    )
    quick = open_harness(performance={"connection_idle_seconds": 0.3})

    for harness in (slow, quick):
        assert use_once(harness, relaxed=relaxed) is None

    def pools() -> tuple[int, int]:
        let_run(slow, quick)
        return slow.engine.connections.total, quick.engine.connections.total

    until(lambda: pools()[1] == 0, "that which was opened at once is closed")
    began = time.monotonic()
    until(lambda: pools()[0] == 0 or time.monotonic() - began > 3 * 0.3, "thrice the time has passed")
    assert pools() == (1, 0)


def test_a_caller_is_not_told_to_raise_max_connections_where_no_host_answers(
    open_harness: Callable[..., Harness], silent_port: int
) -> None:
    # libpq waits for 2 seconds at least.
    url = f"postgresql://127.0.0.1:{silent_port},127.0.0.1:{silent_port},127.0.0.1:{silent_port}/x?sslmode=disable"
    harness = open_harness(url, max_connections=2, connection_timeout_seconds=1)

    first, second = get_twice(harness, relaxed=False)

    assert isinstance(first, Unavailable)
    assert isinstance(second, TimedOut)
    assert "1 of 1 are being opened" in str(second)
    assert "max_connections" not in str(second)


def test_a_caller_is_told_to_raise_max_connections_where_all_are_in_use(harness: Harness) -> None:
    far = type(harness)(harness.dsn, max_connections=2, connection_timeout_seconds=1)
    try:
        link = far.do(far.engine.connections.get, relaxed=False)
        with pytest.raises(TimedOut, match="all 1 are in use; raise max_connections"):
            far.do(far.engine.connections.get, relaxed=False)
        far.do(far.engine.connections.put, link)
    finally:
        far.close()
