"""Messages that cannot be handled: the worker goes on, and what became of them can be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from pgqrs_core.testing import eventually

from .celery_support import Workers

#: Raises at its first run and works at its second.
FLAKY = "flaky"


def publish_raw(crew: Workers, body: Any, **options: Any) -> None:
    with crew.app.producer_or_acquire() as producer:
        producer.publish(body, exchange="", routing_key="celery", **options)


def dead(crew: Workers) -> list[Any]:
    return [row[0] for row in crew.sql("select last_error from pgqrs.q_celery where lane = -100 order by message_id")]


def pgqrs(crew: Workers, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from pgqrs_native.command import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DATABASE_URL": crew.dsn, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_goes_on_after_what_it_cannot_read_or_does_not_know(crew: Workers, pool: str) -> None:
    worker = crew.start(pool)
    # Not accepted, not decodable, no task, an unknown one.
    publish_raw(crew, b"\x80\x04.", content_type="application/x-python-serialize", content_encoding="binary")
    publish_raw(crew, b"{", content_type="application/json", content_encoding="utf-8")
    publish_raw(crew, {"no": "task"})
    crew.app.send_task("nobody.knows.it")
    crew.tasks.say.delay("after")

    crew.wait_for("say after")

    # What Celery acks is gone, as on RabbitMQ; what it rejects is kept.
    eventually(lambda: crew.sql("select count(*) from pgqrs.q_celery where lane > -100") == [(0,)])
    assert len(dead(crew)) >= 1
    assert worker.process.poll() is None
    worker.kill()


def test_a_failing_task_that_is_not_acked_is_a_dead_letter_and_can_be_replayed(crew: Workers) -> None:
    worker = crew.start("prefork", "-c", "1", conf={"task_acks_on_failure_or_timeout": False})
    crew.tasks.fail_once.delay(FLAKY)
    eventually(lambda: len(dead(crew)) == 1)
    assert dead(crew)[0]["type"]

    pgqrs(crew, "dead", "replay", "celery", "--all")

    crew.wait_for(f"worked {FLAKY}")
    eventually(crew.is_empty)
    worker.kill()


def test_a_task_beyond_its_time_limit_is_not_run_again(crew: Workers) -> None:
    worker = crew.start("prefork", "-c", "1", "--time-limit", "1")
    crew.tasks.slow.delay("a", 30)
    crew.wait_for("begin a")
    crew.tasks.say.delay("next")

    crew.wait_for("say next")

    eventually(crew.is_empty)
    assert crew.notes()["begin a"] == 1
    worker.kill()
