"""Operations on a server that answers at once: what Python takes, in a loop and without the noise of a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from statistics import median
from typing import Any

from pgqrs_native.traffic import compose, reading, settling

from benchmarks.load import BATCH
from benchmarks.measure import interleave
from benchmarks.payloads import BYTES
from benchmarks.report import Figure, at_most, single
from benchmarks.server import Setting
from pgqrs_core.doorbell import Doorbell
from pgqrs_core.effects import Op
from pgqrs_core.events import Draft
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Queue, QueueOptions, encode_headers
from pgqrs_core.operations.claim import receive
from pgqrs_core.operations.enqueue import enqueue
from pgqrs_core.operations.traffic import incoming, outgoing
from pgqrs_core.plugins import Plugins

__all__ = ["in_a_loop", "without_plugins"]


def in_a_loop(setting: Setting, sides: Mapping[str, Plugins]) -> list[Figure]:
    """What plugins add to messages that are enqueued, read and acked; what they put off is not in it."""
    return [
        single(
            f"in a loop by {count}, {name}: added",
            "µs/message",
            [(one - other) / count for one, other in zip(found[name], found["none"])],
        )
        for count in (1, BATCH)
        for found in [_per_pass(setting, sides, count)]
        for name in sides
        if name != "none"
    ]


def _per_pass(setting: Setting, sides: Mapping[str, Plugins], count: int) -> dict[str, list[float]]:
    """Return microseconds per pass for each side and repeat: the tenth of the passes that was fastest."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    passes = {name: partial(_timed_pass, plugins, count) for name, plugins in sides.items()}
    for _ in range(setting.repeats):
        for name, times in interleave(setting.size(400, 50), passes).items():
            found[name].append(sorted(times)[len(times) // 10] * 1e6)
    return found


def _timed_pass(plugins: Plugins, count: int) -> float:
    queue, doorbell = Queue(1, "jobs", "jobs", QueueOptions()), Doorbell("pgqrs")
    options: dict[str, Any] = {"count": count, "lock_time": None, "wait": 0.0, "mismatch": "bury", "plugins": plugins}
    began = time.perf_counter()
    drafts = compose(plugins, "jobs", [BYTES] * count)
    written = [(number + 1, False) for number in range(count)]
    _answer(outgoing(queue, drafts, plugins=plugins, adapter="native", doorbell=doorbell), written)
    sent = time.perf_counter()
    # As they come from the server: with the headers that plugins have given them.
    now = datetime.now(timezone.utc)
    rows = [
        (0, n + 1, 1, 0, now, draft.content_type, encode_headers(draft.headers), BYTES, 1, 1, 2)
        for n, draft in enumerate(drafts)
    ]
    received = time.perf_counter()
    messages = _answer(reading(queue, Marks(), bytes, **options), rows)
    _answer(settling(queue, "ack", messages, plugins=plugins, doorbell=doorbell), [(n + 1,) for n in range(count)])
    return time.perf_counter() - received + sent - began


def without_plugins(setting: Setting) -> list[Figure]:
    """What the hooks take that nobody implements: operations with and without them, on a server that answers at once."""
    queue, plugins = Queue(1, "jobs", "jobs", QueueOptions()), Plugins.core()
    drafts = [Draft("jobs", BYTES, "application/octet-stream")]
    row = (0, 1, 1, 0, datetime.now(timezone.utc), "application/octet-stream", None, BYTES, 1, 1, 2)
    common: dict[str, Any] = {"limit": 1, "lease": 30.0, "patience": 0.0}
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "enqueue": (
            lambda: _answer(outgoing(queue, drafts, plugins=plugins, adapter="native", doorbell=None), [(1, False)]),
            lambda: _answer(enqueue(queue, drafts), [(1, False)]),
        ),
        "claim": (
            lambda: _answer(incoming(queue, Marks(), plugins=plugins, adapter="native", **common), [row]),
            lambda: _answer(receive(queue, Marks(), **common), [row]),
        ),
    }
    return [
        single(
            f"hooks without a plugin, {name}: added",
            "µs/batch",
            [one - other for one, other in zip(_micros(setting, hooked), _micros(setting, bare))],
            at_most(2),
        )
        for name, (hooked, bare) in pairs.items()
    ]


def _answer(op: Op[Any], rows: list[tuple[Any, ...]]) -> Any:
    """Run an operation, giving every statement the same answer."""
    try:
        next(op)
        while True:
            op.send(rows)
    except StopIteration as end:
        return end.value


def _micros(setting: Setting, work: Callable[[], object]) -> list[float]:
    """Return microseconds per call, for each repeat."""
    calls, found = 200, []
    for _ in range(setting.repeats):
        times = []
        for _ in range(setting.size(50, 10)):
            began = time.perf_counter()
            for _ in range(calls):
                work()
            times.append((time.perf_counter() - began) / calls * 1e6)
        found.append(median(times))
    return found
