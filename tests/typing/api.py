"""User code that must pass ``mypy --strict``: what a type checker knows of the native API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypedDict

import msgspec
from pgqrs_native import AsyncClient, AsyncWorker, Client, Message, Reject, Retry, Worker
from typing_extensions import assert_type

from pgqrs_core.config import Config
from pgqrs_core.errors import PayloadError
from pgqrs_core.messages import ArchivedMessage, DeadMessage, Metrics, Queue, Snapshot


@dataclass
class Email:
    to: str


class Order(msgspec.Struct):
    number: int


class Note(TypedDict):
    text: str


def configure() -> tuple[Client, AsyncClient]:
    Client()
    Client("postgresql://localhost/app")
    return Client(Config.load(schema="jobs")), AsyncClient(None)


def administer(client: Client) -> None:
    assert_type(client.admin.install(), list[str])
    assert_type(client.admin.create_queue("mail", max_attempts=3, archive=False), Queue)
    assert_type(client.admin.list_queues(), list[Queue])
    assert_type(client.admin.queue_metrics("mail"), Metrics)
    assert_type(client.admin.all_queues_metrics(), list[Metrics])
    assert_type(client.admin.peek("mail"), list[Snapshot])
    assert_type(client.admin.list_dead("mail"), list[DeadMessage])
    assert_type(client.admin.list_archive("mail"), list[ArchivedMessage])
    assert_type(client.admin.purge_queue("mail"), int)
    client.admin.delete_queue("mail")


def produce(client: Client) -> None:
    assert_type(client.producer.enqueue("mail", Email("a"), priority=9, ttl=60, headers={"k": 1}), int)
    assert_type(client.producer.enqueue("mail", b"raw", at=datetime.now(timezone.utc), connection=object()), int)
    assert_type(client.producer.enqueue("mail", b"raw", idempotency_key="k"), int)
    assert_type(client.producer.enqueue_delayed("mail", {"any": [1, None]}, 5), int)
    assert_type(client.producer.batch_enqueue("mail", (Email(name) for name in "ab")), list[int])


def consume(client: Client) -> None:
    consumer = client.consumer
    assert_type(consumer.read("mail"), Message[Any] | None)
    assert_type(consumer.read("mail", Email, wait=1), Message[Email] | None)
    assert_type(consumer.read_batch("mail", Order, count=10, lock_time=30), list[Message[Order]])
    assert_type(consumer.read_batch("mail", Note, mismatch="return"), list[Message[Note]])
    assert_type(consumer.read_batch("mail", list[int]), list[Message[list[int]]])
    # What is no class has no type of its own here, but may be asked for.
    assert_type(consumer.read("mail", Email | Order), Message[Any] | None)

    message = consumer.read("mail", Email)
    if message is None:
        return
    assert_type(message.payload, Email)
    assert_type(message.payload.to, str)
    assert_type(message.headers, dict[str, Any])
    assert_type(message.message_type, str | None)
    assert_type(message.error, PayloadError | None)
    consumer.dequeue(message, connection=object())
    assert_type(consumer.archive_batch([message]), list[bool])
    fate = consumer.nack(message, delay=5, error=ValueError("why"))
    if fate == "dead":
        consumer.extend_lock(message, 30)

    with consumer.lease("mail", Email, wait=5) as leased:
        assert_type(leased, Message[Email] | None)
    with consumer.lease("mail") as anything:
        assert_type(anything, Message[Any] | None)
    with consumer.lease_batch("mail", Order, count=5, archive=True) as orders:
        assert_type(orders, list[Message[Order]])
        consumer.hold(orders)


def work(client: Client) -> None:
    worker = Worker(client, concurrency=4, prefetch=10, on_success="archive")

    @worker.handler("mail", Email)
    def one(message: Message[Email]) -> None:
        if message.attempt > 1:
            raise Reject("enough")
        raise Retry("later", delay=5)

    @worker.batch_handler("mail", Order, count=10)
    def many(messages: Sequence[Message[Order]]) -> list[Exception | None]:
        return [None for message in messages]

    # Handlers stay callable as what they are.
    assert_type(many([]), list[Exception | None])
    worker.run(signals=False)
    worker.stop()


async def consume_on_asyncio(client: AsyncClient) -> None:
    assert_type(await client.admin.install(), list[str])
    assert_type(await client.producer.enqueue("mail", Order(1)), int)
    assert_type(await client.consumer.read_batch("mail", Email, wait=1), list[Message[Email]])
    assert_type(await client.consumer.read("mail"), Message[Any] | None)
    assert_type(await client.consumer.read("mail", Email | Order), Message[Any] | None)
    async with client.consumer.lease("mail", Email) as message:
        assert_type(message, Message[Email] | None)
    async with client.consumer.lease_batch("mail", Order) as orders:
        assert_type(orders, list[Message[Order]])


async def work_on_asyncio() -> None:
    async with AsyncClient() as client:
        worker = AsyncWorker(client, concurrency=100)

        @worker.handler("mail", Email)
        async def handle(message: Message[Email]) -> None:
            await client.consumer.archive(message)

        await worker.run()
