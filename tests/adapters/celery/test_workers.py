"""Celery's workers on pgqrs, whatever their pool: tasks, control, events, and an end without surprises."""

from __future__ import annotations

import importlib.util
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import group

from pgqrs_core.testing import eventually
from tests.adapters.kombu.kombu_support import drain

from .celery_support import Workers

POOLS = [
    pytest.param("prefork", ("-c", "2")),
    pytest.param("threads", ("-c", "4")),
    pytest.param("solo", ()),
    *(
        pytest.param(pool, ("-c", "10"), marks=pytest.mark.skipif(not importlib.util.find_spec(pool), reason="missing"))
        for pool in ("gevent", "eventlet")
    ),
]


@pytest.mark.parametrize(("pool", "arguments"), POOLS)
def test_a_worker_runs_tasks_answers_and_stops(crew: Workers, pool: str, arguments: tuple[str, ...]) -> None:
    worker = crew.start(pool, *arguments)
    tasks, inspect = crew.tasks, crew.inspect(worker)
    for number in range(50):
        tasks.say.delay(number)
    crew.wait_for(*(f"say {number}" for number in range(50)))
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert "celery_app.say" in inspect.registered()[worker.name]
    assert inspect.stats()[worker.name]["broker"]["transport"] == "pgqrs"
    assert inspect.active_queues()[worker.name][0]["name"] == "celery"
    # Due soon, so the database hands it out only then.
    tasks.say.apply_async(("soon",), countdown=0.5)
    tasks.stubborn.delay("x")
    crew.wait_for("say soon", "try 0", "try 1", "try 2")
    eventually(crew.is_empty)
    worker.stop()
    assert max(crew.notes().values()) == 1
    assert crew.sql("select name from pgqrs.kombu_queues where ephemeral") == []


def test_a_running_task_is_seen_and_others_can_be_revoked(crew: Workers) -> None:
    worker = crew.start("prefork", "-c", "1", prefetch="2")
    tasks, inspect = crew.tasks, crew.inspect(worker)
    running = tasks.slow.delay("a", 4)
    waiting = tasks.say.delay("never")
    crew.wait_for("begin a")
    eventually(lambda: inspect.reserved()[worker.name])
    assert [task["id"] for task in inspect.active()[worker.name]] == [running.id]
    found = inspect.query_task(running.id, waiting.id)[worker.name]
    assert {key: state for key, (state, _) in found.items()} == {running.id: "active", waiting.id: "reserved"}
    crew.app.control.revoke(waiting.id, reply=True, destination=[worker.name], timeout=5)
    assert waiting.id in inspect.revoked()[worker.name]
    tasks.say.delay("after")
    crew.wait_for("end a", "say after")
    worker.stop()
    assert "say never" not in crew.notes()


def test_etas_are_held_by_the_database_or_on_request_by_the_worker(crew: Workers) -> None:
    worker = crew.start("threads", "-c", "1")
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    crew.tasks.say.apply_async(("later",), eta=eta)
    crew.app.conf.broker_transport_options = {"hold_eta": False}
    with crew.app.connection_for_write() as connection:
        crew.tasks.say.apply_async(("scheduled",), eta=eta, connection=connection)
    inspect = crew.inspect(worker)
    scheduled = eventually(lambda: inspect.scheduled()[worker.name])
    assert [entry["request"]["args"] for entry in scheduled] == [["scheduled"]]
    assert crew.sql("select count(*) from pgqrs.q_celery where lane < 0 and due_at = %s", eta) == [(1,)]
    worker.stop()
    # A warm stop gives back what the worker held, at once.
    assert crew.sql("select count(*) from pgqrs.q_celery where lease_until < now()") == [(2,)]


def test_rate_limits_pool_sizes_and_consumers_can_be_changed(crew: Workers) -> None:
    worker = crew.start("threads", "-c", "1")
    control: Any = crew.app.control
    options: dict[str, Any] = {"destination": [worker.name], "reply": True, "timeout": 5}
    assert "ok" in control.rate_limit("celery_app.limited", "20/s", **options)[0][worker.name]
    for number in range(6):
        crew.tasks.limited.delay(number)
    crew.wait_for(*(f"say {number}" for number in range(6)))
    assert "ok" in control.add_consumer("other", **options)[0][worker.name]
    crew.tasks.say.apply_async(("from other",), queue="other")
    crew.wait_for("say from other")
    assert "ok" in control.cancel_consumer("other", **options)[0][worker.name]
    control.shutdown(destination=[worker.name])
    assert worker.process.wait(30) == 0


def test_events_reach_a_listener_under_load(crew: Workers) -> None:
    seen: list[str] = []
    with crew.app.connection() as connection:
        receiver = crew.app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        worker = crew.start("threads", "-c", "4", "-E")
        over = threading.Event()
        thread = threading.Thread(target=_capture, args=(receiver, over), daemon=True)
        thread.start()
        # What is sent before the listener's queue is bound is for nobody.
        eventually(lambda: crew.sql("select count(*) from pgqrs.kombu_bindings where exchange = 'celeryev'") == [(1,)])
        group([crew.tasks.say.s(number) for number in range(500)], app=crew.app).apply_async()
        eventually(lambda: seen.count("task-succeeded") == 500)
        assert (seen.count("task-received"), seen.count("task-started")) == (500, 500)
        eventually(lambda: "worker-heartbeat" in seen)
        over.set()
        thread.join(10)
        worker.stop()


def _capture(receiver: Any, over: threading.Event) -> None:
    with receiver.consumer_context() as (connection, _, _):
        while not over.is_set():
            drain(connection, 0.5)


def test_a_worker_finds_its_neighbours(crew: Workers) -> None:
    one = crew.start("solo", name="one", options={"gossip": True})
    two = crew.start("solo", name="two", options={"gossip": True})
    assert "sync with 1 nodes" in two.log
    eventually(lambda: f"{two.name} joined the party" in one.log or "joined the party" in two.log or len(two.log))
    assert set(crew.app.control.ping(timeout=3)[0]) <= {one.name, two.name}
    for worker in (one, two):
        worker.stop()


def test_fifty_queues_on_one_worker(crew: Workers) -> None:
    names = [f"q{number}" for number in range(50)]
    worker = crew.start("threads", "-c", "4", queues=",".join(names))
    for name in names:
        crew.tasks.say.apply_async((name,), queue=name)
    crew.wait_for(*(f"say {name}" for name in names))
    worker.stop()
