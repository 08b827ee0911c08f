"""Producers and consumers, each a process of its own: through the API, with bare psycopg, with PGMQ's client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Literal

from pgqrs_native import Client

from benchmarks.bare import Ours
from benchmarks.measure import Cost, Meter, Stopwatch, Timed
from benchmarks.payloads import BYTES
from benchmarks.pgmq_client import open_pgmq
from benchmarks.processes import CONTEXT, Gate, Job, cost_of

__all__ = ["Flow", "consume_api", "drain_api", "drain_pgmq", "flow"]

#: When how many messages were acked, on the clock that all processes share.
Events = list[tuple[float, int]]
Way = Literal["api", "bare"]

BATCH = 100


def drain_api(gate: Gate, dsn: str, queue: str) -> Timed:
    """Take messages out through the API until there are none."""
    with Client(dsn) as client:
        client.engine.queue(queue)
        client.consumer.dequeue_batch(client.consumer.read_batch(queue, count=1))
        gate()
        done, ended = 0, 0.0
        with Stopwatch() as watch:
            while messages := client.consumer.read_batch(queue, count=BATCH):
                done += sum(client.consumer.dequeue_batch(messages))
                ended = time.monotonic()
        return watch.timed(done, ended=ended)


def drain_pgmq(gate: Gate, dsn: str, queue: str) -> Timed:
    """Take messages out with PGMQ's client until there are none."""
    with closing(open_pgmq(dsn)) as client:
        client.delete_batch(queue, [message.msg_id for message in client.read_batch(queue, batch_size=1)])
        gate()
        done, ended = 0, 0.0
        with Stopwatch() as watch:
            while messages := client.read_batch(queue, vt=30, batch_size=BATCH):
                done += len(client.delete_batch(queue, [message.msg_id for message in messages]))
                ended = time.monotonic()
        return watch.timed(done, ended=ended)


def _produce_api(gate: Gate, dsn: str, queue: str, total: int) -> Timed:
    with Client(dsn) as client:
        client.engine.queue(queue)
        bodies = [BYTES] * BATCH
        gate()
        with Stopwatch() as watch:
            for _ in range(total // BATCH):
                client.producer.batch_enqueue(queue, bodies)
        return watch.timed(total)


def _produce_bare(gate: Gate, dsn: str, queue: str, total: int) -> Timed:
    with closing(Ours(dsn, queue, BYTES)) as table:
        gate()
        with Stopwatch() as watch:
            for _ in range(total // BATCH):
                table.send(BATCH)
        return watch.timed(total)


def consume_api(gate: Gate, dsn: str, queue: str, left: Synchronized[int]) -> Timed:
    """Handle messages through the API until ``left`` have been acked by all consumers together."""
    with Client(dsn) as client:
        client.engine.queue(queue)

        def step() -> int:
            messages = client.consumer.read_batch(queue, count=BATCH, wait=0.2)
            return sum(client.consumer.dequeue_batch(messages)) if messages else 0

        return _consume(gate, step, left)


def _consume_bare(gate: Gate, dsn: str, queue: str, left: Synchronized[int]) -> Timed:
    with closing(Ours(dsn, queue, BYTES)) as table:

        def step() -> int:
            if rows := table.claim(BATCH):
                return table.ack(rows)
            time.sleep(0.001)
            return 0

        return _consume(gate, step, left)


def _consume(gate: Gate, step: Callable[[], int], left: Synchronized[int]) -> Timed:
    gate()
    events: Events = []
    with Stopwatch() as watch:
        while left.value > 0:
            if done := step():
                events.append((time.monotonic(), done))
                with left.get_lock():
                    left.value -= done
    return watch.timed(sum(count for _, count in events), events, ended=events[-1][0] if events else None)


@dataclass(frozen=True)
class Flow:
    """Messages that went through a queue while producers and consumers ran at once."""

    cost: Cost
    events: Events

    def rate(self, first: int = 0, last: int | None = None) -> float:
        """Return the messages per second, end to end, while the message number ``first`` to ``last`` was acked."""
        began: float | None = None
        start, count, ended = 0, 0, 0.0
        for moment, done in self.events:
            if began is None and count >= first:
                began, start = moment, count + done
            count += done
            ended = moment
            if last is not None and count >= last:
                break
        assert began is not None
        return (count - start) / (ended - began)


def flow(meter: Meter, dsn: str, queue: str, way: Way, total: int, *, producers: int = 2, consumers: int = 2) -> Flow:
    """Send ``total`` messages in batches and ack them, all at once; the time ends with the last ack."""
    produce, consume = (_produce_api, consume_api) if way == "api" else (_produce_bare, _consume_bare)
    share = total // producers // BATCH * BATCH
    left: Any = CONTEXT.Value("q", share * producers)
    jobs = [
        *(Job(produce, (dsn, queue, share)) for _ in range(producers)),
        *(Job(consume, (dsn, queue, left)) for _ in range(consumers)),
    ]
    cost, reports = cost_of(meter, jobs, share * producers)
    return Flow(cost, _merge([report.more for report in reports if report.more]))


def _merge(events: Sequence[Events]) -> Events:
    return sorted(event for part in events for event in part)
