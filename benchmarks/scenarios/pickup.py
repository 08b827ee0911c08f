"""How soon an idle consumer starts on a message, beside a bare NOTIFY ping-pong.

The clock starts just before the producer sends and stops when the message is in the consumer's hands; both
processes read the same monotonic clock. Before each message the consumer has been idle for a random while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pgqrs_native import AsyncClient, Client

from benchmarks.floors import Latencies, bare_pickup, latency, percentile, produce, stamped
from benchmarks.measure import interleave
from benchmarks.processes import Gate, Job, together
from benchmarks.report import Figure, at_most, compare
from benchmarks.server import Setting

__all__ = ["run"]

QUEUE = "pickup"


def run(setting: Setting) -> list[Figure]:
    """Measure the blocking and the asynchronous client."""
    count = setting.size(150, 25)

    def side(take: Callable[..., Latencies]) -> Latencies:
        (latencies, _), _ = together([Job(take, (setting.dsn, count)), Job(_send, (setting.dsn, count))])
        return sorted(latencies)

    sides = {
        "bare": partial(bare_pickup, setting.dsn, count),
        "Client": partial(side, _take),
        "AsyncClient": partial(side, _take_async),
    }
    with setting.queue(QUEUE):
        seen = interleave(setting.repeats, sides)
    figures = []
    for name in ("Client", "AsyncClient"):
        for percent, target in ((50, at_most(2)), (99, at_most(4))):
            ours, bare = ([percentile(run, percent) for run in seen[kind]] for kind in (name, "bare"))
            title = f"{name}, p{percent} of {count}"
            figures.append(compare(title, "ms", ours, bare, "bare NOTIFY", target))
    return figures


def _send(gate: Gate, dsn: str, count: int) -> None:
    with Client(dsn) as client:
        client.engine.queue(QUEUE)
        produce(gate, count, lambda: client.producer.enqueue(QUEUE, stamped()))


def _take(gate: Gate, dsn: str, count: int) -> Latencies:
    with Client(dsn) as client:
        client.engine.queue(QUEUE)
        gate()
        latencies: Latencies = []
        while len(latencies) < count + 2:
            message = client.consumer.read(QUEUE, wait=30)
            if message is not None:
                latencies.append(latency(message.payload))
                client.consumer.dequeue(message)
        return latencies[2:]


def _take_async(gate: Gate, dsn: str, count: int) -> Latencies:
    async def take() -> Latencies:
        async with AsyncClient(dsn) as client:
            await client.engine.queue(QUEUE)
            gate()
            latencies: Latencies = []
            while len(latencies) < count + 2:
                message = await client.consumer.read(QUEUE, wait=30)
                if message is not None:
                    latencies.append(latency(message.payload))
                    await client.consumer.dequeue(message)
            return latencies[2:]

    return asyncio.run(take())
