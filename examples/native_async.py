"""Produce and consume at the same time with the asynchronous client.

Needs DATABASE_URL. Prints::

    5 messages by 3 consumers: 0 1 4 9 16
    nothing left after 0.1 s of waiting
"""

import asyncio

from pgqrs_native import AsyncClient

QUEUE = "example_native_async"


async def consume(client: AsyncClient, results: list[int]) -> None:
    """Handle messages for ever. An idle consumer sleeps until there is one, or for as long as it cares to wait."""
    while True:
        async with client.consumer.lease(QUEUE, int, wait=60) as message:
            if message is not None:
                results.append(message.payload**2)


async def main() -> None:
    """Let three consumers and some producers meet."""
    async with AsyncClient() as client:
        await client.admin.install()
        await client.admin.create_queue(QUEUE)
        results: list[int] = []
        consumers = [asyncio.create_task(consume(client, results)) for _ in range(3)]

        # Concurrent enqueues share a statement.
        await asyncio.gather(*(client.producer.enqueue(QUEUE, number) for number in range(5)))
        while len(results) < 5:
            await asyncio.sleep(0.01)
        print(f"5 messages by {len(consumers)} consumers:", *sorted(results))

        # A consumer that is cancelled gives back what it holds.
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
        if await client.consumer.read(QUEUE, wait=0.1) is None:
            print("nothing left after 0.1 s of waiting")
        await client.admin.delete_queue(QUEUE)


asyncio.run(main())
