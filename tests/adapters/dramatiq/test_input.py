"""What is wrong is said by Dramatiq's own errors, with the remedy, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import BrokerError, ConnectionFailed, QueueNotFound
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend, Refused

from pgqrs_core.errors import SchemaMissing, Unavailable
from pgqrs_core.testing import eventually

from .dramatiq_support import Station, noting

MESSAGE = dramatiq.Message("default", "act", (), {}, {})


@pytest.mark.parametrize("make", [PgqrsBroker, PgqrsResultBackend, PgqrsRateLimiterBackend])
@pytest.mark.parametrize("url", ["postgresql://host:port/name", "nonsense", 5, ""], ids=repr)
def test_an_address_that_is_none_is_said_at_once(make: Callable[[Any], Any], url: Any) -> None:
    with pytest.raises(ConnectionFailed):
        make(url)


def test_a_password_is_never_shown(station: Station) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        PgqrsBroker("postgresql://me:sesame@host:no/name")

    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [{"lease": 0}, {"max_attempts": 0}, {"max_body_bytes": -1}, {"max_connections": 1}, {"schema": ""}],
    ids=str,
)
def test_an_option_out_of_range_is_said_at_once(station: Station, option: dict[str, Any]) -> None:
    with pytest.raises(BrokerError) as caught:
        station.broker(**option)

    assert next(iter(option)).replace("lease", "lease_seconds") in str(caught.value)


def test_two_schemas_in_one_address_are_one_too_many() -> None:
    with pytest.raises(ConnectionFailed, match=r"'one'.*'two'"):
        PgqrsBroker("postgresql://host/name?schema=one", schema="two")


def test_a_server_that_is_away_is_a_connection_error() -> None:
    broker = PgqrsBroker("postgresql://nobody@127.0.0.1:1/nowhere")
    broker.declare_queue("default")

    with pytest.raises(ConnectionFailed) as caught:
        broker.enqueue(MESSAGE)
    assert isinstance(caught.value.__cause__, Unavailable)
    with pytest.raises(ConnectionFailed):
        broker.consume("default")
    with pytest.raises(ConnectionFailed):
        PgqrsResultBackend("postgresql://nobody@127.0.0.1:1/nowhere").get_result(MESSAGE, block=True)


class TestSchema:
    def test_an_empty_database_is_filled_at_the_first_use(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        assert station.sql("select to_regnamespace('pgqrs')") == [(None,)]

        broker.enqueue(MESSAGE)

        assert station.rows() == 1

    def test_it_is_left_alone_if_that_is_wished(self, station: Station) -> None:
        broker = station.broker(create_schema=False)
        broker.declare_queue("default")

        with pytest.raises(ConnectionFailed, match="pgqrs install") as caught:
            broker.enqueue(MESSAGE)

        assert isinstance(caught.value.__cause__, SchemaMissing)
        assert station.sql("select to_regnamespace('pgqrs')") == [(None,)]

    def test_tables_of_results_that_are_missing_are_said(self, station: Station, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")
        broker.enqueue(MESSAGE)
        station.sql("delete from pgqrs.migrations where component = 'dramatiq'")

        with pytest.raises(ConnectionFailed, match=r"dramatiq.*pgqrs install"):
            station.results().get_result(MESSAGE)

    @pytest.mark.parametrize("way", ["argument", "url"])
    def test_the_schema_may_have_another_name(self, station: Station, way: str) -> None:
        from urllib.parse import quote

        from psycopg.conninfo import conninfo_to_dict

        url, options = station.dsn, {"schema": "jobs"}
        if way == "url":
            parts = conninfo_to_dict(station.dsn)
            url = "postgresql://?" + "&".join(f"{key}={quote(str(value), safe='')}" for key, value in parts.items())
            url, options = f"{url}&schema=jobs", {}
        broker = station.broker(url=url, **options)
        broker.declare_queue("default")
        broker.enqueue(MESSAGE)

        assert station.sql("select count(*) from jobs.q_default") == [(1,)]


class TestQueues:
    def test_a_queue_that_nobody_declared_is_not_found(self, station: Station, broker: PgqrsBroker) -> None:
        with pytest.raises(QueueNotFound, match="default"):
            broker.enqueue(MESSAGE)
        with pytest.raises(QueueNotFound):
            broker.get_queue_message_counts("default")
        with pytest.raises(QueueNotFound):
            broker.flush("default")

        assert station.sql("select name from pgqrs.queues") == []

    def test_a_queue_that_another_service_created_is_found(self, station: Station, broker: PgqrsBroker) -> None:
        other = station.broker()
        other.declare_queue("default")
        other.enqueue(MESSAGE)

        broker.enqueue(MESSAGE)

        assert station.rows() == 2

    def test_a_name_that_no_queue_may_have_is_refused(self, broker: PgqrsBroker) -> None:
        for name in ("", "x" * 256, "a\0b"):
            with pytest.raises(Refused):
                broker.declare_queue(name)

    def test_a_queue_that_was_deleted_is_made_again(self, station: Station, broker: PgqrsBroker) -> None:
        from pgqrs_core.operations.queues import delete_queue

        broker.declare_queue("default")
        broker.enqueue(MESSAGE)
        broker._database.engine.transact(delete_queue, "default")
        broker.enqueue(MESSAGE)

        assert station.rows() == 1

    def test_a_worker_goes_on_when_its_queue_is_deleted(
        self, station: Station, broker: PgqrsBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pgqrs_core.operations.queues import delete_queue

        monkeypatch.setattr(dramatiq.worker, "CONSUMER_RESTART_DELAY_SECS", 0.1)
        done: list[int] = []
        act = dramatiq.actor(noting(done.append), actor_name="act", broker=broker)
        with station.worker(broker):
            act.send(1)
            eventually(lambda: done == [1])
            broker.join("default", timeout=10_000)
            station.broker(max_connections=5)._database.engine.transact(delete_queue, "default")
            eventually(lambda: station.sql("select 1 from pgqrs.queues"))
            act.send(2)
            eventually(lambda: done == [1, 2])


class TestMessages:
    def test_a_body_over_the_limit_is_refused(self, station: Station) -> None:
        broker = station.broker(max_body_bytes=1000)
        broker.declare_queue("default")
        large = MESSAGE.copy(args=("x" * 1000,))

        with pytest.raises(Refused, match="1,000 bytes"):
            broker.enqueue(large)
        with pytest.raises(ValueError, match="1,000 bytes"):
            broker.enqueue_many([MESSAGE, large])

        assert station.rows() == 0

    @pytest.mark.parametrize("priority", [-1, "high", 1.5, True])
    def test_a_priority_that_is_none_is_refused(self, broker: PgqrsBroker, priority: Any) -> None:
        broker.declare_queue("default")

        with pytest.raises(Refused, match="broker_priority"):
            broker.enqueue(MESSAGE.copy(options={"broker_priority": priority}))

    def test_a_delay_of_centuries_is_refused(self, broker: PgqrsBroker) -> None:
        broker.declare_queue("default")

        with pytest.raises(Refused, match="delay"):
            broker.enqueue(MESSAGE, delay=10**15)

    def test_an_option_of_an_actor_that_is_unknown_is_refused(self, broker: PgqrsBroker) -> None:
        with pytest.raises(ValueError, match="invented"):
            dramatiq.actor(lambda: None, actor_name="act", broker=broker, invented=1)


@pytest.mark.parametrize("name", ["delay", "eta"])
@pytest.mark.parametrize("value", ["5", math.nan, math.inf, True, [1], 1e300], ids=repr)
def test_a_time_that_is_none_is_refused(station: Station, broker: PgqrsBroker, name: str, value: Any) -> None:
    broker.declare_queue("default")
    broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
    delay = value if name == "delay" else None
    message = dramatiq.Message("default", "act", (), {}, {"eta": value} if name == "eta" else {})
    with pytest.raises(Refused, match="must be a number"):
        broker.enqueue(message, delay=delay)

    assert station.rows() == 1
