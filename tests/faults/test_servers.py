"""What happens to servers: killed, stopped, restarted, locked, full, set back; each under load."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from pgqrs_native import Client
from psycopg.conninfo import make_conninfo

from pgqrs_core.cluster import Cluster
from pgqrs_core.errors import TableLocked
from pgqrs_core.testing import throw_away_cluster

from .crowd import KINDS, Crowd, ask, until

pytestmark = pytest.mark.faults

#: Of our actors, by what they say they are.
BACKENDS = (
    "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() "
    "and datname = current_database()"
)


@dataclass
class Scene:
    """A server, and a crowd at work on it."""

    cluster: Cluster
    crowd: Crowd

    def backends(self) -> list[int]:
        return [row[0] for row in ask(self.cluster.dsn, BACKENDS)]

    def answers(self) -> bool:
        return bool(ask(self.cluster.dsn, "select 1"))


def restart(mode: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        with scene.crowd.crash() if mode == "immediate" else contextlib.nullcontext():
            scene.cluster.restart(mode)  # type: ignore[arg-type]

    return inject


def kill_postmaster(scene: Scene) -> None:
    with scene.crowd.crash():
        scene.cluster.kill()
        scene.cluster.start()


def kill_backend(scene: Scene) -> None:
    """The postmaster then ends all others too, and recovers."""
    with scene.crowd.crash():
        os.kill(random.Random(1).choice(scene.backends()), signal.SIGKILL)
        until(scene.answers, "the server has recovered")


def stop_backends(scene: Scene) -> None:
    """The client has to find out by itself: such a connection looks alive, and says nothing.

    Only those that wait for their client: one that holds a lock of the server's memory would stop all others too.
    """
    idle = (
        f"select pid from pg_stat_activity where pid in ({BACKENDS}) and state = 'idle' and application_name = 'pgqrs'"
    )
    stopped = [row[0] for row in ask(scene.cluster.dsn, idle)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Meanwhile the crowd comes back with new ones.
        scene.crowd.flow()
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def storm(what: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        for _ in range(20):
            ask(scene.cluster.dsn, f"select {what}(pid) from ({BACKENDS}) ours")
            time.sleep(0.1)

    return inject


def use_up_connections(scene: Scene) -> None:
    """Take every connection, then the crowd's too, and keep them for a while."""
    with ExitStack() as stack:
        taken: list[psycopg.Connection[object]] = []

        def take_all() -> None:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    connection = psycopg.connect(scene.cluster.dsn, autocommit=True)
                    taken.append(stack.enter_context(connection))

        take_all()
        ours = [connection.info.backend_pid for connection in taken]
        taken[0].execute(f"select pg_terminate_backend(pid) from ({BACKENDS}) b where pid <> all(%s)".encode(), [ours])
        take_all()
        time.sleep(2)


@contextmanager
def transaction(scene: Scene, statement: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(scene.cluster.dsn) as connection:
        connection.execute(statement.encode())
        yield connection


def lock_table(scene: Scene) -> None:
    """For longer than a statement may take."""
    tables = ", ".join(f"pgqrs.q_{name}" for name in scene.crowd.queues)
    with transaction(scene, f"lock table {tables} in access exclusive mode"):
        time.sleep(3)


def accept_no_writes(scene: Scene) -> None:
    """For a while, as on a standby or where a provider has found the disk full; sessions of that time stay as they are."""
    dsn = scene.cluster.dsn
    name = ask(dsn, "select current_database()")[0][0]
    switch = f"begin read write; alter database {name} set default_transaction_read_only = {{}}; commit"
    ask(dsn, switch.format("on"))
    ask(dsn, f"select pg_terminate_backend(pid) from ({BACKENDS}) actors")
    until(scene.backends, "some have connected again")
    time.sleep(2)
    ask(dsn, switch.format("off"))


def refuse_acks(scene: Scene) -> None:
    """For longer than a lease, with an error that passes."""
    with psycopg.connect(scene.cluster.dsn, autocommit=True) as connection:
        connection.execute(
            "create or replace function public.refuse() returns trigger language plpgsql as "
            "$$ begin raise exception 'out of memory' using errcode = '53200'; end $$"
        )
        for name in scene.crowd.queues:
            connection.execute(
                f"create trigger refuse before delete on pgqrs.q_{name} execute function public.refuse()".encode()
            )
        time.sleep(3)
        for name in scene.crowd.queues:
            connection.execute(f"drop trigger refuse on pgqrs.q_{name}".encode())


def rebuild(statement: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        for _ in range(5):
            ask(scene.cluster.dsn, statement)
            scene.crowd.flow(10)

    return inject


def bait_deadlocks(scene: Scene) -> None:
    """Lock rows one by one in an order that nobody else takes them in."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        with contextlib.suppress(psycopg.errors.DeadlockDetected), psycopg.connect(scene.cluster.dsn) as connection:
            connection.execute("set local deadlock_timeout = '20ms'")
            rows = connection.execute(
                "select message_id from pgqrs.q_jobs order by message_id desc limit 20"
            ).fetchall()
            for row in rows:
                connection.execute("select 1 from pgqrs.q_jobs where message_id = %s for update", row)


def pin_snapshot(scene: Scene) -> None:
    with psycopg.connect(scene.cluster.dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from pgqrs.q_jobs")
        for _ in range(5):
            scene.crowd.flow(100)


#: Rows that lie beside the crowd's messages, and are due tomorrow. Their ids are in no order, so that whoever reads their
#: index from end to end visits a page for each.
BESIDE = (
    "insert into pgqrs.q_jobs (lane, message_id, due_at, body) overriding system value "
    "select -1, -n, now() + interval '1 day', '' from generate_series(1, 30000) n order by md5(n::text)"
)
#: Pages of the queue's table and indexes that were visited so far, and messages that were acked.
VISITED = (
    "select s.heap_blks_hit + s.heap_blks_read + s.idx_blks_hit + s.idx_blks_read, t.n_tup_del "
    "from pg_statio_user_tables s join pg_stat_user_tables t using (relid) where s.relname = 'q_jobs'"
)


def mislead_the_planner(scene: Scene) -> None:
    """A vacuum that finds the queue empty, then a burst, beside an old snapshot."""
    dsn = scene.cluster.dsn
    remove = "delete from pgqrs.q_jobs where lane = -1 and message_id < 0"
    for statement in (BESIDE, remove, "vacuum pgqrs.q_jobs", BESIDE):
        ask(dsn, statement)
    # Connections plan their statements anew.
    ask(dsn, f"select pg_terminate_backend(pid) from ({BACKENDS}) ours")
    with psycopg.connect(dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select 1 from pgqrs.q_jobs limit 1")
        scene.crowd.flow(50)
        before = ask(dsn, VISITED)[0]
        scene.crowd.flow(300)
        until(lambda: ask(dsn, VISITED)[0][1] >= before[1] + 200, "sessions have reported what they did")
        after = ask(dsn, VISITED)[0]
    ask(dsn, remove)
    pages = (after[0] - before[0]) / (after[1] - before[1])
    assert pages <= 1_000, f"{pages:.0f} pages were visited for each message"


def fill_notify_queue(scene: Scene) -> None:
    """A listener that is idle in a transaction keeps all notifications; soon nobody can send any more."""
    with psycopg.connect(scene.cluster.dsn, autocommit=True) as listener:
        listener.execute("listen anything")
        listener.execute("begin; select 1")
        flood = "select pg_notify('anything', repeat('x', 7000) || g) from generate_series(1, 20) g"
        with (
            psycopg.connect(scene.cluster.dsn, autocommit=True) as sender,
            contextlib.suppress(psycopg.errors.ProgramLimitExceeded),
        ):
            for _ in range(1000):
                sender.execute(flood.encode())
            pytest.fail("the queue of notifications does not fill up")
        scene.crowd.flow()
        listener.execute("rollback")


def set_ids_back(scene: Scene) -> None:
    """As after a failover to a standby that was behind: ids are given out a second time."""
    ask(scene.cluster.dsn, "alter table pgqrs.q_jobs alter message_id restart with 1")
    scene.crowd.flow(100)


def leave_prepared(scene: Scene) -> None:
    """Prepared transactions hold locks and a snapshot, and outlive a crash."""
    dsn = scene.cluster.dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("begin; lock table pgqrs.q_jobs in share update exclusive mode")
        connection.execute("update pgqrs.q_jobs set headers = headers where lease_until < now() - interval '1 hour'")
        connection.execute("prepare transaction 'forgotten'")
    scene.crowd.flow(50)
    kill_postmaster(scene)
    scene.crowd.flow(50)
    ask(dsn, "rollback prepared 'forgotten'")


def break_another_queue(scene: Scene) -> None:
    """One queue has lost its table and one is locked: whatever goes over all queues has to serve the others."""
    with Client(scene.cluster.dsn) as client:
        for name in ("gone", "locked"):
            client.admin.create_queue(name)
        ask(scene.cluster.dsn, "drop table pgqrs.q_gone cascade")
        with transaction(scene, "lock table pgqrs.q_locked in access exclusive mode"):
            for _ in range(3):
                assert sorted(client.admin.maintain().failed) == ["gone", "locked"]
                measured = {one.queue: one.error for one in client.admin.all_queues_metrics()}
                assert [queue for queue, error in measured.items() if error] == ["gone", "locked"]
                scene.crowd.flow()
        client.admin.delete_queue("gone")
        client.admin.delete_queue("locked")


def look_at_many_queues(scene: Scene) -> None:
    """More of them than a small lock table holds at once."""
    scene.cluster.options["max_locks_per_transaction"] = "10"
    with scene.crowd.crash():
        scene.cluster.restart("fast")
    names = [f"one of many {number}" for number in range(250)]
    with Client(scene.cluster.dsn) as client:
        for name in names:
            client.admin.create_queue(name)
        for _ in range(3):
            assert [one.error for one in client.admin.all_queues_metrics() if one.error] == []
            assert client.admin.maintain().failed == {}
            scene.crowd.flow()
        for name in names:
            client.admin.delete_queue(name)


def hand_over_beside_a_report(scene: Scene) -> None:
    """A change of owner waits for a long query; nothing else waits behind it for long."""
    with Client(scene.cluster.dsn) as client:
        stop = threading.Event()

        def attempt() -> None:
            while not stop.is_set():
                with contextlib.suppress(TableLocked):
                    client.admin.install(roles=True, role_prefix="pgqrs_faults")

        with transaction(scene, "select count(*) from pgqrs.q_jobs"):
            thread = threading.Thread(target=attempt)
            thread.start()
            for _ in range(3):
                scene.crowd.flow()
            stop.set()
        thread.join()


FAULTS: dict[str, Callable[[Scene], None]] = {
    "the postmaster is killed": kill_postmaster,
    "a backend is killed": kill_backend,
    "backends stand still": stop_backends,
    "the server is restarted": restart("fast"),
    "the server is restarted at once": restart("immediate"),
    "all sessions are ended again and again": storm("pg_terminate_backend"),
    "all statements are cancelled again and again": storm("pg_cancel_backend"),
    "no connections are left": use_up_connections,
    "the table is locked": lock_table,
    "the server accepts no writes for a while": accept_no_writes,
    "acks are refused": refuse_acks,
    "the table is rewritten": rebuild("vacuum full pgqrs.q_jobs"),
    "indexes are rebuilt": rebuild("reindex table pgqrs.q_jobs"),
    "others lock rows in another order": bait_deadlocks,
    "a snapshot is held": pin_snapshot,
    "the planner takes a full queue for empty": mislead_the_planner,
    "nobody can notify": fill_notify_queue,
    "ids are given out twice": set_ids_back,
    "a prepared transaction is forgotten": leave_prepared,
    "another queue is broken": break_another_queue,
    "there are many queues": look_at_many_queues,
    "tables change hands beside a report": hand_over_beside_a_report,
}

OPTIONS = {"max_connections": "30", "max_prepared_transactions": "5"}


@pytest.fixture
def scene(pgqrs_bindir: Path, gather: Callable[..., Crowd]) -> Iterator[Scene]:
    with throw_away_cluster(pgqrs_bindir, options=OPTIONS) as cluster:
        if ask_version(cluster) >= 170000:
            cluster.options["max_notify_queue_pages"] = "64"
            cluster.restart()
        # What is behind a consumer's low-water mark it finds when it looks back, at times after seconds.
        yield Scene(cluster, gather(cluster.dsn, pause=0.005, idle=4.0))


def ask_version(cluster: Cluster) -> int:
    return int(ask(cluster.dsn, "show server_version_num")[0][0])


#: What Celery's and Dramatiq's workers go through, too: all that ends connections, and what makes them wait.
WORKERS_FAULTS = [
    "the postmaster is killed",
    "backends stand still",
    "the server is restarted",
    "the server is restarted at once",
    "all sessions are ended again and again",
    "all statements are cancelled again and again",
    "no connections are left",
    "the table is locked",
    "the server accepts no writes for a while",
    "acks are refused",
]


@pytest.mark.parametrize("kind", ["celery", "celery with prefork", "dramatiq"])
@pytest.mark.parametrize("fault", WORKERS_FAULTS)
def test_workers_lose_nothing_when(fault: str, kind: str, scene: Scene) -> None:
    scene.crowd.options.update(KINDS[kind])
    scene.crowd.begin()

    FAULTS[fault](scene)
    scene.crowd.flow()

    assert scene.crowd.finish(limit=120) == []


@pytest.mark.parametrize("kind", ["native", "kombu", "celery", "dramatiq"])
def test_nothing_is_lost_when_each_line_of_the_log_fails(kind: str, scene: Scene) -> None:
    scene.crowd.options.update(KINDS[kind], hostile=True)
    scene.crowd.begin()

    # There is something to say.
    for fault in (storm("pg_terminate_backend"), refuse_acks):
        fault(scene)
        scene.crowd.flow()

    assert scene.crowd.finish(limit=120) == []


def test_one_queue_flows_on_while_another_one_is_locked(scene: Scene) -> None:
    kinds = ("native", "celery", "dramatiq")
    for kind in kinds:
        for role in ("producer", "consumer"):
            scene.crowd.start(role, **KINDS[kind])
    scene.crowd.release()
    scene.crowd.flow(50)

    for locked in scene.crowd.queues:
        with transaction(scene, f"lock table pgqrs.q_{locked} in access exclusive mode"):
            scene.crowd.flow(50)

    assert scene.crowd.finish(limit=120) == []


def test_nothing_is_lost_by_any_adapter_when_the_server_that_they_share_is_killed(scene: Scene) -> None:
    for kind in ("native", "kombu", "celery", "dramatiq"):
        for role in ("producer", "consumer"):
            scene.crowd.start(role, **KINDS[kind])
    scene.crowd.release()
    until(lambda: all(one.noted("claimed") for one in scene.crowd.of("consumer")), "each consumer has something to do")
    # To the native client all of them are messages.
    for queue in ("tasks", "actors"):
        scene.crowd.start("consumer", queue=queue, lease=1.0)
    scene.crowd.release()
    scene.crowd.flow(200)

    for fault in (storm("pg_terminate_backend"), kill_postmaster, restart("fast")):
        fault(scene)
        scene.crowd.flow(200)

    assert scene.crowd.finish(limit=120) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_when(fault: str, scene: Scene) -> None:
    if fault == "nobody can notify" and ask_version(scene.cluster) < 170000:
        pytest.skip("the queue of notifications is 8 GB before PostgreSQL 17: too much to fill here")
    scene.crowd.begin()

    FAULTS[fault](scene)
    scene.crowd.flow()

    assert scene.crowd.finish() == []


def test_nothing_is_lost_when_a_server_restarts_every_second(scene: Scene) -> None:
    scene.crowd.begin()
    stop = threading.Event()

    for number in range(6):
        (kill_postmaster if number % 2 else restart("immediate"))(scene)
        stop.wait(1)
    scene.crowd.flow()

    assert scene.crowd.finish() == []


def test_nothing_is_lost_when_the_tables_of_a_crowd_are_handed_to_roles(
    pgqrs_private_cluster: Cluster, gather: Callable[..., Crowd]
) -> None:
    """The crowd logs in as the role that owned them, and goes on."""
    dsn = pgqrs_private_cluster.dsn
    ask(dsn, "create role app login password 'app'; grant create on database pgqrs to app")
    crowd = gather(make_conninfo(dsn, user="app", password="app"), pause=0.005, idle=4.0)
    crowd.begin()

    with Client(dsn) as client, psycopg.connect(dsn) as reader:
        reader.execute("select count(*) from pgqrs.q_jobs")
        ended = threading.Timer(3.0, reader.rollback)
        ended.start()
        done = client.admin.install(roles=True, role_prefix="handed")
        ended.join()
    crowd.flow(100)

    assert "member of handed_admin: app" in done
    assert crowd.finish() == []
