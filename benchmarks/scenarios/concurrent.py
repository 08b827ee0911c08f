"""64 tasks that enqueue at the same time on one connection, beside one task that does so by itself."""

from __future__ import annotations

import asyncio

from pgqrs_native import AsyncClient

from benchmarks.measure import Cost
from benchmarks.payloads import BYTES
from benchmarks.report import Figure, at_least, compare_costs
from benchmarks.server import Setting
from pgqrs_core.config import Config

__all__ = ["concurrent"]

TASKS = 64


def concurrent(setting: Setting) -> list[Figure]:
    """Measure both on a client that may open one connection."""
    with setting.queue("concurrent") as queue:
        rounds = setting.size(30, 5)
        # The second is the wake-up connection's, which a producer never opens.
        config = Config.load(url=setting.dsn, max_connections=2, connection_pool_size=1)

        async def together(client: AsyncClient) -> Cost:
            reading = setting.meter.read()
            for _ in range(rounds):
                await asyncio.gather(*(client.producer.enqueue(queue, BYTES) for _ in range(TASKS)))
            return reading.cost(rounds * TASKS)

        async def one_by_one(client: AsyncClient) -> Cost:
            reading = setting.meter.read()
            for _ in range(rounds * 8):
                await client.producer.enqueue(queue, BYTES)
            return reading.cost(rounds * 8)

        async def all_sides() -> dict[str, list[Cost]]:
            async with AsyncClient(config) as client:
                await client.producer.enqueue(queue, BYTES)
                seen: dict[str, list[Cost]] = {"together": [], "one by one": []}
                for _ in range(setting.repeats):
                    seen["together"].append(await together(client))
                    seen["one by one"].append(await one_by_one(client))
                return seen

        seen = asyncio.run(all_sides())
    return [
        compare_costs(
            "64 × await enqueue on one connection",
            "messages/s",
            seen["together"],
            seen["one by one"],
            "one by one",
            at_least(8),
        )
    ]
