"""Celery's canvas with real workers: whatever waits for a result gets the right one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group, states
from celery.exceptions import ChordError

from pgqrs_core.testing import eventually

from .support import Workers, ask, notes_in


def canvas(app: Celery) -> dict[str, tuple[Any, Any]]:
    """Name each piece of work with what it is to return."""
    add, mul, total, collect = (app.tasks[name] for name in ("add", "mul", "total", "collect"))
    one = group([add.s(1, 1), add.s(2, 2)], app=app)
    return {
        "a task": (add.s(1, 2), 3),
        "a chain": (chain(add.s(1, 2), mul.s(10), add.s(1), app=app), 31),
        "a group": (group([add.s(i, i) for i in range(10)], app=app), [2 * i for i in range(10)]),
        "a chord": (chord([add.s(i, i) for i in range(10)], total.s()), 90),
        "a chord of none": (chord([], total.s(), app=app), 0),
        "a chord of 100": (chord([add.s(i, i) for i in range(100)], total.s()), 9900),
        "a chord of one": (chord([add.s(1, 1)], total.s()), 2),
        "a group, then a task": (chain(one, total.s(), app=app), 6),
        "a task, then a group": (chain(add.s(1, 1), group([add.s(1), add.s(2)], app=app), app=app), [3, 4]),
        "task, group, task": (chain(add.s(1, 1), group([add.s(1), add.s(2)], app=app), total.s(), app=app), 7),
        "two groups in a row": (chain(one, collect.s(), app=app), [[2, 4]]),
        "a chord of chains": (chord([chain(add.s(i, 1), mul.s(2), app=app) for i in range(3)], total.s()), 12),
        "a chord of chords": (
            chord([chord([add.s(i, 1), add.s(i, 2)], total.s()) for i in range(3)], total.s()),
            15,
        ),
        "a chord in a chord, in its place": (
            chord([add.s(0, 1), chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(5, 5)], collect.s()),
            [[1, 6, 10]],
        ),
        "a chord with groups in it": (chord([add.s(0, 1), group([add.s(1, 1), add.s(2, 2)], app=app)], collect.s()), 0),
        "a chord whose body is a chain": (chord([add.s(1, 1), add.s(2, 2)], chain(total.s(), mul.s(10), app=app)), 60),
        "a chord whose body is a group": (
            chord([add.s(1, 1), add.s(2, 2)], group([total.s(), collect.s()], app=app)),
            [6, [[2, 4]]],
        ),
        "a chord whose body is a chord": (
            chord([add.s(1, 1), add.s(2, 2)], chord([total.s(), total.s()], total.s())),
            12,
        ),
        "a group of chords": (
            group([chord([add.s(i, 1), add.s(i, 2)], total.s()) for i in range(4)], app=app),
            [3, 5, 7, 9],
        ),
        "chunks": (add.chunks([(i, i) for i in range(10)], 3), [[0, 2, 4], [6, 8, 10], [12, 14, 16], [18]]),
        "starmap": (add.starmap([(1, 2), (3, 4)]), [3, 7]),
        "a retry": (app.tasks["again"].s(2), 2),
        "a retry in a chord": (chord([app.tasks["again"].s(2), add.s(1, 1)], total.s()), 4),
        "a task that replaces itself": (app.tasks["replaced"].s(1), 101),
        "one that does so in a chord": (chord([app.tasks["replaced"].s(1), add.s(1, 1)], total.s()), 103),
        "a task replaced by a group": (app.tasks["replaced_by_group"].s(3), [1, 2, 3]),
        "a task replaced by a chord": (app.tasks["replaced_by_chord"].s(3), 6),
        "one that does so in a chord, too": (chord([app.tasks["replaced_by_chord"].s(3), add.s(1, 1)], total.s()), 8),
        "a chord that grows": (chord([app.tasks["grows"].s(1), add.s(1, 1)], total.s()), 1004),
        "a task that waits inside": (app.tasks["waits_inside"].s(), 22),
    }


def flattened(value: Any) -> Any:
    """Nested groups' values in one list, sorted."""
    if not isinstance(value, list):
        return [value]
    return sorted(item for one in value for item in flattened(one))


@pytest.mark.parametrize(
    ("pool", "concurrency"), [("prefork", 3), ("threads", 4), ("gevent", 10)], ids=["prefork", "threads", "gevent"]
)
def test_the_whole_canvas_works(app: Celery, workers: Workers, pgqrs_dsn: str, pool: str, concurrency: int) -> None:
    if pool == "gevent":
        pytest.importorskip("gevent")
    workers.start(pool=pool, concurrency=concurrency)
    wrong = {}
    begun = {name: (work.apply_async(), expected) for name, (work, expected) in canvas(app).items()}

    deadline = time.monotonic() + 60
    for name, (result, expected) in begun.items():
        try:
            value = result.get(timeout=max(deadline - time.monotonic(), 0.1))
        except Exception as error:
            value = error
        if name == "a chord with groups in it":
            value, expected = flattened(value), [1, 2, 4]
        if value != expected:
            wrong[name] = value

    assert wrong == {}, workers.log()
    # Nothing polls for the end of a chord, and none is left half way.
    assert "chord_unlock" not in workers.log().partition(" ready.")[2]
    assert ask(pgqrs_dsn, "select group_id, size, done from pgqrs.celery_chords where finished_at is null") == []
    assert ask(pgqrs_dsn, "select * from pgqrs.celery_chord_parts") == []


def test_a_failing_member_of_a_hundred_fails_the_body_and_calls_its_errback(app: Celery, workers: Workers) -> None:
    workers.start(pool="prefork", concurrency=3)
    add, fail = app.tasks["add"], app.tasks["fail"]
    header = [add.s(i, i) for i in range(99)]
    header.insert(50, fail.s("number 50"))
    body = app.tasks["total"].s().on_error(app.tasks["note_error"].s())

    result = chord(header, body).apply_async()

    with pytest.raises((ChordError, ValueError), match="number 50"):
        result.get(timeout=30)
    eventually(lambda: result.state == states.FAILURE)
    assert isinstance(app.AsyncResult(result.id).result, ChordError)
    eventually(lambda: notes_in(workers.notes_file) == [{"error": result.id}])
    # The other members ran; their results are there.
    done = [member.state for member in result.parent.results]
    assert (done.count(states.SUCCESS), done.count(states.FAILURE)) == (99, 1)


def test_two_workers_share_a_chord_and_its_body_runs_once(app: Celery, workers: Workers) -> None:
    workers.start(pool="prefork", concurrency=2)
    workers.start(pool="threads", concurrency=2)
    results = [
        chord([app.tasks["add"].s(i, n) for i in range(10)], chain(app.tasks["total"].s(), app.tasks["note_value"].s()))
        .apply_async()
        for n in range(10)
    ]  # fmt: skip

    values = [result.get(timeout=30) for result in results]

    assert values == [45 + 10 * n for n in range(10)]
    assert sorted(note["value"] for note in notes_in(workers.notes_file)) == values


def test_a_failure_in_a_chain_reaches_its_end(app: Celery, workers: Workers) -> None:
    workers.start(pool="solo")
    result = chain(app.tasks["add"].s(1, 1), app.tasks["fail"].si("middle"), app.tasks["add"].s(1)).apply_async()

    with pytest.raises(ValueError, match="middle"):
        result.get(timeout=20)


def test_a_child_of_the_pool_holds_one_connection(app: Celery, workers: Workers, pgqrs_dsn: str) -> None:
    workers.start(pool="prefork", concurrency=3)
    for _ in range(10):
        group([app.tasks["add"].s(i, i) for i in range(20)], app=app).apply_async().get(timeout=30)
    seen = group([app.tasks["connections"].s() for _ in range(12)], app=app).apply_async().get(timeout=30)

    assert max(total for _, total in seen) == 1


def test_ignored_results_are_not_stored(app: Celery, workers: Workers, pgqrs_dsn: str) -> None:
    workers.start(pool="solo")
    ignored = app.tasks["silent"].delay()
    app.tasks["add"].delay(1, 1).get(timeout=20)

    assert [row["task_id"] for row in ask(pgqrs_dsn, "select task_id from pgqrs.celery_results")] != [ignored.id]
    assert app.AsyncResult(ignored.id).state == states.PENDING


def test_progress_is_seen_while_a_task_runs(app: Celery, workers: Workers) -> None:
    workers.start(pool="threads")
    heard: list[Any] = []
    result = app.tasks["progress"].delay()

    assert result.get(timeout=20, on_message=lambda meta: heard.append(meta["status"])) == "done"
    assert heard[-2:] == ["PROGRESS", "SUCCESS"]


def test_expired_results_are_removed_by_a_worker_without_beat(
    app: Celery, workers: Workers, pgqrs_dsn: str, backend_url: str
) -> None:
    app.backend.store_result("old", 1, states.SUCCESS)
    ask(pgqrs_dsn, "update pgqrs.celery_results set expires_at = '2020-01-01'")

    workers.start(pool="prefork", concurrency=1, result_backend=f"{backend_url}&application_name=worker")

    eventually(lambda: ask(pgqrs_dsn, "select * from pgqrs.celery_results") == [])
    # Between two rounds an idle worker holds no connection for this.
    idle = "select 1 from pg_stat_activity where datname = current_database() and application_name = 'worker'"
    eventually(lambda: ask(pgqrs_dsn, idle) == [])


def test_beat_is_not_asked_to_clean_up(app: Celery) -> None:
    from celery.beat import Scheduler

    scheduler = Scheduler(app, lazy=True)
    scheduler.install_default_entries({})

    assert "celery.backend_cleanup" not in scheduler.schedule


@pytest.mark.parametrize("settings", [{"result_serializer": "pickle", "accept_content": ["json", "pickle"]}])
def test_chords_work_with_other_serializers(
    open_app: Callable[..., Celery], workers: Workers, settings: dict[str, Any]
) -> None:
    app = open_app(**settings)
    workers.start(pool="threads", **settings)

    assert chord([app.tasks["add"].s(i, i) for i in range(5)], app.tasks["total"].s()).delay().get(timeout=20) == 20
    with pytest.raises(ValueError, match="broken"):
        app.tasks["fail"].delay().get(timeout=20)


def test_a_result_reaches_its_caller_sooner_than_polling_would(app: Celery, workers: Workers) -> None:
    workers.start(pool="threads", concurrency=1)
    app.tasks["add"].delay(1, 1).get(timeout=20)
    waited = []
    for _ in range(10):
        result = app.tasks["nap"].delay(0.3)
        result.get(timeout=20)
        done = result.date_done
        waited.append(time.time() - done.timestamp())

    # Celery's SQLAlchemy backend looks every 0.5 s. The median, for a machine that is busy with other things.
    assert sorted(waited)[5] < 0.25


@pytest.mark.parametrize("size", [3, 5])
def test_a_chord_whose_header_is_made_while_its_members_run(
    workers: Workers, open_app: Callable[..., Celery], size: int
) -> None:
    app = open_app()
    workers.start(concurrency=1)
    add = app.tasks["add"]

    def members() -> Iterator[Any]:
        for number in range(size):
            if number == size - 1:
                # It runs although the header is not complete yet.
                eventually(lambda: app.AsyncResult("first").state == states.SUCCESS)
            yield add.s(number, 0).set(**({"task_id": "first"} if number == 0 else {}))

    assert chord(members(), app.tasks["total"].s()).delay().get(timeout=20) == sum(range(size))
