"""Chords: each header task counts once, and the body is published once, whoever runs or is killed when."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, states
from pgqrs_celery import chord_operations
from pgqrs_celery.housekeeping import Housekeeper

from .support import ask, request_of

GROUP = "g1"


class Published:
    """Notes what a backend publishes, in the place of a broker."""

    def __init__(self, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[Any] = []
        self.fails = 0
        monkeypatch.setattr(app.backend, "_publish", self.publish)

    def publish(self, body: Any, values: list[Any]) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the broker is gone")
        self.values.append(values)


@pytest.fixture
def app(open_app: Callable[..., Celery]) -> Celery:
    """An application whose broker is elsewhere."""
    return open_app(broker_url="memory://")


@pytest.fixture
def published(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Published:
    return Published(app, monkeypatch)


def begin(app: Celery, size: int) -> None:
    """Note a chord as its sender does, without sending anything."""
    app.backend.apply_chord((GROUP, [app.AsyncResult(f"t{place}") for place in range(size)]), body_of(app))
    app.backend.set_chord_size(GROUP, size)


def body_of(app: Celery) -> Any:
    body = app.signature("total")
    body.freeze("body")
    return body


def member(app: Celery, place: int) -> Any:
    return request_of(id=f"t{place}", group=GROUP, group_index=place, chord=dict(body_of(app)), task="add")


def finish(app: Celery, place: int, value: Any = None) -> None:
    """End a header task as a worker does."""
    request = member(app, place)
    if isinstance(value, Exception):
        app.backend.mark_as_failure(request.id, value, traceback="Traceback …", request=request)
    else:
        app.backend.mark_as_done(request.id, place if value is None else value, request)


def chord_row(dsn: str) -> dict[str, Any]:
    (row,) = ask(dsn, "select * from pgqrs.celery_chords")
    return row


def test_the_last_header_task_publishes_the_body_with_all_values_in_order(
    app: Celery, published: Published, pgqrs_dsn: str
) -> None:
    begin(app, 5)
    for place in (3, 1, 4, 0):
        finish(app, place)
    assert published.values == []

    finish(app, 2)

    assert published.values == [[0, 1, 2, 3, 4]]
    assert chord_row(pgqrs_dsn)["finished_at"] is not None
    assert ask(pgqrs_dsn, "select * from pgqrs.celery_chord_parts") == []


def test_a_header_task_that_runs_again_counts_once(app: Celery, published: Published) -> None:
    begin(app, 3)
    for place in (0, 0, 1, 1, 0):
        finish(app, place)
    assert published.values == []

    for place in (2, 2, 0):
        finish(app, place)

    assert published.values == [[0, 1, 2]]


def test_threads_that_end_at_once_publish_once(app: Celery, published: Published) -> None:
    begin(app, 24)
    barrier = threading.Barrier(8)

    def work(first: int) -> None:
        barrier.wait()
        for place in range(first, 24, 8):
            finish(app, place)
            finish(app, place)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert published.values == [list(range(24))]


def finish_all_at_once(app: Celery) -> None:
    """Let four processes finish a chord of 40, each task in two of them, as after a redelivery."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)

    def work(first: int) -> None:
        gate.wait()
        for place in [*range(first, 40, 4), *range((first + 1) % 4, 40, 4)]:
            finish(app, place)

    processes = [context.Process(target=work, args=(first,)) for first in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_processes_that_end_at_once_publish_once(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = multiprocessing.get_context("fork").SimpleQueue()
    monkeypatch.setattr(app.backend, "_publish", lambda body, values: bodies.put(values))
    begin(app, 40)

    finish_all_at_once(app)

    assert bodies.get() == list(range(40))
    assert bodies.empty()
    # One that runs again while the body goes out may be counted once more: the chord is over by then.
    assert chord_row(pgqrs_dsn)["done"] >= 40


def test_a_failing_member_lets_the_body_fail_once_all_have_returned(app: Celery, published: Published) -> None:
    begin(app, 100)
    for place in range(100):
        finish(app, place, ValueError("broken") if place == 42 else None)
        if place < 99:
            assert app.AsyncResult("body").state == states.PENDING

    result = app.AsyncResult("body")
    assert (published.values, result.state) == ([], states.FAILURE)
    assert type(result.result).__name__ == "ChordError"
    assert "Dependency t42 raised ValueError('broken')" in str(result.result)


def test_a_revoked_member_lets_the_body_fail(app: Celery, published: Published) -> None:
    begin(app, 2)
    finish(app, 0)
    app.backend.mark_as_revoked("t1", "terminated", member(app, 1))

    assert app.AsyncResult("t1").state == states.REVOKED
    assert (published.values, app.AsyncResult("body").state) == ([], states.FAILURE)


def test_the_result_and_the_count_are_stored_together_or_not_at_all(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(app, 2)
    monkeypatch.setattr(
        chord_operations, "return_part", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("killed"))
    )

    with pytest.raises(OSError, match="killed"):
        finish(app, 0)

    assert ask(pgqrs_dsn, "select * from pgqrs.celery_results") == []
    monkeypatch.undo()
    assert ask(pgqrs_dsn, "select done from pgqrs.celery_chords") == [{"done": 0}]


def test_a_result_that_is_ignored_still_counts(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    begin(app, 1)
    request = member(app, 0)
    request.ignore_result = True

    app.backend.mark_as_done("t0", 5, request)

    assert published.values == [[5]]
    assert ask(pgqrs_dsn, "select * from pgqrs.celery_results") == []


def test_a_task_may_be_added_to_its_chord(app: Celery, published: Published) -> None:
    begin(app, 2)
    app.backend.add_to_chord(GROUP, app.AsyncResult("t7"))
    finish(app, 0)
    finish(app, 1)
    assert published.values == []

    finish(app, 7)

    assert published.values == [[0, 1, 7]]


def test_header_tasks_may_return_before_the_size_is_known(app: Celery, published: Published) -> None:
    app.backend.apply_chord((GROUP, []), body_of(app))
    finish(app, 0)
    finish(app, 1)
    app.backend.set_chord_size(GROUP, 3)
    finish(app, 2)

    assert published.values == [[0, 1, 2]]


def test_the_same_chord_can_be_sent_again(app: Celery, published: Published) -> None:
    for _ in range(3):
        begin(app, 2)
        finish(app, 0)
        finish(app, 1)

    assert published.values == [[0, 1]] * 3


def test_a_body_that_cannot_be_published_fails_with_its_reason(app: Celery, published: Published) -> None:
    published.fails = 1
    begin(app, 1)
    finish(app, 0)

    result = app.AsyncResult("body")
    assert (result.state, published.values) == (states.FAILURE, [])
    assert "Callback error: RuntimeError('the broker is gone')" in str(result.result)


def test_a_claimer_that_is_killed_before_publishing_is_replaced(
    app: Celery, published: Published, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(app, 2)
    finish(app, 0)

    def child() -> None:
        monkeypatch.setattr(app.backend, "_publish", lambda body, values: os.kill(os.getpid(), signal.SIGKILL))
        finish(app, 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert chord_row(pgqrs_dsn)["claimed_until"] is not None

    # Its claim holds still; nobody else publishes.
    assert app.backend.take_over_chords() == 0
    finish(app, 1)
    assert published.values == []

    ask(pgqrs_dsn, "update pgqrs.celery_chords set claimed_until = statement_timestamp() - interval '1 second'")
    assert app.backend.take_over_chords() == 1
    assert published.values == [[0, 1]]
    assert app.backend.take_over_chords() == 0


def test_a_redelivered_header_task_takes_over_when_the_claim_has_run_out(
    app: Celery, published: Published, pgqrs_dsn: str
) -> None:
    begin(app, 1)
    published.fails = 0
    app.backend.store.run(
        chord_operations.return_part,
        chord_operations.Part(GROUP, 0, "t0", states.SUCCESS, b"0", "application/json"),
        claim=1,
        seconds=0.0,
        expires=None,
    )

    finish(app, 0)

    assert published.values == [[0]]


def test_who_has_lost_his_claim_does_not_publish(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    begin(app, 1)
    values = app.backend._values

    def slow(claimed: Any) -> list[Any]:
        # Meanwhile somebody else takes over.
        ask(pgqrs_dsn, "update pgqrs.celery_chords set claim = claim + 1")
        return list(values(claimed))

    app.backend._values = slow
    finish(app, 0)

    assert published.values == []


def test_the_housekeeper_takes_over_and_prunes(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    begin(app, 1)
    published.fails = 0
    chord_ = app.backend.store.run(
        chord_operations.return_part,
        chord_operations.Part(GROUP, 0, "t0", states.SUCCESS, b"0", "application/json"),
        claim=1,
        seconds=0.0,
        expires=None,
    )
    app.backend.store.run(
        chord_operations.keep_body, chord_, app.backend.encode(dict(body_of(app))).encode(), "application/json"
    )
    app.backend.store_result("old", 1, states.SUCCESS)
    app.backend.store_result("new", 1, states.SUCCESS)
    ask(pgqrs_dsn, "update pgqrs.celery_results set expires_at = '2020-01-01' where task_id = 'old'")

    assert Housekeeper(app.backend).round()

    assert published.values == [[0]]
    assert ask(pgqrs_dsn, "select task_id from pgqrs.celery_results") == [{"task_id": "new"}]


def test_one_worker_at_a_time_keeps_house(app: Celery) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    first, second = Housekeeper(app.backend), Housekeeper(app.backend)

    assert [first.round(), second.round(), first.round()] == [True, False, True]
    first._resign()
    assert second.round()


def test_clean_up_removes_expired_chords_with_their_parts(app: Celery, published: Published, pgqrs_dsn: str) -> None:
    begin(app, 2)
    finish(app, 0)
    ask(pgqrs_dsn, "update pgqrs.celery_chords set expires_at = '2020-01-01'")

    app.backend.cleanup()

    assert ask(pgqrs_dsn, "select * from pgqrs.celery_chords") == []
    assert ask(pgqrs_dsn, "select * from pgqrs.celery_chord_parts") == []


def test_a_broker_beside_the_results_is_recognised_by_its_address(
    open_app: Callable[..., Celery], backend_url: str
) -> None:
    from pgqrs_celery.publishing import shares_database

    def shares(url: Any, **settings: Any) -> bool:
        app = open_app(broker_url=url, **settings)
        return shares_database(app, app.backend.config)

    assert shares(backend_url)
    assert not shares(f"{backend_url}&schema=other")
    assert not shares(backend_url, broker_transport_options={"schema": "other"})
    assert not shares(f"{backend_url};pgqrs://elsewhere/db")
    assert not shares("pgqrs://elsewhere/db")
    assert not shares("amqp://guest@localhost//")
