"""What storing, claiming and settling cost the server, beside PGMQ's shape and a floor, all without an API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from benchmarks.bare import Floor, Ours, Table
from benchmarks.measure import Cost, interleave
from benchmarks.payloads import JSON_BYTES
from benchmarks.pgmq_shape import PgmqShape
from benchmarks.report import Figure, at_most, compare_costs
from benchmarks.server import Setting

__all__ = ["run"]

#: Messages per send, and per claim and settle.
SEND = 1000
TAKE = 100

Steps = tuple[Cost, Cost]
Ending = Literal["ack", "archive"]


def run(setting: Setting) -> list[Figure]:
    """Pass messages through each table, 1,000 at a time in and 100 at a time out."""
    total = setting.size(20_000, 5_000)

    def ours(ending: Ending, *, is_vacuumed: bool = True) -> Steps:
        with setting.queue("storage"):
            table = Ours(setting.dsn, "storage", JSON_BYTES, content_type="application/json")
            return _pass(setting, table, total, ending, is_vacuumed=is_vacuumed)

    def shape(ending: Ending, *, is_vacuumed: bool = True) -> Steps:
        return _pass(setting, PgmqShape(setting.dsn), total, ending, is_vacuumed=is_vacuumed)

    def floor() -> Steps:
        return _pass(setting, Floor(setting.dsn, JSON_BYTES), total, "ack")

    sides: dict[str, Callable[[], Steps]] = {
        "ours": lambda: ours("ack"),
        "shape": lambda: shape("ack"),
        "floor": floor,
        "ours, fresh": lambda: ours("ack", is_vacuumed=False),
        "shape, fresh": lambda: shape("ack", is_vacuumed=False),
        "ours, archive": lambda: ours("archive"),
        "shape, archive": lambda: shape("archive"),
    }
    seen = interleave(setting.repeats, sides)
    whole = {name: [send + take for send, take in steps] for name, steps in seen.items()}
    sent = {name: [send for send, _ in steps] for name, steps in seen.items()}
    taken = {name: [take for _, take in steps] for name, steps in seen.items()}

    def backend(cost: Cost) -> float | None:
        return cost.micros("backend")

    def server(cost: Cost) -> float | None:
        return cost.micros("server")

    def wal(cost: Cost) -> float | None:
        return cost.wal_bytes

    pair, fresh, archived = ("ours", "shape"), ("ours, fresh", "shape, fresh"), ("ours, archive", "shape, archive")
    lines = (
        ("send, claim, ack: backend CPU", whole, pair, "µs/message", backend, at_most(0.5)),
        ("send, claim, ack: CPU of the whole server", whole, pair, "µs/message", server, None),
        ("send, claim, ack: WAL", whole, pair, "bytes/message", wal, at_most(0.6)),
        ("send alone: backend CPU", sent, pair, "µs/message", backend, None),
        ("claim and ack alone: backend CPU", taken, pair, "µs/message", backend, None),
        ("never vacuumed; send, claim, ack: backend CPU", whole, fresh, "µs/message", backend, at_most(0.5)),
        ("never vacuumed; claim and ack alone: backend CPU", taken, fresh, "µs/message", backend, None),
        ("send, claim, ack: rate", whole, pair, "messages/s", None, None),
        ("send, claim, archive: backend CPU", whole, archived, "µs/message", backend, at_most(0.8)),
        ("send, claim, archive: WAL", whole, archived, "bytes/message", wal, None),
    )
    figures = [
        compare_costs(
            name,
            unit,
            costs[names[0]],
            costs[names[1]],
            "PGMQ's shape",
            target,
            value or (lambda cost: cost.rate),
        )
        for name, costs, names, unit, value, target in lines
    ]
    figures.append(
        compare_costs(
            "send, claim, ack: backend CPU", "µs/message", whole["ours"], whole["floor"], "floor", None, backend
        )
    )
    return figures


def _pass(setting: Setting, table: Table, total: int, ending: Ending, *, is_vacuumed: bool = True) -> Steps:
    """Send ``total`` messages, then take them out; return what each half cost. Before it, vacuum the empty table."""
    meter = setting.meter
    settle = table.ack if ending == "ack" else table.archive

    def send() -> int:
        for _ in range(total // SEND):
            table.send(SEND)
        return total

    def take() -> int:
        done = 0
        while rows := table.claim(TAKE):
            done += settle(rows)
        return done

    try:
        if is_vacuumed:
            send()
            take()
            table.vacuum()
        # One message first, so that connecting, preparing and planning are not measured.
        table.send(1)
        settle(table.claim(1))
        meter.checkpoint()
        sent = meter.run(send, table.pids)
        taken = meter.run(take, table.pids)
    finally:
        table.close()
    assert taken.messages == total, f"{taken.messages} of {total} messages came out"
    return sent, taken
