"""A message that kills every consumer that touches it, beside innocent ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from pgqrs_native import Client

from tests.adapters.kombu.kombu_support import url_of

from .crowd import until

HEAD = "import os, sys\n"

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
    "Kombu": """
import kombu, pgqrs_kombu

def touch(body, message):
    if body == "poison":
        os._exit(9)
    message.ack()

with kombu.Connection(sys.argv[1], transport_options={"lease": 1.0}) as connection:
    if sys.argv[2:]:
        for body in sys.argv[2:]:
            connection.Producer(routing_key="jobs").publish(body)
        sys.exit()
    channel = connection.channel()
    channel.basic_qos(0, 8, False)
    with kombu.Consumer(channel, [kombu.Queue("jobs")], callbacks=[touch]):
        while True:
            connection.drain_events(timeout=30)
""",
    "Dramatiq": """
import time, dramatiq
from pgqrs_dramatiq import PgqrsBroker

broker = PgqrsBroker(sys.argv[1], lease=1.0)
dramatiq.set_broker(broker)

@dramatiq.actor(queue_name="jobs", max_retries=0)
def touch(body):
    if body == "poison":
        os._exit(9)

if sys.argv[2:]:
    for body in sys.argv[2:]:
        touch.send(body)
    sys.exit()
worker = dramatiq.Worker(broker, worker_threads=4)
worker.start()
time.sleep(60)
""",
}


@pytest.fixture
def client(pgqrs_dsn: str) -> Iterator[Client]:
    with Client(pgqrs_dsn) as made:
        made.admin.install()
        made.admin.create_queue("jobs", max_attempts=3, lease_seconds=0.5, archive=True)
        yield made


BODIES = ["poison", *(f"innocent {number}" for number in range(7))]


def consume_until_only_dead_are_left(client: Client, *command: str) -> int:
    """Start the consumer again whenever it is dead; return how often it died of poison."""
    running: list[subprocess.Popen[bytes]] = []

    def all_is_over() -> bool:
        if not running or running[-1].poll() is not None:
            running.append(subprocess.Popen([sys.executable, "-c", *command]))
        figures = client.admin.queue_metrics("jobs")
        return figures.dead + figures.ready + figures.in_flight + figures.delayed == figures.dead > 0

    try:
        until(all_is_over, "nothing is left but what is dead")
    finally:
        for process in running:
            process.kill()
            process.wait()
    return sum(process.returncode == 9 for process in running)


@pytest.mark.parametrize(
    "kind", ["read_batch", *(pytest.param(kind, marks=pytest.mark.faults) for kind in ("Worker", "AsyncWorker"))]
)
def test_only_the_killer_ends_as_dead(kind: str, client: Client, pgqrs_dsn: str) -> None:
    client.producer.batch_enqueue("jobs", BODIES)

    deaths = consume_until_only_dead_are_left(client, HANDLE + CONSUMERS[kind], pgqrs_dsn)

    assert [dead.body for dead in client.admin.list_dead("jobs")] == [b'"poison"']
    # As often as it was allowed to, and once for each death.
    assert deaths == 3


@pytest.mark.parametrize("kind", ["Kombu", "Dramatiq"])
def test_what_a_killer_was_prefetched_with_is_spared(kind: str, client: Client, pgqrs_dsn: str) -> None:
    script, address = CONSUMERS[kind], url_of(pgqrs_dsn) if kind == "Kombu" else pgqrs_dsn
    subprocess.run([sys.executable, "-c", HEAD + script, address, *BODIES], check=True)

    deaths = consume_until_only_dead_are_left(client, HEAD + script, address)

    (dead,) = client.admin.list_dead("jobs")
    assert b"poison" in dead.body
    assert deaths == 3
