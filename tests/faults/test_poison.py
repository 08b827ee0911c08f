"""A message that kills every consumer that touches it, beside innocent ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from pgqrs_native import Client

from .crowd import until

#: A consumer of each kind: it notes what it has handled, and dies of poison.
HANDLE = """
import os, sys
from pgqrs_native import AsyncClient, AsyncWorker, Client, Worker

def handle(message):
    if message.payload == "poison":
        os._exit(9)
    print(message.payload, flush=True)
"""
CONSUMERS = {
    "read_batch": """
with Client(sys.argv[1]) as client:
    while messages := client.consumer.read_batch("jobs", count=8, lock_time=0.5, wait=3):
        for message in messages:
            handle(message)
            client.consumer.dequeue(message)
""",
    "Worker": """
with Client(sys.argv[1]) as client:
    worker = Worker(client, concurrency=4)
    worker.handler("jobs")(handle)
    worker.run()
""",
    "AsyncWorker": """
import asyncio

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        worker = AsyncWorker(client, concurrency=4)

        @worker.handler("jobs")
        async def touch(message):
            handle(message)
            await asyncio.sleep(0)

        await worker.run()

asyncio.run(main())
""",
}


@pytest.fixture
def client(pgqrs_dsn: str) -> Iterator[Client]:
    with Client(pgqrs_dsn) as made:
        made.admin.install()
        made.admin.create_queue("jobs", max_attempts=3, lease_seconds=0.5, archive=True)
        yield made


@pytest.mark.parametrize(
    "kind", ["read_batch", *(pytest.param(kind, marks=pytest.mark.faults) for kind in ("Worker", "AsyncWorker"))]
)
def test_only_the_killer_ends_as_dead(kind: str, client: Client, pgqrs_dsn: str) -> None:
    client.producer.batch_enqueue("jobs", ["poison", *(f"innocent {number}" for number in range(7))])

    running: list[subprocess.Popen[bytes]] = []

    def all_is_over() -> bool:
        if not running or running[-1].poll() is not None:
            running.append(subprocess.Popen([sys.executable, "-c", HANDLE + CONSUMERS[kind], pgqrs_dsn]))
        figures = client.admin.queue_metrics("jobs")
        return figures.dead + figures.ready + figures.in_flight + figures.delayed == figures.dead > 0

    try:
        until(all_is_over, "nothing is left but what is dead")
    finally:
        for process in running:
            process.kill()
            process.wait()

    assert [dead.body for dead in client.admin.list_dead("jobs")] == [b'"poison"']
    # As often as it was allowed to, and once for each death.
    assert sum(process.returncode == 9 for process in running) == 3
