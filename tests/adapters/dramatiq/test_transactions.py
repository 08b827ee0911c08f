"""Enqueueing in the caller's transaction: it follows his commit and his rollback, whatever kind of connection he has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import psycopg
import pytest
from pgqrs_dramatiq import PgqrsBroker, Refused
from psycopg.conninfo import conninfo_to_dict

from tests.support.versions import sqlalchemy_engine

from .dramatiq_support import Station, take


@contextmanager
def with_psycopg(dsn: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    with psycopg.connect(dsn) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def with_sqlalchemy(dsn: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy_engine(dsn)
    with orm.Session(engine) as session:
        yield session, session.commit, session.rollback
    engine.dispose()


@contextmanager
def with_django(dsn: str) -> Iterator[tuple[Any, Callable[[], None], Callable[[], None]]]:
    pytest.importorskip("django")
    from django.conf import settings
    from django.db.backends.postgresql.base import DatabaseWrapper

    if not settings.configured:
        settings.configure()
    parts = conninfo_to_dict(dsn)
    wrapper = DatabaseWrapper(
        {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts.get("user", ""),
            "PASSWORD": parts.get("password", ""),
            "HOST": parts.get("host", ""),
            "PORT": parts.get("port", ""),
            "OPTIONS": {},
            "TIME_ZONE": None,
            "CONN_MAX_AGE": 0,
            "CONN_HEALTH_CHECKS": False,
            "AUTOCOMMIT": False,
            "ATOMIC_REQUESTS": False,
            "TEST": {},
        }
    )
    wrapper.connect()
    yield wrapper, wrapper.commit, wrapper.rollback
    wrapper.close()


KINDS = {"psycopg": with_psycopg, "sqlalchemy": with_sqlalchemy, "django": with_django}


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_there_if_and_when_the_caller_commits(station: Station, broker: PgqrsBroker, kind: str) -> None:
    broker.declare_queue("default")
    with KINDS[kind](station.dsn) as (connection, commit, rollback):
        with broker.transaction(connection):
            broker.enqueue(dramatiq.Message("default", "act", ("lost",), {}, {}))
        rollback()
        with broker.transaction(connection):
            dramatiq.group([dramatiq.Message("default", "act", (n,), {}, {}) for n in range(3)], broker=broker).run()
        assert station.rows() == 0
        commit()

    assert station.rows() == 3
    consumer = broker.consume("default", prefetch=9, timeout=1000)
    messages = [take(consumer) for _ in range(3)]
    assert [message.args[0] for message in messages] == [0, 1, 2]


def test_a_waiting_worker_is_told_after_the_commit(station: Station, broker: PgqrsBroker) -> None:
    broker.declare_queue("default")
    broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
    with (
        psycopg.connect(station.dsn, autocommit=True) as ear,
        with_sqlalchemy(station.dsn) as (session, commit, _),
    ):
        ear.execute("insert into pgqrs.waiters select queue_id, 1, now() + interval '2 minutes' from pgqrs.queues")
        ear.execute('listen "pgqrs:1"')
        ear.execute("select pg_advisory_lock(1)")
        with broker.transaction(session):
            broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
        commit()
        told = [notice.payload for notice in ear.notifies(timeout=20, stop_after=1)]
        number = ear.execute("select queue_id from pgqrs.queues where name = 'default'").fetchone()

    assert number is not None
    assert told == [str(number[0])]


def test_only_the_block_is_within_the_transaction(station: Station, broker: PgqrsBroker) -> None:
    broker.declare_queue("default")
    other = station.broker(max_connections=5)
    other.declare_queue("default")
    message = dramatiq.Message("default", "act", (), {}, {})
    with psycopg.connect(station.dsn) as connection:
        with broker.transaction(connection):
            broker.enqueue(message)
            other.enqueue(message)
        broker.enqueue(message)
        connection.rollback()

    assert station.rows() == 2


def test_what_is_no_connection_is_refused(broker: PgqrsBroker) -> None:
    broker.declare_queue("default")

    with broker.transaction(object()), pytest.raises(Refused, match="psycopg"):
        broker.enqueue(dramatiq.Message("default", "act", (), {}, {}))
