"""``get()``: woken by LISTEN on one connection per process, and by looking where no notification can arrive."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery, states
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import AsyncResult, GroupResult

from pgqrs_core.drivers import shelf
from pgqrs_core.errors import Unavailable
from pgqrs_core.testing import eventually
from tests.support.versions import needs_celery_57

from .support import Broker, ask, make_app

BACKENDS = """
select pid, query from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


@pytest.fixture
def storer(backend_url: str, broker: Broker) -> Iterator[Celery]:
    """Another application: its connections are not those that are looked at."""
    app = make_app(f"{backend_url}&application_name=storer", broker, {})
    app.backend.store_result("warm", 1, states.SUCCESS)
    yield app
    app.backend.close()
    app.close()


def waiting_backends(dsn: str) -> list[dict[str, Any]]:
    return ask(dsn, BACKENDS + " and application_name = 'pgqrs'")


def getters(app: Celery, task_ids: list[str], timeout: float = 20) -> tuple[list[threading.Thread], dict[str, Any]]:
    """Threads that wait, one for each task."""
    found: dict[str, Any] = {}

    def get(task_id: str) -> None:
        try:
            found[task_id] = AsyncResult(task_id, app=app).get(timeout=timeout)
        except Exception as error:
            found[task_id] = error

    threads = [threading.Thread(target=get, args=(task_id,), daemon=True) for task_id in task_ids]
    for thread in threads:
        thread.start()
    return threads, found


def registered(dsn: str) -> list[str]:
    return [row["task_id"] for row in ask(dsn, "select task_id from pgqrs.celery_waiters order by task_id")]


def test_twenty_threads_wait_on_one_connection(
    app: Celery, storer: Celery, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a machine so busy that the first looks of twenty threads take longer, the pool opens a connection more for them.
    monkeypatch.setattr(shelf, "GRACE", 60.0)
    names = sorted(f"t{number}" for number in range(20))
    threads, found = getters(app, names)
    eventually(lambda: registered(pgqrs_dsn) == names)

    # One listens; another one was used for the first look.
    assert len({row["channel"] for row in ask(pgqrs_dsn, "select channel from pgqrs.celery_waiters")}) == 1
    assert len(waiting_backends(pgqrs_dsn)) <= 2

    for name in names:
        storer.backend.store_result(name, name.upper(), states.SUCCESS)
    for thread in threads:
        thread.join(10)
    assert found == {name: name.upper() for name in names}


def test_while_it_waits_there_is_a_poll_for_all_every_few_seconds(
    app: Celery, storer: Celery, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    threads, found = getters(app, ["a", "b", "c"])
    eventually(lambda: registered(pgqrs_dsn) == ["a", "b", "c"])
    engine = app.backend.store.engine
    run, run_in = engine.run, engine.run_in
    monkeypatch.setattr(engine, "run", lambda make, *args, **kwargs: (asked.append(make.__name__), run(make, *args))[1])
    monkeypatch.setattr(
        engine,
        "run_in",
        lambda connection, make, *args: (asked.append(make.__name__), run_in(connection, make, *args))[1],
    )
    # The looks for what was being stored meanwhile come at 0.05, 0.3, 1.55 and 7.8 s; the polls at 1, 2.5 and 4.75 s.
    time.sleep(2)
    asked.clear()
    time.sleep(3)

    assert set(asked) <= {"read_results"}
    assert len(asked) <= 2
    for name in "abc":
        storer.backend.store_result(name, 1, states.SUCCESS)
    for thread in threads:
        thread.join(10)
    assert found == {"a": 1, "b": 1, "c": 1}
    assert set(asked) == {"read_results"}


def test_a_result_that_is_there_needs_no_listening_connection(app: Celery, storer: Celery) -> None:
    storer.backend.store_result("t", 7, states.SUCCESS)

    assert AsyncResult("t", app=app).get(timeout=5) == 7
    assert not app.backend.listener.is_connected


def test_nobody_is_notified_where_nobody_waits(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        threads, _ = getters(app, ["wanted"])
        eventually(lambda: registered(pgqrs_dsn) == ["wanted"])
        channel = ask(pgqrs_dsn, "select channel from pgqrs.celery_waiters")[0]["channel"]
        connection.execute(f'listen "{channel}"')
        storer.backend.store_result("unwanted", 1, states.SUCCESS)
        storer.backend.store_result("wanted", 1, states.SUCCESS)
        notices = [notice.payload for notice in connection.notifies(timeout=5, stop_after=1)]
        threads[0].join(10)

    assert notices == ["wanted"]


@needs_celery_57  # Before, a second result object of the same task is not told of it, by any backend (celery#4925).
def test_the_connection_is_closed_some_time_after_the_last_wait(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    app.backend.listener._linger = 0.5
    with pytest.raises(ResultTimeout):
        AsyncResult("t", app=app).get(timeout=0.3)
    assert app.backend.listener.is_connected

    eventually(lambda: not app.backend.listener.is_connected)
    assert registered(pgqrs_dsn) == []

    # And opened again by the next one, for the same task.
    threads, found = getters(app, ["t"])
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    storer.backend.store_result("t", 1, states.SUCCESS)
    threads[0].join(10)
    assert found == {"t": 1}


@pytest.mark.parametrize("timeout", [0, 0.2, 1.3])
def test_a_wait_ends_in_time(app: Celery, timeout: float) -> None:
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        AsyncResult("nobody", app=app).get(timeout=timeout)

    assert time.monotonic() - began >= timeout


def test_a_result_stored_between_the_looks_is_not_missed(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    # A transaction whose snapshot is older than the registration sends no notification.
    app.backend.store_result("warm", 1, states.SUCCESS)
    threads: list[threading.Thread] = []
    with storer.backend.store.transaction():
        storer.backend.store_result("t", 5, states.SUCCESS)
        threads, found = getters(app, ["t"])
        eventually(lambda: registered(pgqrs_dsn) == ["t"])
        # It is registered only after the statement that would have notified.
    threads[0].join(15)

    assert found == {"t": 5}


def test_progress_reaches_on_message_in_the_waiting_thread(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    heard: list[Any] = []
    result = AsyncResult("t", app=app)
    waiting = threading.Thread(
        target=lambda: result.get(
            timeout=20, on_message=lambda meta: heard.append((meta["status"], meta["result"], threading.get_ident()))
        )
    )
    waiting.start()
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    for done in (1, 2):
        storer.backend.store_result("t", {"done": done}, "PROGRESS")
        eventually(lambda done=done: ("PROGRESS", {"done": done}) in [one[:2] for one in heard])
    storer.backend.store_result("t", "end", states.SUCCESS)
    waiting.join(10)

    assert [one[:2] for one in heard] == [("PROGRESS", {"done": 1}), ("PROGRESS", {"done": 2}), ("SUCCESS", "end")]
    assert {one[2] for one in heard} == {waiting.ident}


@needs_celery_57  # The same.
def test_several_objects_for_one_task_are_all_fulfilled(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    threads, found = getters(app, ["t"] * 5)
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    storer.backend.store_result("t", 1, states.SUCCESS)
    for thread in threads:
        thread.join(10)

    assert found == {"t": 1}
    assert not any(thread.is_alive() for thread in threads)


def test_a_group_is_awaited_as_a_whole(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    names = [f"t{number:03}" for number in range(200)]
    group = GroupResult("g", [AsyncResult(name, app=app) for name in names], app=app)
    values: list[Any] = []
    waiting = threading.Thread(target=lambda: values.extend(group.get(timeout=20)))
    waiting.start()
    eventually(lambda: registered(pgqrs_dsn) == names)
    for number, name in enumerate(names):
        storer.backend.store_result(name, number, states.SUCCESS)
    waiting.join(15)

    assert values == list(range(200))


def test_an_empty_group_is_ready(app: Celery) -> None:
    assert GroupResult("g", [], app=app).get(timeout=5) == []


def test_results_that_are_never_awaited_cost_nothing(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("warm", 1, states.SUCCESS)
    for round_ in range(3_000):
        # As a group does with each of its tasks.
        result = AsyncResult(f"t{round_}", app=app)
        result.then(lambda _: None, weak=True)
        del result
        if round_ % 50 == 0:
            gc.collect()

    # What they leave is sorted out by the thousand.
    assert len(app.backend.result_consumer._changes) <= 1_001
    assert len(app.backend.result_consumer._wanted) <= 1_100
    assert not app.backend.listener.is_connected
    assert registered(pgqrs_dsn) == []


def test_letting_a_result_go_never_blocks(app: Celery) -> None:
    consumer = app.backend.result_consumer
    result = AsyncResult("t", app=app)
    app.backend.add_pending_result(result, weak=True)
    gone = threading.Event()

    def let_go() -> None:
        nonlocal result
        del result
        gc.collect()
        gone.set()

    # Every lock that there is, held by somebody else.
    with consumer._looking, app.backend.listener._news:
        thread = threading.Thread(target=let_go)
        thread.start()
        assert gone.wait(5)
    thread.join()


def test_the_wait_goes_on_after_the_connection_was_broken(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    threads, found = getters(app, ["t"])
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    ask(
        pgqrs_dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqrs' "
        "and datname = current_database() and pid <> pg_backend_pid()",
    )
    storer.backend.store_result("t", 1, states.SUCCESS)
    threads[0].join(15)

    assert found == {"t": 1}


def test_registrations_lost_in_a_crash_are_made_again(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    threads, found = getters(app, ["t"])
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    ask(pgqrs_dsn, "truncate pgqrs.celery_waiters")
    ask(
        pgqrs_dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgqrs' "
        "and datname = current_database() and pid <> pg_backend_pid()",
    )
    eventually(lambda: registered(pgqrs_dsn) == ["t"])
    storer.backend.store_result("t", 1, states.SUCCESS)
    threads[0].join(15)

    assert found == {"t": 1}


def test_without_notifications_results_are_found_by_looking(
    open_app: Callable[..., Celery], storer: Celery, pgqrs_dsn: str
) -> None:
    app = open_app(result_backend_transport_options={"enable_listen_notify": False})
    threads, found = getters(app, ["a", "b"])
    eventually(lambda: app.backend.listener.is_connected)
    storer.backend.store_result("a", 1, states.SUCCESS)
    storer.backend.store_result("b", 2, states.SUCCESS)
    for thread in threads:
        thread.join(10)

    assert found == {"a": 1, "b": 2}
    assert registered(pgqrs_dsn) == []


def test_a_wait_for_an_unreachable_database_says_so(open_app: Callable[..., Celery]) -> None:
    app = open_app("pgqrs://u@127.0.0.1:1/db?connect_timeout=1")

    with pytest.raises(Unavailable):
        AsyncResult("t", app=app).get(timeout=10)


def test_a_forked_child_waits_on_a_connection_of_its_own(app: Celery, storer: Celery, pgqrs_dsn: str) -> None:
    threads, found = getters(app, ["parent"])
    eventually(lambda: registered(pgqrs_dsn) == ["parent"])
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        answers.put(AsyncResult("child", app=app).get(timeout=20))

    process = context.Process(target=child)
    process.start()
    eventually(lambda: registered(pgqrs_dsn) == ["child", "parent"])
    storer.backend.store_result("child", "c", states.SUCCESS)
    assert answers.get() == "c"
    process.join(10)
    assert process.exitcode == 0

    # The parent's connection is as it was.
    storer.backend.store_result("parent", "p", states.SUCCESS)
    threads[0].join(10)
    assert found == {"parent": "p"}


GREEN = """
import sys
{patch}
from celery import Celery, states
from celery.result import AsyncResult
app = Celery("green", broker="memory://", backend=sys.argv[1])
from kombu.utils.compat import detect_environment
assert detect_environment() == {name!r}, detect_environment()
app.backend.store_result("ready", 0, states.SUCCESS)
names = [f"t{{n}}" for n in range(20)]
def tick():
    for _ in range(20):
        {sleep}(0.01)
    print("others ran", flush=True)
waiting = [{spawn}(lambda name=name: AsyncResult(name, app=app).get(timeout=30)) for name in names]
{spawn}(tick)
print(sum(one.{join}() for one in waiting), AsyncResult("ready", app=app).get(timeout=5), flush=True)
app.backend.close()
"""
KINDS = {
    "gevent": {
        "patch": "from gevent import monkey; monkey.patch_all(); import gevent",
        "spawn": "gevent.spawn",
        "sleep": "gevent.sleep",
        "join": "get",
    },
    "eventlet": {
        "patch": "import eventlet; eventlet.monkey_patch()",
        "spawn": "eventlet.spawn",
        "sleep": "eventlet.sleep",
        "join": "wait",
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_greenlets_wait_on_one_connection_and_let_others_run(
    name: str, backend_url: str, storer: Celery, pgqrs_dsn: str
) -> None:
    pytest.importorskip(name)
    program = GREEN.format(name=name, **KINDS[name])
    process = subprocess.Popen(
        [sys.executable, "-c", program, backend_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "others ran\n"
        eventually(lambda: len(registered(pgqrs_dsn)) == 20 or process.poll() is not None, 30)
        assert len({row["channel"] for row in ask(pgqrs_dsn, "select channel from pgqrs.celery_waiters")}) == 1
        for number in range(20):
            storer.backend.store_result(f"t{number}", number, states.SUCCESS)
        output, errors = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()

    assert (process.returncode, output.splitlines()[-1:]) == (0, ["190 0"]), errors
