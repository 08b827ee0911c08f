"""Chords whose broker is in the same database: result, count and body are one transaction."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, states

pytest.importorskip("pgqrs_kombu")

from .support import ask
from .test_chords import begin, chord_row, finish, finish_all_at_once


@pytest.fixture
def app(open_app: Callable[..., Celery], backend_url: str) -> Celery:
    app = open_app(broker_url=backend_url, result_backend_always_retry=True)
    # What Celery does before its first publication: the queue is there.
    with app.connection_for_write() as connection:
        app.amqp.queues["celery"](connection.default_channel).declare()
    return app


def bodies(app: Celery) -> int:
    """How many messages are in the queue."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare("celery", passive=True).message_count)


def in_child(work: Callable[[], Any]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    return process.exitcode


def test_the_body_is_published_with_the_last_count(app: Celery, pgqrs_dsn: str) -> None:
    begin(app, 2)
    finish(app, 0)
    assert bodies(app) == 0

    finish(app, 1)
    finish(app, 1)

    assert bodies(app) == 1
    assert chord_row(pgqrs_dsn)["finished_at"] is not None


def test_a_worker_that_is_killed_after_publishing_has_published_nothing(app: Celery, pgqrs_dsn: str) -> None:
    begin(app, 2)
    finish(app, 0)
    publish = app.backend._publish

    def child() -> None:
        def publish_and_die(body: Any, values: list[Any]) -> None:
            publish(body, values)
            os.kill(os.getpid(), signal.SIGKILL)

        app.backend._publish = publish_and_die
        finish(app, 1)

    assert in_child(child) == -signal.SIGKILL
    assert bodies(app) == 0
    assert chord_row(pgqrs_dsn)["done"] == 1
    assert app.AsyncResult("t1").state == states.PENDING

    # Its message is delivered again.
    finish(app, 1)
    assert bodies(app) == 1


def test_a_connection_lost_while_publishing_is_tried_again_as_a_whole(app: Celery, pgqrs_dsn: str) -> None:
    begin(app, 1)
    publish, times = app.backend._publish, []

    def fragile(body: Any, values: list[Any]) -> None:
        times.append(values)
        if len(times) == 1:
            ask(
                pgqrs_dsn,
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and state like 'idle in transaction%' and pid <> pg_backend_pid()",
            )
        publish(body, values)

    app.backend._publish = fragile
    finish(app, 0)

    assert times == [[0], [0]]
    assert bodies(app) == 1
    assert app.AsyncResult("t0").state == states.SUCCESS


def test_a_body_that_cannot_be_published_fails_and_the_header_keeps_its_result(app: Celery) -> None:
    begin(app, 1)

    def refuse(body: Any, values: list[Any]) -> None:
        raise ValueError("cannot be encoded")

    app.backend._publish = refuse
    finish(app, 0)

    assert (bodies(app), app.AsyncResult("t0").state) == (0, states.SUCCESS)
    assert "cannot be encoded" in str(app.AsyncResult("body").result)


def test_a_failing_member_publishes_nothing(app: Celery) -> None:
    begin(app, 2)
    finish(app, 0, ValueError("broken"))
    finish(app, 1)

    assert (bodies(app), app.AsyncResult("body").state) == (0, states.FAILURE)


def test_processes_that_end_at_once_publish_one_body(app: Celery, pgqrs_dsn: str) -> None:
    begin(app, 40)

    finish_all_at_once(app)

    assert (bodies(app), chord_row(pgqrs_dsn)["done"]) == (1, 40)
