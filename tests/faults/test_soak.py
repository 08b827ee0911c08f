"""Mixed load with faults for as long as ``PGQRS_SOAK_SECONDS`` says (60 by default): nothing is lost, and nothing grows."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from pgqrs_core.testing import throw_away_cluster

from .crowd import Crowd, ask
from .test_servers import BACKENDS, Scene, bait_deadlocks, kill_postmaster, pin_snapshot, restart, storm

SECONDS = float(os.environ.get("PGQRS_SOAK_SECONDS", "60"))
#: Seconds between two measurements.
STEP = max(SECONDS / 20, 2.0)

#: The claim of an empty queue by a newcomer reads all that ever was: what it touches is what is in the way.
BUFFERS = """
explain (analyze, buffers, format json)
select 1 from pgqrs.q_jobs where lane = 0 and lease_until <= statement_timestamp() order by message_id limit 10
"""

FAULTS: list[Callable[[Scene], None]] = [
    storm("pg_terminate_backend"),
    restart("fast"),
    bait_deadlocks,
    pin_snapshot,
    kill_postmaster,
    storm("pg_cancel_backend"),
    restart("immediate"),
]


@dataclass
class Sample:
    """What is in use at one moment, of all actors together or the server."""

    seconds: float
    settled: int
    memory: int
    files: int
    threads: int
    connections: int
    table: int
    index: int
    claim: float
    buffers: int


def measure(crowd: Crowd, began: float) -> Sample:
    processes = [psutil.Process(one.process.pid) for one in crowd.actors if one.is_running]
    with psycopg.connect(crowd.direct, autocommit=True) as connection:
        size = "select pg_table_size('pgqrs.q_jobs'), pg_indexes_size('pgqrs.q_jobs')"
        table, index = connection.execute(size).fetchone() or (0, 0)
        plan = connection.execute(BUFFERS).fetchone()
        assert plan is not None
        (connections,) = connection.execute(f"select count(*) from ({BACKENDS}) ours".encode()).fetchone() or (0,)
    root = plan[0][0]
    return Sample(
        seconds=round(time.monotonic() - began, 1),
        settled=crowd.settled(),
        memory=sum(process.memory_info().rss for process in processes),
        files=sum(process.num_fds() for process in processes),
        threads=sum(process.num_threads() for process in processes),
        connections=connections,
        table=table,
        index=index,
        claim=root["Execution Time"] / 1000,
        buffers=root["Plan"]["Shared Hit Blocks"] + root["Plan"]["Shared Read Blocks"],
    )


#: Bytes from which on growth counts.
_SMALL = {"table": 2**20, "index": 2**20}


def grown(samples: list[Sample], name: str) -> float:
    """Return the median of the last third as a multiple of the median of the second third: the first is warming up.

    An index of some hundred kilobytes takes its time to reach the size that it keeps: below a megabyte all are alike.
    """
    third = len(samples) // 3
    values = [float(getattr(sample, name)) for sample in samples]
    return statistics.median(values[-third:]) / max(statistics.median(values[third:-third]), _SMALL.get(name, 1e-9))


@pytest.mark.faults
@pytest.mark.timeout(int(SECONDS * 3 + 240))
def test_nothing_is_lost_and_nothing_grows(pgqrs_bindir: Path, gather: Callable[..., Crowd], tmp_path: Path) -> None:
    chance = random.Random(7)
    options = {"max_connections": "40", "autovacuum_naptime": "5s", "max_prepared_transactions": "5"}
    with throw_away_cluster(pgqrs_bindir, options=options) as cluster:
        # Slow enough for the consumers to keep up on a busy machine: a backlog that grows would pass for a leak.
        crowd = gather(cluster.dsn, pause=0.06)
        scene = Scene(cluster, crowd)
        for adapter in ("native", "kombu"):
            crowd.start("producer", adapter=adapter)
            crowd.start("consumer", adapter=adapter, lease=1.0)
        crowd.release()
        crowd.flow()
        began = time.monotonic()
        samples = [measure(crowd, began)]
        while time.monotonic() - began < SECONDS:
            if len(samples) % 3 == 0:
                chance.choice(FAULTS)(scene)
            time.sleep(STEP)
            samples.append(measure(crowd, began))
        # First, so that a run which ends badly leaves its measurements.
        report = [asdict(sample) for sample in samples]
        Path(os.environ.get("PGQRS_SOAK_REPORT", tmp_path / "soak.json")).write_text(json.dumps(report, indent=1))
        print(f"{len(samples)} samples; the first, the middle and the last:")
        for sample in (samples[0], samples[len(samples) // 2], samples[-1]):
            print(sample)
        waiting = ask(cluster.dsn, "select count(*) from pgqrs.q_jobs")
        print(f"{waiting[0][0]} messages wait at the end of the load")
        found = crowd.finish(limit=120)

        assert found == []
        assert crowd.count("sent") > 10 * SECONDS
        # Everything that was taken is given back: a leak shows as growth without end. Sizes come in steps.
        allowed = {"memory": 1.2, "files": 1.3, "threads": 1.3, "connections": 1.5, "table": 2.0, "index": 2.0}
        assert {name: grown(samples, name) for name in allowed if grown(samples, name) > allowed[name]} == {}
        assert samples[-1].buffers <= 500 + 2 * statistics.median(sample.buffers for sample in samples)
        assert ask(cluster.dsn, "select count(*) from pgqrs.q_jobs") == [(0,)]
