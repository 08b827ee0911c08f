"""A primary with a streaming standby: killed under load, promoted, gone on with; and commits that no standby confirmed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from pgqrs_core.cluster import Cluster
from pgqrs_core.errors import EnqueueUnknown, Unavailable
from pgqrs_core.operations import schema
from tests.postgres.harness import AsyncHarness, Harness, SyncHarness, meanwhile
from tests.support.standby import Pair, set_globally

from .crowd import Crowd, ask, until


@pytest.fixture
def pair(pgqrs_private_cluster: Cluster) -> Iterator[Pair]:
    if not (pgqrs_private_cluster.bindir / "pg_basebackup").exists():
        pytest.skip("needs pg_basebackup beside the server's programs")
    made = Pair(pgqrs_private_cluster)
    yield made
    made.standby.stop("immediate")


@pytest.mark.faults
def test_nothing_acknowledged_is_lost_with_a_synchronous_standby(pair: Pair, gather: Callable[..., Crowd]) -> None:
    pair.wait_for_standby()
    crowd = gather(pair.dsn, direct=pair.primary.dsn)
    crowd.begin(pause=0.005)

    with crowd.crash():
        pair.fail_over()
    crowd.direct = pair.standby.dsn
    crowd.flow()

    assert crowd.finish() == []
    assert crowd.count("unnoted") > 0


@pytest.mark.faults
def test_with_an_asynchronous_standby_what_is_lost_was_sent_in_the_lag(
    pair: Pair, gather: Callable[..., Crowd], record_property: Callable[[str, object], None]
) -> None:
    crowd = gather(pair.dsn, direct=pair.primary.dsn)
    crowd.begin(pause=0.005)
    until(
        lambda: ask(pair.primary.dsn, "select replay_lsn >= pg_current_wal_lsn() from pg_stat_replication")[0][0],
        "the standby has caught up",
    )

    began = time.monotonic() - 1.0
    with crowd.crash():
        sender = pair.fall_behind()
        crowd.flow(50)
        # Stopped, it would outlive its postmaster.
        running = pair.primary.postmaster()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        os.kill(sender, signal.SIGKILL)
        pair.fail_over()
    ended = time.monotonic()
    crowd.direct = pair.standby.dsn
    crowd.flow()
    found = crowd.finish()

    sent = {event["key"]: event["at"] for event in crowd.history() if event["op"] == "sent"}
    lost = [line.removeprefix("LOST ") for line in found if line.startswith("LOST ")]
    record_property("lost", len(lost))
    print(f"{len(lost)} of {len(sent)} acknowledged messages were lost")
    assert lost
    assert all(began <= sent[key] <= ended for key in lost)
    # Acks of the lag are lost with it, so what was acked then comes again. Nothing worse happens.
    allowed = {"LOST", "RESURRECTED", "ATTEMPTS", "SETTLED TWICE", "STALE LEASE ACCEPTED", "DOUBLED"}
    assert {" ".join(word for word in line.split() if word.isupper()) for line in found} <= allowed


KINDS: dict[str, type[Harness]] = {"sync": SyncHarness, "async": AsyncHarness}


@pytest.fixture(params=KINDS)
def ghost(request: pytest.FixtureRequest, pgqrs_private_cluster: Cluster) -> Iterator[Harness]:
    """An engine on a server whose commits wait for a standby that does not exist."""
    harness = KINDS[request.param](pgqrs_private_cluster.dsn)
    harness.transact(schema.install, harness.engine.schema)
    harness.create("jobs")
    set_globally(pgqrs_private_cluster, "synchronous_standby_names", "ghost")
    until(lambda: ask(harness.dsn, "show synchronous_standby_names") == [("ghost",)], "the setting is read")
    yield harness
    set_globally(pgqrs_private_cluster, "synchronous_standby_names", "")
    harness.close()


def end_wait(dsn: str, how: str) -> None:
    """End the wait for a standby as an administrator would."""
    waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
    until(lambda: ask(dsn, waiting), "a commit waits for the standby")
    ask(dsn, f"set synchronous_commit = off; select {how}(pid) from ({waiting}) waiting")


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_an_enqueue_that_no_standby_confirmed_is_of_unknown_outcome(ghost: Harness, how: str) -> None:
    with meanwhile(lambda: end_wait(ghost.dsn, how)), pytest.raises(EnqueueUnknown):
        ghost.send(b"x")

    assert ghost.bodies() == [b"x"]


def test_a_transaction_that_no_standby_confirmed_is_told_so(ghost: Harness) -> None:
    with (
        meanwhile(lambda: end_wait(ghost.dsn, "pg_cancel_backend")),
        pytest.raises(Unavailable, match="standby") as told,
    ):
        ghost.create("more")

    assert told.value.in_flight
