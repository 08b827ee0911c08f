"""Celery on pgqrs beside Celery on RabbitMQ, Redis, Kombu's ``pgmq://`` and its SQLAlchemy transport."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.celery_sides import Side, server_side
from benchmarks.floors import bare_inserts, bare_pickup, in_turn, percentile
from benchmarks.measure import Cost, interleave
from benchmarks.pgmq_client import install_pgmq, pgmq_version
from benchmarks.report import Figure, Target, at_least, at_most, compare, compare_costs, single
from benchmarks.rivals import rabbitmq, redis
from benchmarks.server import Setting

__all__ = ["run"]

POOLS: Final = {"prefork 2": ("prefork", "-c", "2"), "threads 8": ("threads", "-c", "8"), "solo": ("solo",)}
#: What each pool is held to.
HELD_TO: Final = {"prefork 2": "RabbitMQ", "threads 8": "RabbitMQ", "solo": "Redis"}
RIVALS: Final = ("RabbitMQ", "Redis", "pgmq", "SQLAlchemy")
#: The share of tasks that must have run before a worker counts as warm.
WARM: Final = 0.1
#: Seconds that a worker is idle before the next task.
IDLE: Final = (0.05, 0.15)
#: Seconds until a worker is idle, and seconds for which it is watched then.
SETTLE: Final = 12.0
WATCH: Final = 30.0
#: Seconds until the first round of housekeeping is over; the next one comes minutes later.
HOUSEKEEPING: Final = 40.0

_SESSIONS = (
    "select count(*) from pg_stat_activity where datname = current_database() and backend_type = 'client backend'"
)
_STATEMENTS = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"


def run(setting: Setting) -> list[Figure]:
    """Compare all brokers in turns, in what Celery asks of them."""
    pgmq_version()
    with _sides(setting) as sides:
        scenario = _Celery(setting, sides)
        return [
            *scenario.running(),
            *scenario.publishing(),
            *scenario.publishing_while_running(),
            *scenario.pickup(),
            *scenario.idle(),
            *scenario.held_etas(),
        ]


@contextmanager
def _sides(setting: Setting) -> Iterator[dict[str, Side]]:
    """Start what stands beside us, each with the settings it has by default."""
    install_pgmq(setting.dsn)
    with ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqrs-", ignore_cleanup_errors=True)))

        def rival(start: Callable[[Path], Any], *, slow: bool) -> Side:
            server = stack.enter_context(start(folder()))
            return Side(server.url, server.cpu, folder(), slow=slow)

        def on_server(scheme: str, options: dict[str, Any], *, slow: bool) -> Side:
            return server_side(scheme, setting.dsn, setting.meter, folder(), options, slow=slow)

        sides = {
            "pgqrs": on_server("pgqrs", {}, slow=False),
            "RabbitMQ": rival(rabbitmq, slow=False),
            "Redis": rival(redis, slow=True),
            "pgmq": on_server("pgmq", {"init_extension": False}, slow=True),
            "SQLAlchemy": on_server("sqla+postgresql+psycopg", {}, slow=True),
        }
        for side in sides.values():
            stack.callback(side.close)
            side.prepare()
        yield sides


class _Celery:
    def __init__(self, setting: Setting, sides: dict[str, Side]) -> None:
        self._setting, self._sides, self._meter = setting, sides, setting.meter
        self._in_memory = Side("memory://", lambda: 0.0, sides["pgqrs"].directory)

    def running(self) -> list[Figure]:
        """A worker that finds its queue full."""
        figures = []
        for pool, arguments in POOLS.items():
            seen = self._turns(partial(self._drain, arguments=arguments))
            target = {HELD_TO[pool]: at_least(1)}
            figures += self._lines(f"running, {pool}", seen, target)
        return figures

    def _drain(self, side: Side, arguments: Sequence[str]) -> Cost:
        count = self._setting.size(2_000 if side.slow else 10_000, 500)
        side.publish_group(count)
        with side.worker(*arguments) as worker:
            worker.wait_for(1)
            before = worker.cpu, side.cpu(), self._meter.wal()
            worker.wait_for(count)
            after = worker.cpu, side.cpu(), self._meter.wal()
        notes = worker.notes()
        cold = int(count * WARM)
        wall = (notes[-1] - notes[cold]) * count / (count - cold)
        return Cost(count, wall, after[2] - before[2], python=after[0] - before[0], server=after[1] - before[1])

    def publishing(self) -> list[Figure]:
        """Nobody consumes: one by one, and as one group."""
        count = self._setting.size(2_000, 200)

        def measured(side: Side, publish: Callable[[int], float]) -> Cost:
            share = count // 4 if side.slow else count
            before = side.cpu(), self._meter.wal(), time.process_time()
            wall = publish(share)
            python = time.process_time() - before[2]
            cost = Cost(share, wall, self._meter.wal() - before[1], python=python, server=side.cpu() - before[0])
            side.purge()
            return cost

        singles = self._turns(lambda side: measured(side, side.publish))
        memory, dsn = self._in_memory, self._setting.dsn
        floor = interleave(
            self._setting.repeats,
            {"memory": lambda: count / memory.publish(count), "bare": partial(bare_inserts, dsn, count)},
        )
        floors = in_turn(floor["memory"], floor["bare"])
        rates = {name: [cost.rate for cost in costs] for name, costs in singles.items()}
        groups = self._turns(lambda side: measured(side, side.publish_group))
        return [
            *self._lines("publishing, one by one", singles, {"RabbitMQ": at_least(0.35), "pgmq": at_least(2.5)}),
            *[
                compare("publishing in memory, then a bare INSERT", "tasks/s", floors, rates[name], name)
                for name in ("RabbitMQ", "pgmq")
            ],
            *self._lines("publishing, groups", groups, {"RabbitMQ": at_least(1)}),
        ]

    def publishing_while_running(self) -> list[Figure]:
        """One producer, and a worker that follows it: until the last task has run."""

        def followed(side: Side) -> float:
            count = self._setting.size(1_000 if side.slow else 3_000, 200)
            with side.worker("prefork", "-c", "2") as worker:
                worker.ready()
                began = time.monotonic()
                side.publish(count)
                worker.wait_for(count)
            return count / (worker.notes()[-1] - began)

        seen = self._turns(followed)
        return [
            compare("publishing while running", "tasks/s", seen["pgqrs"], seen[name], name, target)
            for name, target in self._targets({"RabbitMQ": at_least(1)})
        ]

    def pickup(self) -> list[Figure]:
        """How soon an idle worker starts on a task."""
        count = self._setting.size(150, 25)

        def picked_up(side: Side) -> list[float]:
            task = side.app.tasks["pickup"]
            with side.worker("threads", "-c", "8") as worker:
                worker.ready()
                for done in range(count):
                    time.sleep(random.uniform(*IDLE))
                    task.apply_async((time.monotonic(),))
                    worker.wait_for(done + 1)
            return worker.notes()

        seen = self._turns(picked_up)
        bare = [bare_pickup(self._setting.dsn, count) for _ in range(self._setting.repeats)]
        figures = []
        for percent, limit in ((50, 1), (99, 3)):
            values = {name: [percentile(run, percent) for run in runs] for name, runs in {**seen, "bare": bare}.items()}
            figures += [
                compare(f"idle pickup, p{percent}", "ms", values["pgqrs"], values[name], name, target)
                for name, target in self._targets({"RabbitMQ": at_most(limit)})
            ]
            title = f"bare NOTIFY, p{percent}"
            figures.append(compare(title, "ms", values["bare"], values["RabbitMQ"], "RabbitMQ"))
        return figures

    def idle(self) -> list[Figure]:
        """What an idle worker takes."""
        settle, watch = (self._setting.size(int(seconds), 12) for seconds in (HOUSEKEEPING, WATCH))
        spare = self._ask(_SESSIONS)

        def watched(name: str) -> tuple[float, float, float]:
            side = self._sides[name]
            with side.worker("prefork", "-c", "2") as worker:
                worker.ready()
                time.sleep(settle)
                statements, cpu, began = self._ask(_STATEMENTS), side.cpu(), time.monotonic()
                time.sleep(watch)
                sessions = self._ask(_SESSIONS) - spare
                lasted = time.monotonic() - began
                # The two looks at the statistics are statements too.
                asked = (self._ask(_STATEMENTS) - statements - 2) / lasted
                return asked, sessions, (side.cpu() - cpu) / lasted * 1000

        looks = min(self._setting.repeats, 2)
        seen = interleave(looks, {name: partial(watched, name) for name in ("pgqrs", "RabbitMQ")})
        statements, sessions, cpu = zip(*seen["pgqrs"])
        beside = [look[2] for look in seen["RabbitMQ"]]
        return [
            single("idle worker: statements", "per second", statements, at_most(1)),
            single("idle worker: connections", "", sessions, at_most(3)),
            compare("idle worker: CPU of the server", "ms/s", cpu, beside, "RabbitMQ", at_most(1)),
        ]

    def held_etas(self) -> list[Figure]:
        """What tasks that are due tomorrow cost a worker in memory."""
        side, count = self._sides["pgqrs"], self._setting.size(100_000)

        def memory() -> float:
            with side.worker("threads", "-c", "8") as worker:
                worker.ready()
                time.sleep(SETTLE)
                return worker.memory

        without = memory()
        for done in range(0, count, 1000):
            side.publish_group(min(1000, count - done), countdown=86_400)
        held = memory()
        side.purge()
        return [single(f"memory for {count:,} held tasks", "MiB", [held - without], at_most(5))]

    def _turns(self, measure: Callable[[Side], Any]) -> dict[str, list[Any]]:
        return interleave(self._setting.repeats, {name: partial(measure, side) for name, side in self._sides.items()})

    def _lines(self, name: str, seen: dict[str, list[Cost]], targets: dict[str, Target]) -> list[Figure]:
        return [
            compare_costs(name, "tasks/s", seen["pgqrs"], seen[rival], rival, target)
            for rival, target in self._targets(targets)
        ]

    @staticmethod
    def _targets(targets: dict[str, Target]) -> list[tuple[str, Target | None]]:
        return [(name, targets.get(name)) for name in RIVALS]

    def _ask(self, query: str) -> int:
        row = self._meter.connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])
