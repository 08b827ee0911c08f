"""Celery's groups go to the database as one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery, Task, chain, chord, group
from celery.signals import after_task_publish, before_task_publish
from celery.utils.dispatch import Signal
from pgqrs_kombu import batch, in_transaction

from pgqrs_core.testing import eventually

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


def test_a_group_that_a_generator_makes_goes_member_by_member(connected: Workers) -> None:
    say = connected.tasks.say

    def members() -> Iterator[Any]:
        yield from (say.s(1), say.s(2), say.s(3))
        # Celery looks two members ahead.
        eventually(lambda: len(commits(connected)) == 2)
        yield say.s(4)

    group(members(), app=connected.app).apply_async()

    assert commits(connected) == [(1,)] * 5


def test_a_group_with_a_generators_group_in_it_goes_member_by_member(connected: Workers) -> None:
    say = connected.tasks.say
    inner = group((say.s(number) for number in range(3)), app=connected.app)
    group([say.s("first"), inner], app=connected.app).apply_async()

    assert commits(connected) == [(1,)] * 5


@pytest.mark.parametrize("signal", [before_task_publish, after_task_publish])
def test_what_a_handler_of_a_signal_sends_goes_by_itself(connected: Workers, signal: Signal) -> None:
    say = connected.tasks.say
    audit = connected.app.signature("audit")

    def send(sender: str, **_: Any) -> None:
        if sender != "audit":
            audit.apply_async()
            group([audit.clone(), audit.clone()], app=connected.app).apply_async()

    signal.connect(send)
    try:
        with pytest.raises(Exception, match=r"serializable|EncodeError"):
            group([say.s(1), say.s(2), say.s(object())], app=connected.app).apply_async()
        sent = 3 if signal is before_task_publish else 2
        assert commits(connected) == [(1,)] * (1 + sent) + [(2,)] * sent
        group([say.s(1), say.s(2)], app=connected.app).apply_async()
        assert commits(connected) == [(1,)] * (3 + sent) + [(2,)] * (3 + sent)
    finally:
        signal.disconnect(send)


def test_a_member_that_sends_something_else_sends_it_by_itself(connected: Workers) -> None:
    app = connected.app

    class Auditing(Task):  # type: ignore[misc]
        name = "auditing"

        def apply_async(self, *args: Any, **options: Any) -> Any:
            connected.tasks.say.delay("audit")
            return super().apply_async(*args, **options)

    task = app.register_task(Auditing())
    group([task.s(), task.s()], app=app).apply_async()

    assert commits(connected) == [(1,), (1,), (1,), (2,)]


def test_a_chord_within_a_group_goes_with_it(connected: Workers) -> None:
    app = Celery("chords", broker=connected.url, backend=connected.url, set_as_current=False)

    @app.task(name="say")
    def say(*_: Any) -> None: ...

    group([say.s(1), chord([say.s(2), say.s(3)], say.s(4)), chain(group([say.s(5), say.s(6)]), say.s(7))], app=app)()
    app.backend.close()
    app.close()

    assert commits(connected) == [(1,), (5,)]
