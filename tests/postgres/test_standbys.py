"""What the doctor says of synchronous standbys, on servers whose commits wait for some."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import psycopg
import pytest
from harness import ask, until
from psycopg.conninfo import make_conninfo

from pgqrs_core.engine import Engine
from pgqrs_core.operations.doctor import Circumstances, examine

if TYPE_CHECKING:
    from pgqrs_core.cluster import Cluster
    from pgqrs_core.operations.findings import Finding


@pytest.fixture
def near(pgqrs_private_cluster: Cluster) -> Iterator[Cluster]:
    """A server that one standby follows, ``near``: a program that stores the log and confirms it as a standby does."""
    cluster = pgqrs_private_cluster
    program = cluster.bindir / "pg_receivewal"
    if not program.exists():
        pytest.skip("needs pg_receivewal beside the server's programs")
    archive = cluster.directory / "near"
    archive.mkdir()
    dsn = make_conninfo(cluster.dsn_for("postgres"), application_name="near")
    command = [program, "--directory", archive, "--dbname", dsn, "--synchronous", "--no-loop"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as receiver:
        try:
            until(lambda: ask(cluster.dsn, "select 1 from pg_stat_replication where state = 'streaming'"), "it follows")
            yield cluster
        finally:
            receiver.kill()


def demand(cluster: Cluster, names: str) -> None:
    """Let commits wait for these standbys, from now on."""
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute(f"alter system set synchronous_standby_names = '{names}'".encode())
        connection.execute("select pg_reload_conf()")
    until(lambda: ask(cluster.dsn, "show synchronous_standby_names") == [(names,)], "the setting is read")
    # The sender is told by the same signal, and puts its standby in the new order when that reports next.
    states = "select sync_state from pg_stat_replication"
    until(lambda: (ask(cluster.dsn, states) != [("async",)]) == ("near" in names), "the standby has its place")


def findings(cluster: Cluster, options: str = "") -> list[tuple[str, str]]:
    """What a doctor finds who connects now."""
    with Engine(make_conninfo(cluster.dsn, options=options)) as engine:
        found: list[Finding] = engine.run(examine, Circumstances("pgqrs", time.time))
    return [(one.status, one.summary) for one in found if one.check == "synchronous_standbys"]


def commit_hangs(cluster: Cluster) -> bool:
    """Tell whether a commit waits for a standby until somebody cancels it."""
    waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
    with psycopg.connect(cluster.dsn, autocommit=True) as connection, ThreadPoolExecutor(1) as pool:
        commit = pool.submit(connection.execute, "create table t ()")
        # Whoever is there confirms within milliseconds.
        wait([commit], timeout=2)
        hangs = not commit.done()
        if hangs:
            assert ask(cluster.dsn, waiting)
            ask(cluster.dsn, f"select pg_cancel_backend(pid) from ({waiting}) waiting")
        commit.result()
    return hangs


@pytest.mark.parametrize(
    ("names", "status", "summary"),
    [
        ("ghost", "warn", "a synchronous standby, and none can be seen to be connected: they hang until enough are"),
        ("FIRST 2 (near, ghost)", "warn", "2 synchronous standbys, and 1 can be seen to be connected: they hang until"),
        ("near", "ok", "a synchronous standby, and 1 can be seen to be connected"),
        ("ANY 1 (ghost, near)", "ok", "a synchronous standby, and 1 can be seen to be connected"),
    ],
)
def test_what_is_said_of_standbys_is_what_commits_meet(near: Cluster, names: str, status: str, summary: str) -> None:
    demand(near, names)

    ((found, said),) = findings(near)

    assert (found, commit_hangs(near)) == (status, status == "warn")
    assert said.startswith(f"commits wait for {summary}")


def test_whose_commits_wait_for_nobody_is_told_of_no_standbys(near: Cluster) -> None:
    demand(near, "ghost")

    assert findings(near, "-c synchronous_commit=local") == []
