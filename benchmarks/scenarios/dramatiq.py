"""Dramatiq on pgqrs, beside RabbitMQ, Redis and dramatiq-postgres, whichever of them are installed here.

Each program runs in a process of its own: one process, eight threads, an actor that does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.floors import bare_inserts, bare_pickup, in_turn, percentile, produce
from benchmarks.measure import interleave
from benchmarks.processes import Gate, Job, together
from benchmarks.report import Figure, at_least, at_most, compare, single
from benchmarks.rivals import Rival, has_rabbitmq, has_redis, rabbitmq, redis
from benchmarks.server import Setting

__all__ = ["run"]

OURS: Final = "pgqrs"
RABBITMQ: Final = "RabbitMQ"
REDIS: Final = "Redis"
OTHER: Final = "dramatiq-postgres"
#: Dramatiq without a broker, and PostgreSQL without Dramatiq.
STUB: Final = "stub"
BARE: Final = "bare INSERT"

THREADS: Final = 8
#: Seconds that a consumer is idle before the next message.
IDLE: Final = (0.05, 0.15)


def run(setting: Setting) -> list[Figure]:
    """Measure publishing, running and picking up."""
    with _brokers(setting) as brokers:
        return [*_publishing(setting, brokers), *_running(setting, brokers), *_pickup(setting, brokers)]


@contextlib.contextmanager
def _brokers(setting: Setting) -> Iterator[dict[str, str]]:
    """Start what is installed; yield the addresses by name."""
    with contextlib.ExitStack() as stack:
        found: dict[str, str | None] = {OURS: setting.dsn}

        def rival(start: Callable[..., Any], **options: Any) -> str:
            folder = tempfile.TemporaryDirectory(prefix="pgqrs-", ignore_cleanup_errors=True)
            server: Rival = stack.enter_context(start(Path(stack.enter_context(folder)), **options))
            return server.url

        if find_spec("pika") is not None and has_rabbitmq():
            found[RABBITMQ] = rival(rabbitmq)
        if find_spec("redis") is not None and has_redis():
            found[REDIS] = rival(redis, appends=True)
        if find_spec("dramatiq_postgres") is not None:
            from dramatiq_postgres import init

            with setting.meter.connection.transaction(), setting.meter.connection.cursor() as cursor:
                init(cursor)
            found[OTHER] = setting.dsn
        yield {name: address for name, address in found.items() if address is not None}


def _fresh() -> str:
    """Return the name of a queue that nobody has used."""
    return f"bench_{secrets.token_hex(4)}"


def _make(kind: str, address: str) -> Any:
    logging.disable(logging.ERROR)
    if kind == OURS:
        from pgqrs_dramatiq import PgqrsBroker

        return PgqrsBroker(address)
    if kind == RABBITMQ:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=address, confirm_delivery=True)
    if kind == REDIS:
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=address)
    if kind == STUB:
        from dramatiq.brokers.stub import StubBroker

        return StubBroker()
    from dramatiq_postgres import PostgresBroker

    return PostgresBroker(url=address)


# Publishing


def _publishing(setting: Setting, brokers: Mapping[str, str]) -> list[Figure]:
    count, groups = setting.size(2_000), setting.size(20, 2)

    def side(work: Callable[..., Any], *args: Any) -> float:
        (rate,), _ = together([Job(work, args)])
        return float(rate)

    single_sides: dict[str, Callable[[], float]] = {
        name: partial(side, _send, name, address, count, 1) for name, address in brokers.items()
    }
    single_sides[STUB] = partial(side, _send, STUB, "", count, 1)
    single_sides[BARE] = partial(bare_inserts, setting.dsn, count)
    single_sides["eight threads"] = partial(side, _send, OURS, brokers[OURS], count, THREADS)
    one = interleave(setting.repeats, single_sides)
    many = interleave(
        setting.repeats, {name: partial(side, _send_groups, name, brokers[name], groups) for name in brokers}
    )
    targets = {BARE: at_least(0.85), OTHER: at_least(2)}
    figures = [
        compare("send(), one by one", "/s", one[OURS], values, name, targets.get(name))
        for name, values in one.items()
        if name not in (OURS, STUB, "eight threads")
    ]
    floor = in_turn(one[STUB], one[BARE])
    figures.append(compare("send() without a broker, then a bare INSERT", "/s", floor, one[BARE], BARE))
    figures.append(compare("send(), eight threads", "/s", one["eight threads"], one[OURS], "one", at_least(2.5)))
    for name in brokers:
        if name != OURS:
            target = at_least(2) if name == RABBITMQ else None
            figures.append(compare("group of 1,000", "/s", many[OURS], many[name], name, target))
    return figures


def _send(gate: Gate, kind: str, address: str, count: int, threads: int) -> float:
    import dramatiq

    broker = _make(kind, address)
    actor = dramatiq.actor(_nothing, actor_name="act", queue_name=_fresh(), broker=broker)
    actor.send(0)
    gate()

    def send() -> None:
        for number in range(count // threads):
            actor.send(number)

    workers = [threading.Thread(target=send) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = count / (time.perf_counter() - began)
    broker.close()
    return rate


def _send_groups(gate: Gate, kind: str, address: str, groups: int) -> float:
    import dramatiq

    broker = _make(kind, address)
    actor = dramatiq.actor(_nothing, actor_name="act", queue_name=_fresh(), broker=broker)
    messages = [actor.message(number) for number in range(1_000)]
    actor.send(0)
    gate()
    began = time.perf_counter()
    for _ in range(groups):
        dramatiq.group(messages, broker=broker).run()
    rate = 1_000 * groups / (time.perf_counter() - began)
    broker.close()
    return rate


# Running


def _running(setting: Setting, brokers: Mapping[str, str]) -> list[Figure]:
    count = setting.size(5_000)

    def side(name: str, *, publishing: bool) -> float:
        (rate,), _ = together([Job(_work, (name, brokers[name], count, publishing))])
        return float(rate)

    figures = []
    for publishing, title in ((False, "running, 8 threads"), (True, "running while publishing")):
        seen = interleave(setting.repeats, {name: partial(side, name, publishing=publishing) for name in brokers})
        for name in brokers:
            if name != OURS:
                target = at_least(1) if name == RABBITMQ else None
                figures.append(compare(title, "/s", seen[OURS], seen[name], name, target))
    return figures


def _work(gate: Gate, kind: str, address: str, count: int, publishing: bool) -> float:
    import dramatiq

    broker = _make(kind, address)
    done = threading.Semaphore(0)

    def act(number: int) -> None:
        done.release()

    actor = dramatiq.actor(act, actor_name="act", queue_name=_fresh(), broker=broker)
    if not publishing:
        dramatiq.group([actor.message(number) for number in range(count)], broker=broker).run()
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    gate()
    began = time.perf_counter()
    worker.start()
    if publishing:
        for start in range(0, count, 100):
            dramatiq.group([actor.message(number) for number in range(start, start + 100)], broker=broker).run()
    for _ in range(count):
        done.acquire()
    rate = count / (time.perf_counter() - began)
    worker.stop()
    broker.close()
    return rate


def _nothing(number: int) -> None:
    pass


# Picking up


def _pickup(setting: Setting, brokers: Mapping[str, str]) -> list[Figure]:
    count = setting.size(100, 20)

    def side(name: str) -> list[float]:
        args = name, brokers[name], _fresh(), count
        jobs = [Job(_listen, args), Job(_speak, args)]
        (latencies, _), _ = together(jobs)
        return sorted(latencies)

    sides = {name: partial(side, name) for name in brokers}
    seen = interleave(setting.repeats, {**sides, "bare": partial(bare_pickup, setting.dsn, count)})
    figures = []
    for percent, target in ((50, at_most(1)), (99, at_most(3))):
        mine, bare = ([percentile(run, percent) for run in seen[name]] for name in (OURS, "bare"))
        title = f"idle pickup, p{percent} of {count}"
        if len(brokers) == 1:
            figures.append(single(title, "ms", mine))
        for name in brokers:
            if name != OURS:
                theirs = [percentile(run, percent) for run in seen[name]]
                figures.append(compare(title, "ms", mine, theirs, name, target if name == RABBITMQ else None))
        if RABBITMQ in brokers:
            theirs = [percentile(run, percent) for run in seen[RABBITMQ]]
            figures.append(compare(f"bare NOTIFY, p{percent} of {count}", "ms", bare, theirs, RABBITMQ))
    return figures


def _listen(gate: Gate, kind: str, address: str, queue: str, count: int) -> list[float]:
    import dramatiq

    broker = _make(kind, address)
    latencies: list[float] = []
    done = threading.Semaphore(0)

    def act(sent: int) -> None:
        latencies.append((time.monotonic_ns() - sent) / 1e9)
        done.release()

    dramatiq.actor(act, actor_name="act", queue_name=queue, broker=broker)
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    gate()
    # The first two are not counted: they find everything cold.
    for _ in range(count + 2):
        done.acquire()
    worker.stop()
    broker.close()
    return latencies[2:]


def _speak(gate: Gate, kind: str, address: str, queue: str, count: int) -> None:
    import dramatiq

    broker = _make(kind, address)
    actor = dramatiq.actor(_nothing, actor_name="act", queue_name=queue, broker=broker)
    produce(gate, count, lambda: actor.send(time.monotonic_ns()), IDLE)
    broker.close()
