"""Publishing many at once, and in the caller's own transaction."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from kombu import Exchange, Producer, Queue
from pgqrs_kombu import in_transaction
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.errors import InvalidArgument
from tests.support.versions import needs_batches, sqlalchemy_engine

from .kombu_support import Bench, Inbox


def declared(bench: Bench) -> Producer:
    connection = bench.connect()
    Queue("q")(connection.channel()).declare()
    return Producer(connection)


@needs_batches
def test_a_batch_is_stored_whole_or_not_at_all(bench: Bench) -> None:
    producer = declared(bench)
    with producer.batch():
        for number in range(10):
            producer.publish(number, routing_key="q", priority=number % 2)
        assert bench.rows("q") == 0
    assert bench.rows("q") == 10
    with pytest.raises(ZeroDivisionError), producer.batch():
        _publish_and_fail(producer)
    assert bench.rows("q") == 10
    assert Inbox(bench.connect(), Queue("q")).bodies(10) == [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]


@needs_batches
def test_a_batch_to_many_queues_is_one_transaction(bench: Bench) -> None:
    producer = declared(bench)
    fan = Exchange("fan", "fanout")
    for queue in (Queue("a", fan), Queue("b", fan), Queue("m", fan, auto_delete=True)):
        queue(producer.channel).declare()
    bench.sql("create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    bench.sql("create trigger t before insert on pgqrs.q_b for each row execute function refuse()")
    with pytest.raises(producer.connection.channel_errors), producer.batch():
        producer.publish("x", exchange="fan")
    assert (bench.rows("a"), bench.rows("b")) == (0, 0)
    assert bench.sql("select count(*) from pgqrs.kombu_mail") == [(0,)]


@pytest.mark.parametrize("kind", ["psycopg", "sqlalchemy", "session", "django"])
@pytest.mark.parametrize("commit", [True, False])
def test_what_is_published_in_a_transaction_shares_its_fate(bench: Bench, kind: str, commit: bool) -> None:
    producer = declared(bench)
    connection, finish, close = _open(kind, bench.dsn)
    try:
        with in_transaction(connection):
            producer.publish("x", routing_key="q")
        assert bench.rows("q") == 0
        finish(commit)
    finally:
        close()
    assert bench.rows("q") == int(commit)


@needs_batches
def test_a_waiting_consumer_is_told_of_each_queue_after_the_commit(bench: Bench) -> None:
    producer = declared(bench)
    Queue("r")(producer.channel).declare()
    bench.sql("insert into pgqrs.waiters select queue_id, 1, now() + interval '2 minutes' from pgqrs.queues")
    session, finish, close = _open("session", bench.dsn)
    with psycopg.connect(bench.dsn, autocommit=True) as ear:
        ear.execute('listen "pgqrs:1"')
        ear.execute("select pg_advisory_lock(1)")
        with in_transaction(session), producer.batch():
            producer.publish("x", routing_key="q")
            producer.publish("x", routing_key="r")
        finish(True)
        close()
        told = {notice.payload for notice in ear.notifies(timeout=20, stop_after=2)}
    assert told == {str(row[0]) for row in bench.sql("select queue_id from pgqrs.queues")}


def test_after_the_block_publishing_is_as_before(bench: Bench) -> None:
    producer = declared(bench)
    with psycopg.connect(bench.dsn) as connection:
        with in_transaction(connection):
            producer.publish("in", routing_key="q")
        producer.publish("out", routing_key="q")
        assert bench.rows("q") == 1
        connection.rollback()
    with pytest.raises(producer.connection.channel_errors), in_transaction("nonsense"):
        producer.publish("x", routing_key="q")
    assert InvalidArgument


def _publish_and_fail(producer: Producer) -> None:
    producer.publish("x", routing_key="q")
    raise ZeroDivisionError


def _open(kind: str, dsn: str) -> tuple[Any, Any, Any]:
    if kind == "psycopg":
        connection: Any = psycopg.connect(dsn)
        return connection, lambda commit: connection.commit() if commit else connection.rollback(), connection.close
    if kind == "django":
        return _open_django(dsn)
    pytest.importorskip("sqlalchemy")
    engine = sqlalchemy_engine(dsn)
    if kind == "session":
        from sqlalchemy.orm import Session

        connection = Session(engine)
    else:
        connection = engine.connect()

    def close() -> None:
        connection.close()
        engine.dispose()

    return connection, lambda commit: connection.commit() if commit else connection.rollback(), close


def _open_django(dsn: str) -> tuple[Any, Any, Any]:
    django = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure()
        django.setup()
    from django.db.backends.postgresql.base import DatabaseWrapper

    parts = conninfo_to_dict(dsn)
    wrapper = DatabaseWrapper(
        {
            "NAME": parts.pop("dbname"),
            "USER": parts.pop("user", ""),
            "PASSWORD": parts.pop("password", ""),
            "HOST": parts.pop("host", ""),
            "PORT": parts.pop("port", ""),
            "OPTIONS": {},
            "TIME_ZONE": None,
            "CONN_MAX_AGE": 0,
            "CONN_HEALTH_CHECKS": False,
            "AUTOCOMMIT": True,
            "ATOMIC_REQUESTS": False,
            "TEST": {},
            "ENGINE": "django.db.backends.postgresql",
        },
        alias="default",
    )
    wrapper.ensure_connection()
    wrapper.set_autocommit(False)
    return wrapper, lambda commit: wrapper.commit() if commit else wrapper.rollback(), wrapper.close
