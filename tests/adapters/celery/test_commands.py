"""Celery's own commands, and Flower, on the transport."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from typing import Any

import pytest

from pgqrs_core.testing import PATIENCE, eventually

from .celery_support import Workers


def test_amqp_declares_publishes_gets_and_deletes(crew: Workers) -> None:
    def amqp(*arguments: str) -> str:
        return crew.command("amqp", *arguments)

    amqp("exchange.declare", "news", "topic")
    assert "queue:inbox messages:0 consumers:0" in amqp("queue.declare", "inbox")
    amqp("queue.bind", "inbox", "news", "eu.#")
    amqp("basic.publish", "hello", "news", "eu.fr")
    amqp("basic.publish", "nobody", "news", "us")
    assert "queue:inbox messages:1" in amqp("queue.declare", "inbox", "true")
    assert "hello" in amqp("basic.get", "inbox")
    assert "1 messages deleted" in amqp("queue.purge", "inbox")
    amqp("queue.delete", "inbox")
    assert crew.sql("select count(*) from pgqrs.queues where name = 'inbox'") == [(0,)]


def test_bindings_are_listed(crew: Workers) -> None:
    worker = crew.start("solo")

    lines = [line.split() for line in crew.command("list", "bindings").splitlines()]

    assert ["celery", "celery", "celery"] in lines
    worker.stop()


def test_status_inspect_and_purge_answer(crew: Workers) -> None:
    worker = crew.start("solo", queues="other")
    crew.tasks.say.delay("never")

    assert f"{worker.name}: OK" in crew.command("status")
    assert "celery_app.say" in crew.command("inspect", "registered")
    assert "Purged 1 message" in crew.command("purge", "-f", "-Q", "celery")
    worker.stop()


def test_events_are_dumped(crew: Workers) -> None:
    worker = crew.start("threads", "-c", "2", "-E")
    printed: list[str] = []
    dump = threading.Thread(target=lambda: printed.append(crew.command("events", "--dump", seconds=12)))
    dump.start()
    # It listens once its queue is there.
    eventually(lambda: crew.sql("select count(*) from pgqrs.kombu_queues where name like 'celeryev%'") == [(1,)])
    eventually(lambda: crew.sql("select count(*) from pgqrs.kombu_bindings where exchange = 'celeryev'") != [(0,)])
    for number in range(5):
        crew.tasks.say.delay(number)
    dump.join(60)

    assert printed[0].count("task succeeded") == 5
    worker.stop()


def test_a_pool_grows_and_shrinks_with_its_load(crew: Workers) -> None:
    worker = crew.start("prefork", "--autoscale=3,1", AUTOSCALE_KEEPALIVE="1")
    inspect = crew.inspect(worker)

    def processes() -> int:
        return len((inspect.stats() or {worker.name: {"pool": {"processes": []}}})[worker.name]["pool"]["processes"])

    assert processes() == 1
    for number in range(6):
        crew.tasks.slow.delay(number, 3)
    eventually(lambda: processes() == 3)
    crew.wait_for(*(f"end {number}" for number in range(6)), patience=60)
    eventually(crew.is_empty)
    assert set(crew.notes().values()) == {1}
    worker.stop()


def test_flower_sees_workers_and_tasks(crew: Workers) -> None:
    pytest.importorskip("flower")
    worker = crew.start("threads", "-c", "2", "-E")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = crew.directory / "flower.log"
    with log.open("wb") as output:
        flower = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "celery_app", "flower", f"--port={port}", "--address=127.0.0.1"],
            env={**crew.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
            cwd=crew.directory,
            stdout=output,
            stderr=output,
        )

    def get(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=PATIENCE) as answer:
                return json.load(answer)
        except OSError:
            assert flower.poll() is None, log.read_text()
            return {}

    try:
        assert worker.name in eventually(lambda: get("workers?refresh=1"), 2 * PATIENCE)
        for number in range(3):
            crew.tasks.say.delay(number)
        eventually(lambda: [task["state"] for task in get("tasks").values()] == ["SUCCESS"] * 3, 2 * PATIENCE)
    finally:
        os.kill(flower.pid, signal.SIGTERM)
        flower.wait(PATIENCE)
    worker.stop()
