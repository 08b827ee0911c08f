"""What cannot be published as it is asked for is refused with a channel error, and nothing is stored."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from kombu import Producer, Queue

from .kombu_support import Bench


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("priority", value) for value in ("high", -1, 2.5, math.nan, math.inf, True, [1])),
        *(("content_type", value) for value in ("a\udc80", "a\0", 5)),
        *(("exchange", value) for value in ("a\udc80", "a\0")),
        *(("routing_key", value) for value in ("a\udc80", "a\0", 5, "x" * 256)),
        *(
            ("headers", value)
            for value in ({1: "a", "1": "b"}, {"a": {None: 1, "null": 2}}, {"n": math.nan}, {"o": object()})
        ),
        ("correlation_id", object()),
    ],
)
def test_it_is_refused_and_nothing_is_stored(bench: Bench, name: str, value: object) -> None:
    connection = bench.connect()
    Queue("q")(connection.channel()).declare()
    options: dict[str, Any] = {"routing_key": "q", "content_encoding": "utf-8", name: value}

    with pytest.raises(PreconditionFailed, match="must be") as raised:
        Producer(connection).publish("x", **options)

    assert isinstance(raised.value, connection.channel_errors)
    assert bench.rows("q") == 0


@pytest.mark.parametrize("priority", [None, 0, 9, 10, 255, "5", b"5", 5.0, 10**30])
def test_priorities_are_whole_numbers(bench: Bench, priority: Any) -> None:
    Producer(bench.connect()).publish("x", routing_key="q", priority=priority, declare=[Queue("q")])

    assert bench.sql("select priority from pgqrs.q_q") == [(min(int(priority or 0), 9),)]


@pytest.mark.parametrize(
    "eta", ["whenever", "2030-13-45T00:00:00", datetime.max.replace(tzinfo=timezone.utc).isoformat()]
)
def test_the_eta_of_a_task_is_a_time(bench: Bench, eta: str) -> None:
    app = Celery("t", broker=bench.url, set_as_current=False)
    task = app.signature("t")
    task.apply_async()
    if eta.startswith("9999"):
        task.apply_async(eta=eta)
    else:
        with pytest.raises(PreconditionFailed, match="eta"):
            task.apply_async(eta=eta)
    # Another program may mean something else by this header.
    Producer(bench.connect()).publish("x", routing_key="celery", headers={"eta": eta})
    app.pool.force_close_all()
    app.close()

    assert bench.rows("celery") == (3 if eta.startswith("9999") else 2)
