"""What a consumer process of ten queues takes while there is nothing to do: connections, memory, statements."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import pgqrs_native
import psutil
import psycopg

from benchmarks.report import Figure, at_most, single
from benchmarks.server import Setting
from pgqrs_core.testing.servers import with_database

__all__ = ["run"]

QUEUES = tuple(f"idle {number}" for number in range(10))

#: Seconds after the start until it is idle; the server reports what a session did within ten.
SETTLE = 12.0
WATCH = 30.0

_SESSIONS = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
#: Every statement of an idle consumer is a transaction of its own.
_STATEMENTS = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"


@dataclass(frozen=True)
class _Seen:
    connections: int
    mebibytes: float
    statements: float
    cpu: float


def run(setting: Setting) -> list[Figure]:
    """Watch ten threads, each waiting on a queue, and a worker, from a connection to another database."""
    kinds = ["threads", *(["worker"] if hasattr(pgqrs_native, "Worker") else [])]
    names = {"threads": "ten threads in read_batch", "worker": "a Worker"}
    with pgqrs_native.Client(setting.dsn) as client:
        for queue in QUEUES:
            client.admin.create_queue(queue)
    # One look is enough: nothing here is a matter of speed.
    seen = {kind: [_watch(setting, kind) for _ in range(min(setting.repeats, 2))] for kind in kinds}
    figures = []
    for kind in kinds:
        looks = seen[kind]
        name = names[kind]
        figures += [
            single(f"{name}: most connections", "", [look.connections for look in looks], at_most(3)),
            single(f"{name}: resident memory", "MiB", [look.mebibytes for look in looks], at_most(80)),
            single(f"{name}: statements, idle", "per second", [look.statements for look in looks], at_most(1)),
            single(f"{name}: Python CPU, idle", "ms/s", [look.cpu for look in looks]),
        ]
    return figures


def _watch(setting: Setting, kind: str) -> _Seen:
    seconds = setting.size(int(WATCH), 12)
    elsewhere = with_database(setting.dsn, "postgres")
    with psycopg.connect(setting.dsn) as own, psycopg.connect(elsewhere, autocommit=True) as connection:
        database = own.info.dbname
        own.close()
        # The meter's own session.
        spare = 1

        def ask(query: str) -> int:
            row = connection.execute(query.encode(), (database,)).fetchone()
            assert row is not None
            return int(row[0])

        command = [sys.executable, "-m", "benchmarks.idle_consumer", kind, setting.dsn, *QUEUES]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the idle consumer ({kind}) did not start")
            try:
                watched = psutil.Process(process.pid)
                connections = [ask(_SESSIONS)]
                until = time.monotonic() + SETTLE
                while time.monotonic() < until:
                    connections.append(ask(_SESSIONS))
                    time.sleep(0.02)
                before, cpu, began = ask(_STATEMENTS), watched.cpu_times(), time.monotonic()
                while time.monotonic() < began + seconds:
                    connections.append(ask(_SESSIONS))
                    time.sleep(0.2)
                lasted = time.monotonic() - began
                statements, after = ask(_STATEMENTS) - before, watched.cpu_times()
                spent = after.user + after.system - cpu.user - cpu.system
                memory = watched.memory_info().rss / 2**20
                return _Seen(max(connections) - spare, memory, statements / lasted, spent / lasted * 1000)
            finally:
                process.stdin.close()
                process.kill()
