"""Rows that Dramatiq did not write, beside honest messages: the worker stays, and each is handled or dead with a reason."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import dramatiq

from pgqrs_core.testing import eventually

from .dramatiq_support import Station, noting, quiet

VALUES: list[Any] = [
    None, True, 0, -1, 2**63, 10**400, 1e308, "", "x", "\ud800", "x" * 5_000, [], [[]], {}, {"a": [1]}, [1, "x"],
]  # fmt: skip
FIELDS = ["queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp"]
OPTIONS = [
    "retries", "max_retries", "min_backoff", "max_backoff", "max_age", "time_limit", "notify_shutdown", "pipe_target",
    "pipe_ignore", "on_success", "on_failure", "group_info", "group_callback_uuid", "group_completion_uuid",
    "group_completion_callbacks", "redis_message_id", "eta", "traceback", "requeue_timestamp", "throws", "jitter",
    "store_results", "result_ttl", "asgi", "broker_priority",
]  # fmt: skip
BODIES = [
    b"", b"1", b"null", b'"x"', b"[]", b"[1]", b"{}", b"\xff", b"{", b"[" * 50_000 + b"]" * 50_000, b'{"args":[]}', b"\0",
    b'{"queue_name":"default","actor_name":"act","args":[1],"kwargs":{},"options":{},"message_id":"x"}', b"NaN",
]  # fmt: skip


def bodies(count: int) -> Iterator[bytes]:
    rng = random.Random(16)

    def message(**changes: Any) -> bytes:
        fields = {
            "queue_name": "default",
            "actor_name": "act",
            "args": ["hostile"],
            "kwargs": {},
            "options": {},
            "message_id": f"m{rng.random()}",
            "message_timestamp": 1,
        }
        return json.dumps({**fields, **changes}).encode()

    yield from BODIES
    for field in FIELDS:
        for value in VALUES:
            yield message(**{field: value})
        without = json.loads(message())
        del without[field]
        yield json.dumps(without).encode()
    for option in OPTIONS:
        for value in VALUES:
            yield message(options={option: value})
            yield message(options={option: value}, args=["fail"])
    for _ in range(count):
        yield message(options={name: rng.choice(VALUES) for name in rng.sample(OPTIONS, 3)}, args=[rng.choice(VALUES)])


def test_a_worker_goes_on_whatever_lies_in_its_queue(station: Station) -> None:
    broker = station.broker()
    broker.add_middleware(dramatiq.results.Results(backend=station.results()))
    done: list[Any] = []

    def act(value: Any) -> None:
        if value == "fail":
            raise ValueError(value)
        done.append(value)

    actor = dramatiq.actor(noting(act), broker=broker, actor_name="act", min_backoff=10_000_000, max_retries=1)
    hostile = list(bodies(100))
    actor.send("honest 0")
    for start, body in enumerate(hostile, 1):
        station.sql("insert into pgqrs.q_default (lane, content_type, body) values (0, 'application/json', %s)", body)
        if start % 50 == 0:
            actor.send(f"honest {start}")
    expected = {"honest 0", *(f"honest {start}" for start in range(50, len(hostile) + 1, 50))}

    with quiet(), station.worker(broker, threads=2) as worker:
        eventually(lambda: expected <= {value for value in done if isinstance(value, str)}, 60)
        # What waits for its retry is delayed, and says why.
        left = "select body from pgqrs.q_default where lane > -100 and last_error is null limit 3"
        eventually(lambda: not station.sql(left), 60)
        assert all(thread.is_alive() for thread in [*worker.workers, *worker.consumers.values()])
        actor.send("after")
        eventually(lambda: "after" in done)

    dead = station.dead()
    assert len(dead) > len(BODIES)
    assert [error for error in dead if not (error.get("type") and error.get("message") is not None)] == []
