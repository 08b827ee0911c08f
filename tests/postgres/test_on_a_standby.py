"""What a standby answers: that it takes no writes, and where to go; never a raw error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness import AsyncHarness, SyncHarness, ask, until

from pgqrs_core.engine import Engine
from pgqrs_core.errors import ReadOnly
from pgqrs_core.operations import maintenance, schema
from pgqrs_core.operations.doctor import Circumstances, examine
from pgqrs_core.this_process import this_process
from tests.support.standby import Pair

if TYPE_CHECKING:
    from pgqrs_core.cluster import Cluster


@pytest.fixture
def standby(pgqrs_private_cluster: Cluster) -> Iterator[str]:
    """The address of a standby that has our tables and a queue."""
    if not (pgqrs_private_cluster.bindir / "pg_basebackup").exists():
        pytest.skip("needs pg_basebackup beside the server's programs")
    pair = Pair(pgqrs_private_cluster)
    harness = SyncHarness(pair.primary.dsn)
    harness.transact(schema.install, "pgqrs")
    harness.create("jobs")
    harness.close()
    until(lambda: ask(pair.standby.dsn, "select to_regclass('pgqrs.q_jobs')")[0][0], "the standby has the queue")
    yield pair.standby.dsn
    pair.standby.stop("immediate")


def test_a_standby_says_that_it_takes_no_writes(standby: str) -> None:
    for kind in (SyncHarness, AsyncHarness):
        harness = kind(standby)
        try:
            with pytest.raises(ReadOnly, match="target_session_attrs=read-write"):
                harness.run(maintenance.maintain, "pgqrs")
            with pytest.raises(ReadOnly):
                harness.run(maintenance.elect, 1, 60.0, this_process())
            with pytest.raises(ReadOnly):
                harness.create("more")
        finally:
            harness.close()

    with Engine(standby) as engine:
        findings: list[Any] = engine.run(examine, Circumstances("pgqrs", time.time))
    said = {one.check: one for one in findings}
    assert "lead to the primary" in said["server"].remedy
    assert not [one for one in findings if "more rights" in (one.remedy or "")]
    assert (said["waiters"].status, said["maintenance"].status) == ("info", "info")
    assert "primary" in said["waiters"].remedy
