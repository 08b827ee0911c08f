"""Waiting while the one connection that listens hangs, as when a firewall has forgotten it: what is there is seen.

The proxy freezes the connections on which the program has begun to listen, and no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pgqrs_core.testing import Proxy, eventually
from tests.adapters.kombu.kombu_support import url_of

#: Seconds by which a result may be late: a poll comes every five seconds at the latest.
LATE = 8.0


@pytest.fixture
def proxy(pgqrs_dsn: str) -> Iterator[Proxy]:
    with Proxy(pgqrs_dsn) as running:
        yield running


class Waiting:
    """Threads that wait for results."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.found: dict[str, Any] = {}

    def begin(self, name: str, wait: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.found[name] = wait()
            except Exception as error:
                self.found[name] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def end(self, seconds: float) -> dict[str, Any]:
        """Wait at most so long for all; return what each has found."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return self.found


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def freeze_listener(proxy: Proxy) -> None:
    frozen = [0]

    def freeze() -> bool:
        frozen[0] += proxy.freeze(listeners=True)
        return bool(frozen[0])

    eventually(freeze, what="a connection listens")


class TestCelery:
    @pytest.fixture
    def apps(self, proxy: Proxy, pgqrs_dsn: str) -> Iterator[tuple[Any, Any]]:
        """One that waits through the proxy, and one that stores."""
        celery = pytest.importorskip("celery")
        made = []
        for dsn in (proxy.dsn, pgqrs_dsn):
            app = celery.Celery("app", backend=url_of(dsn), set_as_current=False)
            app.backend.store_result("warm", 1, "SUCCESS")
            made.append(app)
        yield made[0], made[1]
        for app in made:
            app.backend.close()
            app.close()

    def test_a_wait_that_is_about_to_end_reads_once_more(
        self, apps: tuple[Any, Any], proxy: Proxy, waiting: Waiting
    ) -> None:
        app, storer = apps
        waiting.begin("a", lambda: app.AsyncResult("a").get(timeout=0.9))
        freeze_listener(proxy)
        storer.backend.store_result("a", 41, "SUCCESS")

        assert waiting.end(LATE) == {"a": 41}

    def test_waits_without_an_end_see_a_result_within_seconds(
        self, apps: tuple[Any, Any], proxy: Proxy, waiting: Waiting
    ) -> None:
        from celery.result import GroupResult

        app, storer = apps
        results = [app.AsyncResult(name) for name in ("b", "c")]
        waiting.begin("get", lambda: app.AsyncResult("a").get())
        waiting.begin("join", lambda: GroupResult("g", results, app=app).join())
        waiting.begin("native", lambda: GroupResult("g", results, app=app).join_native())
        freeze_listener(proxy)
        for number, name in enumerate("abc"):
            storer.backend.store_result(name, number, "SUCCESS")

        assert waiting.end(LATE) == {"get": 0, "join": [1, 2], "native": [1, 2]}

    def test_a_wait_ends_on_time_where_every_connection_hangs(
        self, apps: tuple[Any, Any], proxy: Proxy, waiting: Waiting
    ) -> None:
        from celery.exceptions import TimeoutError as ResultTimeout

        app, _ = apps
        waiting.begin("a", lambda: app.AsyncResult("a").get(timeout=2))
        freeze_listener(proxy)
        proxy.freeze()

        assert isinstance(waiting.end(LATE).get("a"), ResultTimeout)

    def test_replies_to_inspect_are_seen(self, proxy: Proxy, pgqrs_dsn: str, waiting: Waiting) -> None:
        celery = pytest.importorskip("celery")
        from kombu import Connection, Consumer, Exchange, Producer, Queue

        app = celery.Celery("app", broker=url_of(proxy.dsn), set_as_current=False)
        replies = Queue("replies", Exchange("replies"), routing_key="replies", auto_delete=True)
        with app.connection_for_read() as connection, Connection(url_of(pgqrs_dsn)) as other:
            came: list[Any] = []
            with Consumer(connection, [replies], callbacks=[lambda body, message: came.append(body)], no_ack=True):
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.2)
                freeze_listener(proxy)
                # A new wait, as a second call of inspect is.
                with Consumer(connection, [replies], callbacks=[lambda body, message: came.append(body)], no_ack=True):
                    waiting.begin("drain", lambda: connection.drain_events(timeout=1.0))
                    Producer(other).publish("pong", exchange="replies", routing_key="replies")
                    waiting.end(LATE)
        app.close()

        assert came == ["pong"]


class TestDramatiq:
    @pytest.fixture
    def sides(self, proxy: Proxy, pgqrs_dsn: str) -> Iterator[dict[str, Any]]:
        pytest.importorskip("dramatiq")
        from pgqrs_dramatiq import PgqrsRateLimiterBackend, PgqrsResultBackend

        made = {
            "waits": PgqrsResultBackend(proxy.dsn),
            "stores": PgqrsResultBackend(pgqrs_dsn),
            "limits": PgqrsRateLimiterBackend(proxy.dsn),
            "publishes": PgqrsRateLimiterBackend(pgqrs_dsn),
        }
        made["stores"].store_result(_message("warm"), 1, 60_000)
        yield made
        for one in made.values():
            one.close()

    @pytest.mark.parametrize("timeout", [900, 60_000])
    def test_a_result_is_seen(self, sides: dict[str, Any], proxy: Proxy, waiting: Waiting, timeout: int) -> None:
        one = _message("act")
        waiting.begin("act", lambda: sides["waits"].get_result(one, block=True, timeout=timeout))
        freeze_listener(proxy)
        sides["stores"].store_result(one, 41, 60_000)

        assert waiting.end(LATE) == {"act": 41}

    @pytest.mark.parametrize("timeout", [900, None])
    def test_an_event_of_a_barrier_is_seen(
        self, sides: dict[str, Any], proxy: Proxy, waiting: Waiting, timeout: int | None
    ) -> None:
        waiting.begin("event", lambda: sides["limits"].wait("event", timeout))
        freeze_listener(proxy)
        sides["publishes"].wait_notify("event", 60_000)

        assert waiting.end(LATE) == {"event": True}

    def test_a_wait_ends_on_time_where_every_connection_hangs(
        self, sides: dict[str, Any], proxy: Proxy, waiting: Waiting
    ) -> None:
        from dramatiq.results import ResultTimeout

        waiting.begin("act", lambda: sides["waits"].get_result(_message("act"), block=True, timeout=2_000))
        freeze_listener(proxy)
        proxy.freeze()

        assert isinstance(waiting.end(LATE).get("act"), ResultTimeout)


def _message(name: str) -> Any:
    import dramatiq

    return dramatiq.Message("default", name, (), {}, {}, message_id=name)
