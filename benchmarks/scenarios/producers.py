"""Eight producers that send one message each time while consumers wait: wake-ups on, beside wake-ups off."""

from __future__ import annotations

from multiprocessing.sharedctypes import Synchronized
from typing import Any

from pgqrs_native import Client

from benchmarks.measure import Cost, Stopwatch, Timed, interleave
from benchmarks.payloads import BYTES
from benchmarks.processes import CONTEXT, Gate, Job, cost_of
from benchmarks.report import Figure, at_least, compare, compare_costs
from benchmarks.server import Setting
from pgqrs_core.config import Config

__all__ = ["run"]

PRODUCERS = 8
CONSUMERS = 2


def run(setting: Setting) -> list[Figure]:
    """Measure the rate at which messages are sent; the consumers handle what they can meanwhile."""
    count = setting.size(2_000, 400)

    batches: dict[bool, list[float]] = {True: [], False: []}

    def side(*, wake: bool, consumers: int = CONSUMERS) -> Cost:
        with setting.queue("producers") as queue:
            setting.meter.checkpoint()
            busy: Any = CONTEXT.Value("i", PRODUCERS)
            jobs = [
                *(Job(_produce, (setting.dsn, queue, wake, count, busy)) for _ in range(PRODUCERS)),
                *(Job(_consume, (setting.dsn, queue, wake, busy)) for _ in range(consumers)),
            ]
            cost, reports = cost_of(setting.meter, jobs)
            sent, handled = reports[:PRODUCERS], reports[PRODUCERS:]
            if handled:
                reads = sum(report.more for report in handled)
                batches[wake].append(sum(report.messages for report in handled) / max(reads, 1))
            wall = max(item.ended for item in sent) - min(item.began for item in sent)
            return Cost(PRODUCERS * count, wall, cost.wal, cost.python, server=cost.server)

    seen = interleave(
        setting.repeats,
        {
            "on": lambda: side(wake=True),
            "off": lambda: side(wake=False),
            "alone": lambda: side(wake=True, consumers=0),
        },
    )
    name = f"{PRODUCERS} producers, enqueue of one"
    return [
        compare_costs(name, "messages/s", seen["on"], seen["off"], "wake-ups off", at_least(0.85)),
        compare_costs(name, "messages/s", seen["on"], seen["alone"], "no consumers"),
        compare("messages that a consumer got at once", "", batches[True], batches[False], "wake-ups off"),
    ]


def _config(dsn: str, wake: bool) -> Config:
    return Config.load(url=dsn, enable_listen_notify=wake)


def _produce(gate: Gate, dsn: str, queue: str, wake: bool, count: int, busy: Synchronized[int]) -> Timed:
    with Client(_config(dsn, wake)) as client:
        client.producer.enqueue(queue, BYTES)
        gate()
        with Stopwatch() as watch:
            for _ in range(count):
                client.producer.enqueue(queue, BYTES)
        with busy.get_lock():
            busy.value -= 1
        return watch.timed(count)


def _consume(gate: Gate, dsn: str, queue: str, wake: bool, busy: Synchronized[int]) -> Timed:
    with Client(_config(dsn, wake)) as client:
        client.engine.queue(queue)
        gate()
        done = reads = 0
        with Stopwatch() as watch:
            while busy.value > 0:
                if messages := client.consumer.read_batch(queue, count=100, wait=1):
                    done += sum(client.consumer.dequeue_batch(messages))
                    reads += 1
        return watch.timed(done, reads)
