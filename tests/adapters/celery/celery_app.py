"""The application that the workers of these tests run. What its tasks do stands in a file, one line each."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from kombu import Queue

app = Celery("test", broker=os.environ["TEST_BROKER"])
app.conf.update(
    broker_transport_options=json.loads(os.environ.get("TEST_OPTIONS", "{}")),
    broker_connection_retry_on_startup=True,
    task_queues=[Queue(name) for name in os.environ.get("TEST_QUEUES", "celery").split(",")],
    task_default_queue="celery",
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("TEST_PREFETCH", "4")),
)
app.conf.update(json.loads(os.environ.get("TEST_CONF", "{}")))


def note(text: str) -> None:
    """Append a line; short appends to a file are atomic."""
    with open(os.environ["TEST_NOTES"], "a", encoding="utf-8") as file:
        file.write(text + "\n")


@app.task(shared=False)
def say(text: Any) -> None:
    note(f"say {text}")


@app.task(shared=False, acks_late=True)
def slow(text: Any, seconds: float) -> None:
    note(f"begin {text}")
    time.sleep(seconds)
    note(f"end {text}")


def hold_until_told(text: Any) -> None:
    note(f"begin {text}")
    while not os.path.exists(os.environ["TEST_NOTES"] + ".go"):
        time.sleep(0.02)
    note(f"end {text}")


@app.task(shared=False, acks_late=True)
def hold(text: Any) -> None:
    hold_until_told(text)


@app.task(shared=False)
def hold_acked(text: Any) -> None:
    hold_until_told(text)


@app.task(shared=False, acks_late=True, reject_on_worker_lost=True)
def die(text: Any) -> None:
    note(f"die {text}")
    os._exit(1)


@app.task(shared=False, acks_late=True)
def fail_once(text: Any) -> None:
    with open(os.environ["TEST_NOTES"], "a+", encoding="utf-8") as file:
        file.seek(0)
        if f"failed {text}\n" not in file:
            file.write(f"failed {text}\n")
            raise ValueError(text)
    note(f"worked {text}")


@app.task(shared=False, rate_limit="2/s")
def limited(text: Any) -> None:
    note(f"say {text}")


@app.task(shared=False, bind=True, max_retries=3)
def stubborn(self: Any, text: Any) -> None:
    note(f"try {self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(countdown=0.2)


@app.task(shared=False)
def pass_on(text: Any) -> str:
    say.delay(text)
    return f"passed {text}"
