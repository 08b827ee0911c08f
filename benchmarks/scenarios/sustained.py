"""Two producers and two consumers at once: the API beside bare psycopg with the same statements."""

from __future__ import annotations

from benchmarks.load import Way, flow
from benchmarks.measure import Cost, interleave
from benchmarks.report import Figure, at_least, compare_costs
from benchmarks.server import Setting

__all__ = ["run"]


def run(setting: Setting) -> list[Figure]:
    """Send and ack in batches of 100, in four processes; the rate is end to end."""
    total = setting.size(200_000, 20_000)

    def side(way: Way) -> Cost:
        with setting.queue("sustained") as queue:
            setting.meter.checkpoint()
            return flow(setting.meter, setting.dsn, queue, way, total).cost

    seen = interleave(setting.repeats, {"api": lambda: side("api"), "bare": lambda: side("bare")})
    return [
        compare_costs(
            "2 producers, 2 consumers, batches of 100",
            "messages/s",
            seen["api"],
            seen["bare"],
            "bare psycopg",
            at_least(0.6),
        )
    ]
