"""What settling costs from minute to minute, while autovacuum comes by, and what a burst costs on a queue that was idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import psycopg
from psycopg import IsolationLevel, sql

from benchmarks.bare import Ours, Row
from benchmarks.measure import Cost, cpu_of, interleave
from benchmarks.payloads import BYTES
from benchmarks.report import Figure, Target, at_most, compare, compare_costs
from benchmarks.server import Setting

__all__ = ["run"]

#: Messages per send, claim and settle, and how many pass through in a second.
BATCH = 100
RATE = 4_000
#: How often the table is vacuumed while it is measured.
PASSES = 3
#: Seconds in which it should have been vacuumed once more: autovacuum wakes up once a minute.
_PATIENCE = 150.0


@dataclass
class _Period:
    """What happened between two passes of the vacuum."""

    claims: list[float] = field(default_factory=list)
    acks: list[float] = field(default_factory=list)
    #: CPU seconds of the backend that settled, which unlike the time do not depend on the disk.
    settling: list[float] = field(default_factory=list)
    cost: Cost | None = None
    pages: float = 0.0
    #: Messages that had died by its end, and whose rows may be there still.
    died: int = 0


def run(setting: Setting) -> list[Figure]:
    """Let messages pass at an even rate, with and without an old snapshot; then send a burst to an idle queue."""
    figures = []
    for title, is_held in (("", False), ("old snapshot, ", True)):
        with setting.queue("steady") as queue, _snapshot(setting.dsn, is_held):
            periods = _steady(setting, queue)
        figures += _describe(title, periods, at_most(1.5 if is_held else 1.2))
    return figures + _bursts(setting)


def _steady(setting: Setting, queue: str) -> list[_Period]:
    """Measure until the table was vacuumed often enough; return what was before the first pass, and after each."""
    setting.meter.checkpoint()
    with closing(Ours(setting.dsn, queue, BYTES)) as table, closing(_Server(setting.dsn, queue)) as server:
        # One batch first, so that connecting, preparing and planning are not measured.
        _step(table, _Period())
        server.leave_alone(not setting.quick)
        periods = [_period(setting, table, server, lambda: False, setting.size(20, 3))]
        for _ in range(PASSES):
            if setting.quick:
                server.vacuum()
                periods.append(_period(setting, table, server, lambda: False, 3))
            else:
                server.leave_alone(False)
                known = server.passes()
                periods.append(_period(setting, table, server, lambda known=known: server.passes() > known, _PATIENCE))
        died = 0
        for period in periods:
            died += len(period.acks) * BATCH
            period.died = died
    return periods


def _period(setting: Setting, table: Ours, server: _Server, is_over: Callable[[], bool], seconds: float) -> _Period:
    """Send, claim and ack at the rate, until it is over."""
    period = _Period()
    reading, pages = setting.meter.read(table.pids), server.pages()
    began = looked = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        if now > looked + 1:
            looked = now
            if is_over():
                break
        _step(table, period)
        time.sleep(max(began + len(period.acks) * BATCH / RATE - time.monotonic(), 0.0))
    period.cost = reading.cost(len(period.acks) * BATCH)
    # The server adds up once a second.
    time.sleep(1.5)
    period.pages = (server.pages() - pages) / max(len(period.acks) * BATCH, 1)
    return period


def _step(table: Ours, period: _Period) -> None:
    table.send(BATCH)
    began = time.perf_counter()
    rows = table.claim(BATCH)
    period.claims.append(time.perf_counter() - began)
    done = _ack(table, rows, period)
    assert done == len(rows) == BATCH, f"{done} of {len(rows)} were acked"


def _ack(table: Ours, rows: Sequence[Row], period: _Period) -> int:
    cpu, began = cpu_of(table.settler), time.perf_counter()
    done = table.ack(rows)
    period.acks.append(time.perf_counter() - began)
    period.settling.append(cpu_of(table.settler) - cpu)
    return done


def _describe(title: str, periods: list[_Period], target: Target) -> list[Figure]:
    first, *later = periods
    figures = []
    for number, period in enumerate(later, 1):
        when = f"{title}after pass {number}, {period.died:,} dead" if "old" in title else f"{title}after pass {number}"
        for what, unit, value, limit in (
            (f"settle {BATCH}, CPU", "µs", lambda part: median(part.settling) * 1e6, target),
            (f"settle {BATCH}", "ms", lambda part: median(part.acks) * 1e3, None),
            (f"claim {BATCH}", "ms", lambda part: median(part.claims) * 1e3, None),
        ):
            figures.append(compare(f"{when}: {what}", unit, [value(period)], [value(first)], "before the first", limit))
        assert first.cost is not None
        assert period.cost is not None
        figures.append(
            compare_costs(
                *(f"{when}: server CPU", "µs/message", [period.cost], [first.cost], "before the first", None),
                lambda cost: cost.micros("server"),
            )
        )
        figures.append(compare(f"{when}: pages", "per message", [period.pages], [first.pages], "before the first"))
    return figures


def _bursts(setting: Setting) -> list[Figure]:
    """Send many messages to an idle queue at once and take them out, as its table was vacuumed while empty and never."""
    total = setting.size(50_000)

    def side(is_vacuumed: bool) -> tuple[float, float, Cost]:
        with setting.queue("burst") as queue, closing(_Server(setting.dsn, queue)) as server:
            server.leave_alone(True)
            with closing(Ours(setting.dsn, queue, BYTES)) as table:
                for _ in range(setting.size(20_000) // BATCH if is_vacuumed else 1):
                    _step(table, _Period())
                if is_vacuumed:
                    server.vacuum()
            setting.meter.checkpoint()
            # Plans are made when a session runs a statement first: this one finds the table as it is now.
            with closing(Ours(setting.dsn, queue, BYTES)) as table:
                began = time.perf_counter()
                for _ in range(total // 1000):
                    table.send(1000)
                rate = total / (time.perf_counter() - began)
                reading, period = setting.meter.read(table.pids), _Period()
                while rows := table.claim(BATCH):
                    _ack(table, rows, period)
                return rate, median(period.settling) * 1e6, reading.cost(total)

    seen = interleave(setting.repeats, {"vacuumed": partial(side, True), "fresh": partial(side, False)})
    vacuumed, fresh = seen["vacuumed"], seen["fresh"]
    name, against = f"burst of {total:,} on an idle queue", "never vacuumed"
    return [
        compare(f"{name}: load", "messages/s", [one[0] for one in vacuumed], [one[0] for one in fresh], against),
        compare(
            f"{name}: settle {BATCH}, CPU",
            "µs",
            [one[1] for one in vacuumed],
            [one[1] for one in fresh],
            against,
            at_most(1.2),
        ),
        compare_costs(
            *(
                f"{name}: claim and settle",
                "µs/message",
                [one[2] for one in vacuumed],
                [one[2] for one in fresh],
                against,
            ),
            at_most(1.2),
            lambda cost: cost.micros("server"),
        ),
    ]


class _Server:
    """A look at a queue's table."""

    def __init__(self, dsn: str, queue: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        row = self._connection.execute("select table_suffix from pgqrs.queues where name = %s", [queue]).fetchone()
        assert row is not None
        self._name = f"q_{row[0]}"
        self._table = sql.Identifier("pgqrs", self._name)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def leave_alone(self, is_left: bool) -> None:
        """Switch autovacuum off for the table, or on again."""
        text = "alter table {} set (autovacuum_enabled = {})"
        self._connection.execute(sql.SQL(text).format(self._table, sql.Literal(not is_left)))

    def vacuum(self) -> None:
        """Vacuum the table now."""
        self._connection.execute(sql.SQL("vacuum {}").format(self._table))

    def passes(self) -> int:
        """Return how often autovacuum has vacuumed the table."""
        return int(self._one("select autovacuum_count from pg_stat_user_tables where relname = %s"))

    def pages(self) -> float:
        """Return how many pages of the table and its indexes were visited so far."""
        return float(
            self._one(
                "select heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read "
                "from pg_statio_user_tables where relname = %s"
            )
        )

    def _one(self, text: str) -> float:
        row = self._connection.execute(text.encode(), [self._name]).fetchone()
        assert row is not None
        return float(row[0])


@contextmanager
def _snapshot(dsn: str, is_held: bool) -> Iterator[None]:
    """Keep a transaction open that took its snapshot now, if one is to be held."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        if is_held:
            connection.execute("select 1")
        yield
        connection.rollback()
