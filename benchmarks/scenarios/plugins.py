"""What plugins cost: those that are loaded and have nothing to do, MessagePack, compression and encryption."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import entry_points
from typing import Any, Final

from pgqrs_crypto import plugin as crypto
from pgqrs_msgpack import MsgpackSerializer
from pgqrs_native import Client
from pgqrs_zstd import plugin as zstd

from benchmarks.measure import Cost, interleave
from benchmarks.payloads import BYTES, JSON
from benchmarks.report import Figure, at_most, compare, compare_costs
from benchmarks.server import Setting
from pgqrs_core.plugins import GROUP, Plugins
from pgqrs_core.serializers import JsonSerializer, Serializer

__all__ = ["run"]

#: 1 KiB that compresses as text does.
_TEXT: Final = json.dumps({"words": random.Random(3).choices(["order", "paid", "Berlin", "2026-11-24", "0.99"], k=110)})
KIB: Final = _TEXT.encode()[:1024].ljust(1024)
_KEY: Final = "bench:" + base64.b64encode(bytes(range(32))).decode()


def run(setting: Setting) -> list[Figure]:
    """Compare in one process: batches of 100 and single messages in and out, then the codecs by themselves."""
    return [*_idle(setting), *_serializers(setting), *_sealed(setting), *_codecs(setting)]


def _idle(setting: Setting) -> list[Figure]:
    blocked = Plugins.load(blocked=[one.name for one in entry_points(group=GROUP) if one.name != "json"])
    figures = []
    for batch, title, rounds in ((100, "batches of 100", setting.size(200)), (1, "one at a time", setting.size(2_000))):
        sides = {"loaded": (Plugins.load(), BYTES), "blocked": (blocked, BYTES)}
        seen = _flows(setting, sides, batch, rounds)
        name = f"all plugins loaded, none configured; {title}"
        # Throughput depends on what else the machine does; what plugins cost is Python's time.
        figures.append(
            compare_costs(
                name,
                "Python µs",
                seen["loaded"],
                seen["blocked"],
                "all blocked",
                at_most(1.05 if batch > 1 else 1.1),
                _python,
            )
        )
    return figures


def _sealed(setting: Setting) -> list[Figure]:
    sealing = Plugins.core()
    sealing.register(zstd, "zstd", queues=["*"])
    sealing.register(crypto, "crypto", keys=[_KEY], encrypt=["*"])
    sides = {"sealed": (sealing, KIB), "plain": (Plugins.core(), KIB)}
    seen = _flows(setting, sides, 100, setting.size(100))
    return [
        compare_costs("1 KiB, zstd and AES-256-GCM; in and out", "messages/s", seen["sealed"], seen["plain"], "plain")
    ]


def _flows(setting: Setting, sides: dict[str, tuple[Plugins, bytes]], batch: int, rounds: int) -> dict[str, list[Cost]]:
    """Enqueue and consume on one queue a side, in turns."""
    with ExitStack() as stack:
        made: dict[str, Callable[[], Cost]] = {}
        for name, (plugins, body) in sides.items():
            queue = stack.enter_context(setting.queue(name))
            client = stack.enter_context(Client(setting.dsn, plugins=plugins))
            made[name] = _side(setting, client, queue, [body] * batch, rounds)
            made[name]()
        return interleave(setting.repeats, made)


def _side(setting: Setting, client: Client, queue: str, bodies: list[bytes], rounds: int) -> Callable[[], Cost]:
    def work() -> int:
        for _ in range(rounds):
            client.producer.batch_enqueue(queue, bodies)
            client.consumer.dequeue_batch(client.consumer.read_batch(queue, count=len(bodies)))
        return rounds * len(bodies)

    return lambda: setting.meter.run(work)


def _serializers(setting: Setting) -> list[Figure]:
    rounds = setting.size(50_000)

    def side(serializer: Serializer) -> float:
        return _micros(lambda: serializer.decode(serializer.encode(JSON)), rounds)

    sides: dict[str, Callable[[], float]] = {
        "msgpack": lambda: side(MsgpackSerializer()),
        "JSON": lambda: side(JsonSerializer()),
    }
    seen = interleave(setting.repeats, sides)
    return [compare("MessagePack, encode and decode", "µs", seen["msgpack"], seen["JSON"], "JSON", at_most(1.0))]


def _codecs(setting: Setting) -> list[Figure]:
    from pgqrs_core.testing.codecs import received, sent

    plugins = Plugins.core()
    plugins.register(zstd, "zstd", queues=["*"])
    plugins.register(crypto, "crypto", keys=[_KEY], encrypt=["*"])
    bare = Plugins.core()
    rounds = setting.size(10_000)

    def side(chosen: Plugins) -> float:
        stack = chosen.hooks.codecs
        return _micros(lambda: received(stack, sent(stack, KIB)), rounds)

    seen = interleave(setting.repeats, {"sealed": lambda: side(plugins), "none": lambda: side(bare)})
    return [compare("1 KiB, zstd and AES-256-GCM; the codecs alone", "µs", seen["sealed"], seen["none"], "no codec")]


def _python(cost: Cost) -> float | None:
    return cost.micros("python")


def _micros(work: Callable[[], Any], rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    return (time.perf_counter() - began) / rounds * 1e6
