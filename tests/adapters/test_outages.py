"""A restart of the database has two lines in the log of each process: one when it begins, one when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.results import Results, ResultTimeout
from pgqrs_dramatiq import PgqrsBroker, PgqrsResultBackend
from pgqrs_native import AsyncClient, AsyncWorker, Client, Worker

from pgqrs_core.errors import Unavailable
from pgqrs_core.figures import process_figures
from pgqrs_core.testing import PATIENCE, eventually
from tests.adapters.celery.celery_support import Workers
from tests.support.own_server import OwnServer, own_server


@pytest.fixture(scope="module")
def server(pgqrs_bindir: Path) -> Iterator[OwnServer]:
    with own_server(pgqrs_bindir) as made:
        yield made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What loggers of ours have said that is worth a warning."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("pgqrs")
    ]


def assert_two(said: list[str]) -> None:
    assert len(said) == 2, said
    assert "can be reached again, after" in said[1]


def test_of_a_worker_and_of_readers_on_threads(server: OwnServer, caplog: pytest.LogCaptureFixture) -> None:
    with Client(server.dsn) as client, Client(server.dsn) as other:
        client.admin.install()
        client.admin.create_queue("threads")
        client.admin.create_queue("other")
        worker, seen = Worker(client, concurrency=2), []
        worker.handler("threads", int)(lambda message: seen.append(message.payload))
        running = threading.Thread(target=worker.run, kwargs={"signals": False})
        reader = threading.Thread(target=read_one, args=(other, seen))
        running.start()
        reader.start()
        client.producer.enqueue("threads", 1)
        eventually(lambda: seen == [1])
        caplog.clear()
        try:
            server.restart()
            eventually(lambda: "reached again" in "".join(lines(caplog)))
            client.producer.enqueue("threads", 2)
            eventually(lambda: seen == [1, 2])
            client.producer.enqueue("other", 3)
            eventually(lambda: seen == [1, 2, 3])
        finally:
            worker.stop()
            running.join(PATIENCE)
            reader.join(PATIENCE)
    assert_two(lines(caplog))


def test_of_a_worker_in_an_event_loop(server: OwnServer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with AsyncClient(server.dsn) as client:
            await client.admin.install()
            await client.admin.create_queue("loop")
            worker, seen = AsyncWorker(client, concurrency=2), []

            async def handle(message: Any) -> None:
                seen.append(message.payload)

            worker.handler("loop", int)(handle)
            running = asyncio.create_task(worker.run(signals=False))
            await client.producer.enqueue("loop", 1)
            await until(lambda: seen == [1])
            caplog.clear()
            await asyncio.to_thread(server.restart)
            await until(lambda: "reached again" in "".join(lines(caplog)))
            await client.producer.enqueue("loop", 2)
            await until(lambda: seen == [1, 2])
            worker.stop()
            await running

    asyncio.run(main())
    assert_two(lines(caplog))


def read_one(client: Client, seen: list[Any]) -> None:
    while True:
        with contextlib.suppress(Unavailable):
            message = client.consumer.read("other", int, wait=PATIENCE)
            if message is not None:
                seen.append(message.payload)
            return
        threading.Event().wait(0.05)


def wait_in_vain(results: PgqrsResultBackend) -> None:
    with contextlib.suppress(ResultTimeout):
        dramatiq.Message("default", "none", (), {}, {}).get_result(backend=results, block=True, timeout=2_000)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        if is_so():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about")


def test_of_a_worker_of_dramatiq_with_results(server: OwnServer, caplog: pytest.LogCaptureFixture) -> None:
    broker, results = PgqrsBroker(server.dsn), PgqrsResultBackend(server.dsn)
    broker.add_middleware(Results(backend=results))
    act = dramatiq.actor(lambda number: number, actor_name="act", broker=broker, store_results=True)
    worker = dramatiq.Worker(broker, worker_threads=2, worker_timeout=100)
    logger = logging.getLogger("dramatiq")
    before, logger.level = logger.level, logging.CRITICAL + 1
    worker.start()
    try:
        assert act.send(1).get_result(backend=results, block=True) == 1
        caplog.clear()
        waits = threading.Thread(target=wait_in_vain, args=(results,))
        waits.start()
        eventually(lambda: any(figures.watched > 1 for figures in process_figures()))
        server.restart()
        eventually(lambda: "reached again" in "".join(lines(caplog)))
        assert act.send(2).get_result(backend=results, block=True) == 2
        waits.join(PATIENCE)
    finally:
        worker.stop()
        logger.level = before
        broker.close()
    assert_two(lines(caplog))


def test_of_a_worker_of_celery_with_results(
    server: OwnServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crew = Workers(server.dsn, tmp_path)
    try:
        conf = {"result_backend": crew.url, "task_ignore_result": False}
        worker = crew.start("prefork", "-c", "2", conf=conf)
        crew.tasks.say.delay("before")
        crew.wait_for("say before")
        server.restart()
        eventually(lambda: "can be reached again" in worker.log, 3 * PATIENCE)
        crew.tasks.say.delay("after")
        crew.wait_for("say after")
        said = [line for line in worker.log.splitlines() if " broke," in line or "can be reached again" in line]
        worker.process.terminate()
        worker.process.wait(PATIENCE)
    finally:
        crew.close()
    assert_two(said)
