"""Celery's groups go to the database as one."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from celery import chain, group
from pgqrs_kombu import batch, in_transaction

from .celery_support import Workers


@pytest.fixture
def connected(crew: Workers) -> Workers:
    """A process that has published before."""
    crew.tasks.say.delay("first")
    return crew


def commits(crew: Workers) -> list[tuple[Any, ...]]:
    """Which transactions wrote the messages, and how many each."""
    return crew.sql("select count(*) from pgqrs.q_celery group by xmin::text order by 1")


def test_a_group_is_one_transaction(connected: Workers) -> None:
    say = connected.tasks.say
    group([say.s(number) for number in range(10)], app=connected.app).apply_async()

    assert commits(connected) == [(1,), (10,)]


def test_a_group_with_a_member_that_cannot_be_sent_is_not_sent(connected: Workers) -> None:
    say = connected.tasks.say
    broken = group([say.s(1), say.s(object()), say.s(3)], app=connected.app)

    with pytest.raises(Exception, match=r"serializable|EncodeError"):
        broken.apply_async()

    assert commits(connected) == [(1,)]
    say.delay("after")
    assert commits(connected) == [(1,), (1,)]


def test_a_chain_within_a_group_goes_with_it(connected: Workers) -> None:
    say = connected.tasks.say
    group([say.s(1), chain(say.si(2), say.si(3))], app=connected.app).apply_async()

    # The rest of the chain travels with its first task.
    assert commits(connected) == [(1,), (2,)]


def test_in_a_batch_of_the_callers_a_group_waits_for_its_end(connected: Workers) -> None:
    say = connected.tasks.say
    with batch():
        group([say.s(1), say.s(2)], app=connected.app).apply_async()
        say.delay("three")
        assert commits(connected) == [(1,)]

    assert commits(connected) == [(1,), (3,)]


def test_a_batch_that_raises_publishes_nothing(connected: Workers) -> None:
    with pytest.raises(ZeroDivisionError), batch():
        connected.tasks.say.delay(1 / 0 if connected.tasks.say.delay("lost") else 0)

    assert commits(connected) == [(1,)]


def test_a_batch_in_the_callers_transaction_is_his_to_commit(connected: Workers) -> None:
    with psycopg.connect(connected.dsn) as connection:
        with in_transaction(connection), batch():
            for number in range(5):
                connected.tasks.say.delay(number)
        assert commits(connected) == [(1,)]

    assert commits(connected) == [(1,), (5,)]


def test_a_batch_is_written_piece_by_piece_where_it_is_limited(connected: Workers) -> None:
    with batch(max_size=4):
        for number in range(10):
            connected.tasks.say.delay(number)

    assert commits(connected) == [(1,), (2,), (4,), (4,)]


def test_a_group_is_sent_again_when_the_connection_was_lost_before_it_was_stored(connected: Workers) -> None:
    say = connected.tasks.say
    with psycopg.connect(connected.dsn, autocommit=True, application_name="test") as killer:
        killer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    group([say.s(number) for number in range(10)], app=connected.app).apply_async()

    assert commits(connected) == [(1,), (10,)]


def test_threads_do_not_share_a_batch(connected: Workers) -> None:
    say = connected.tasks.say
    gate = threading.Barrier(4)

    def send(first: int) -> None:
        gate.wait(10)
        group([say.s(first + number) for number in range(5)], app=connected.app).apply_async()

    threads = [threading.Thread(target=send, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert commits(connected) == [(1,), (5,), (5,), (5,), (5,)]
