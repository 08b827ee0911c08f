"""What a message costs the server while 1, 8 or 64 idle processes wait for it, and how soon one of them has it."""

from __future__ import annotations

import contextlib
import importlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import psycopg

from benchmarks.floors import percentile
from benchmarks.herd import KINDS, QUEUE, WORK, Herd, Report, send
from benchmarks.report import Figure, at_most, compare, single
from benchmarks.server import Setting

__all__ = ["run"]

SIZES: Final = (1, 8, 64)
#: Messages per second.
RATES: Final = (1, 10, 200)
BURST: Final = 1_000
WORKING: Final = f"{RATES[-1]}/s, {WORK * 1000:g} ms of work"
#: Seconds until consumers that were just started, or have just worked, are idle.
SETTLE: Final = 3.0
#: Seconds that an idle time and a rate are watched.
IDLE: Final = 10.0
NEEDS: Final = {"Kombu": "kombu", "Dramatiq": "dramatiq"}

#: How statements are told apart, by their texts as `pg_stat_statements` keeps them.
_STATEMENTS: Final = {
    "claims": re.compile(r"for update skip locked.*set attempt = q\.attempt \+", re.IGNORECASE | re.DOTALL),
    "looks": re.compile(r"as claimable", re.IGNORECASE),
    "marks": re.compile(r"(insert into|delete from) \S*waiters", re.IGNORECASE),
    "wakes": re.compile(r"pg_notify", re.IGNORECASE),
    "enqueues": re.compile(r"insert into \S*\"?q_herd", re.IGNORECASE),
}


@dataclass
class _Seen:
    """What happened while some messages were sent."""

    messages: int
    seconds: float
    statements: Counter[str]
    reports: list[Report]
    #: Statements a second while nothing was sent.
    idle: float
    cpu: float | None

    @property
    def raw(self) -> float:
        return self.statements.total() / self.messages

    @property
    def net(self) -> float:
        """Statements per message without those of idle consumers."""
        return max(self.statements.total() - self.idle * self.seconds, 0.0) / self.messages

    @property
    def empty(self) -> float:
        return sum(report.empty for report in self.reports) / self.messages

    def pickup(self, percent: int) -> float:
        return percentile([value for report in self.reports for value in report.latencies], percent)

    @property
    def largest_share(self) -> float:
        """How many times its share the process has got that got most."""
        return max(len(report.latencies) for report in self.reports) * len(self.reports) / self.messages

    def of(self, name: str) -> float:
        return self.statements[name] / self.messages


def run(setting: Setting) -> list[Figure]:
    """Measure each adapter that is installed."""
    with setting.queue(QUEUE), _counting(setting):
        return [figure for kind in KINDS if _is_installed(kind) for figure in _figures(setting, kind)]


def _is_installed(kind: str) -> bool:
    try:
        importlib.import_module(NEEDS.get(kind, "pgqrs_native"))
    except ImportError:
        return False
    return True


def _figures(setting: Setting, kind: str) -> list[Figure]:
    seen = {size: _watch(setting, kind, size) for size in SIZES}
    alone = seen[SIZES[0]]
    figures = []
    for size in SIZES:
        idle = next(iter(seen[size].values())).idle / size
        figures.append(single(f"{kind}, {size}: statements of an idle one", "per second", [idle], at_most(1)))
        for load, this in seen[size].items():
            one, beside = alone[load], f"{SIZES[0]} process"
            title = f"{kind}, {size}, {load}"
            if size > SIZES[0]:
                figures += [
                    compare(f"{title}: statements", "per message", [this.raw], [one.raw], beside, at_most(1.5)),
                    compare(f"{title}: without idle looks", "per message", [this.net], [one.net], beside),
                ]
                if load not in (WORKING, f"{BURST} at once"):
                    figures += [
                        compare(
                            f"{title}: pick-up, p50", "ms", [this.pickup(50)], [one.pickup(50)], beside, at_most(1.3)
                        ),
                        compare(
                            f"{title}: pick-up, p99", "ms", [this.pickup(99)], [one.pickup(99)], beside, at_most(2)
                        ),
                    ]
            else:
                figures.append(single(f"{title}: statements", "per message", [this.raw]))
            figures.append(single(f"{title}: claims that find nothing", "per message", [this.empty], at_most(0.5)))
            for name in ("claims", "looks", "wakes", "marks"):
                figures.append(single(f"{title}: {name}", "per message", [this.of(name)]))
            if this.cpu is not None:
                figures.append(single(f"{title}: server CPU", "ms per message", [this.cpu / this.messages * 1000]))
            if load == WORKING and size > 1:
                figures.append(single(f"{title}: most for one process", "shares", [this.largest_share], at_most(3)))
    return figures


def _watch(setting: Setting, kind: str, size: int) -> dict[str, _Seen]:
    herd = Herd(kind, setting.dsn, size)
    try:
        with send(kind, setting.dsn) as producer:
            # Everything is warm once each has had something to do.
            for _ in range(3):
                producer(1, False)
                time.sleep(0.2)
            producer(20 * size, True)
            _wait_for_all(herd, 20 * size + 3)
            time.sleep(setting.size(int(SETTLE), 2))
            _reset(setting)
            time.sleep(IDLE)
            idle = _statements(setting).total() / IDLE
            found = {}
            for rate in RATES:
                seconds = setting.size(20, 6) if rate < RATES[-1] else setting.size(10, 3)
                found[f"{rate}/s"] = _measure(
                    setting, herd, idle, lambda: producer(1, False), rate=rate, seconds=seconds
                )
                time.sleep(setting.size(int(SETTLE), 2))
            seconds = setting.size(10, 3)
            found[WORKING] = _measure(setting, herd, idle, lambda: producer(1, True), rate=RATES[-1], seconds=seconds)
            time.sleep(setting.size(int(SETTLE), 2))
            found[f"{BURST} at once"] = _measure(setting, herd, idle, lambda: producer(BURST, False), count=BURST)
            return found
    finally:
        herd.close()


def _measure(
    setting: Setting, herd: Herd, idle: float, produce: object, *, rate: float = 0, seconds: int = 0, count: int = 1
) -> _Seen:
    herd.report()
    _reset(setting)
    cpu = setting.meter.server_cpu()
    began = time.monotonic()
    messages = int(rate * seconds) or count
    for number in range(int(rate * seconds) or 1):
        if rate:
            time.sleep(max(began + number / rate - time.monotonic(), 0.0))
        produce()  # type: ignore[operator]
    reports = _wait_for_all(herd, messages)
    lasted = time.monotonic() - began
    spent = None if cpu is None else (setting.meter.server_cpu() or 0.0) - cpu
    # What follows a message belongs to it.
    time.sleep(1.0)
    return _Seen(messages, lasted + 1.0, _statements(setting), reports, idle, spent)


def _wait_for_all(herd: Herd, count: int) -> list[Report]:
    found = herd.report()
    deadline = time.monotonic() + 120
    while sum(len(report.latencies) for report in found) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{sum(len(report.latencies) for report in found)} of {count} messages came")
        time.sleep(0.05)
        for total, more in zip(found, herd.report(), strict=True):
            total.latencies += more.latencies
            total.empty += more.empty
    return found


# Counting statements


@contextlib.contextmanager
def _counting(setting: Setting) -> Iterator[None]:
    connection = setting.meter.connection
    connection.execute("create extension pg_stat_statements")
    database = connection.info.dbname
    connection.execute(
        psycopg.sql.SQL("alter database {} set pg_stat_statements.track = 'top'").format(
            psycopg.sql.Identifier(database)
        )
    )
    yield


def _reset(setting: Setting) -> None:
    setting.meter.connection.execute("select pg_stat_statements_reset()")


def _statements(setting: Setting) -> Counter[str]:
    rows = setting.meter.connection.execute(
        "select query, calls from pg_stat_statements s join pg_database d on d.oid = s.dbid "
        "where d.datname = current_database() and query !~ 'pg_stat_statements'"
    ).fetchall()
    found: Counter[str] = Counter()
    for query, calls in rows:
        found[_kind_of(query, _STATEMENTS)] += calls
    return found


def _kind_of(query: str, kinds: Mapping[str, re.Pattern[str]]) -> str:
    return next((name for name, pattern in kinds.items() if pattern.search(query)), "others")
