"""What a worker survives, and what is left when it does not: nothing is lost, and only what was running runs again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from pgqrs_kombu import batch

from pgqrs_core.testing import Proxy, eventually
from tests.support.processes import python

from .celery_support import Workers

if TYPE_CHECKING:
    from pgqrs_core.cluster import Cluster

BRIEF = {"lease": 2.0}


def test_a_task_three_times_as_long_as_its_lease_runs_once(crew: Workers) -> None:
    one = crew.start("prefork", "-c", "1", name="one", options=BRIEF)
    two = crew.start("solo", name="two", options=BRIEF)
    crew.tasks.slow.delay("a", 6)
    crew.tasks.slow.delay("b", 6)
    crew.wait_for("end a", "end b")
    eventually(crew.is_empty)
    for worker in (one, two):
        worker.stop()
    assert set(crew.notes().values()) == {1}


def test_what_a_killed_worker_ran_runs_elsewhere_within_the_lease(crew: Workers) -> None:
    one = crew.start("prefork", "-c", "1", name="one", options=BRIEF)
    crew.tasks.slow.delay("a", 1)
    crew.wait_for("begin a")
    one.kill()
    two = crew.start("threads", "-c", "1", name="two", options=BRIEF)
    assert crew.wait_for("end a")["begin a"] == 2
    two.stop()


IN_USE = "is already using this process mailbox"


def test_the_mailbox_of_a_killed_worker_is_taken_over_without_a_warning_and_that_of_a_living_one_with(
    crew: Workers,
) -> None:
    crew.environment.update(PYTHONWARNINGS="default")
    killed = crew.start("prefork", "-c", "1", name="one")
    killed.kill()
    heir = crew.start("prefork", "-c", "1", name="one")
    log = heir.log
    assert crew.inspect(heir).ping() == {heir.name: {"ok": "pong"}}

    twin = crew.start("solo", name="one")

    assert IN_USE not in log
    assert IN_USE in twin.log


def test_a_warm_stop_gives_back_what_had_not_begun(crew: Workers) -> None:
    worker = crew.start("prefork", "-c", "1", prefetch="4")
    for number in range(6):
        crew.tasks.slow.delay(number, 2)
    crew.wait_for("begin 0")
    worker.stop()
    done = sum(1 for line in crew.notes() if line.startswith("end"))
    assert sum(1 for line in crew.notes() if line.startswith("begin")) == done
    assert crew.sql("select count(*) from pgqrs.q_celery where lease_until < now()") == [(6 - done,)]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_ends_after_its_connection_was_lost_is_acked_and_not_run_again(crew: Workers, pool: str) -> None:
    worker = crew.start(pool, "-c", "1", options=BRIEF)
    crew.tasks.slow.delay("a", 4)
    crew.wait_for("begin a")
    for _ in range(3):
        crew.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name = 'pgqrs'"
        )
    crew.wait_for("end a")
    eventually(crew.is_empty)
    crew.tasks.say.delay("next")
    crew.wait_for("say next")
    assert crew.inspect(worker).ping() == {worker.name: {"ok": "pong"}}
    worker.stop()
    assert set(crew.notes().values()) == {1}


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_restart_of_the_server_amid_tasks_loses_none(
    make_crew: Callable[[str], Workers], pgqrs_private_cluster: Cluster, pool: str
) -> None:
    if pool == "gevent":
        pytest.importorskip("gevent")
    crew = make_crew(pgqrs_private_cluster.dsn)
    worker = crew.start(pool, "-c", "2", options=BRIEF)
    with batch():
        for number in range(500):
            crew.tasks.slow.delay(number, 0.005)
    eventually(lambda: len(crew.notes()) > 100)
    pgqrs_private_cluster.stop("fast")
    pgqrs_private_cluster.start()
    notes = crew.wait_for(*(f"end {number}" for number in range(500)), patience=90)
    eventually(crew.is_empty)
    assert sum(notes.values()) - len(notes) <= 20
    crew.tasks.say.delay("next")
    crew.wait_for("say next")
    assert crew.inspect(worker).ping() == {worker.name: {"ok": "pong"}}
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(30) == 0


def test_a_task_that_kills_its_worker_ends_as_a_dead_letter(crew: Workers) -> None:
    crew.start("prefork", "-c", "1", options={"max_attempts": 3})
    crew.tasks.die.delay("x")
    crew.wait_for("die x")
    eventually(lambda: crew.sql("select count(*) from pgqrs.q_celery where lane = -100") == [(1,)])
    assert crew.notes()["die x"] == 3


def test_children_that_are_replaced_leave_the_workers_connections_alone(crew: Workers) -> None:
    worker = crew.start("prefork", "-c", "2", "--max-tasks-per-child", "2")
    for number in range(20):
        crew.tasks.say.delay(number)
    crew.wait_for(*(f"say {number}" for number in range(20)))
    eventually(crew.is_empty)
    worker.stop()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_whose_connections_hang_goes_on_over_new_ones(
    make_crew: Callable[[str], Workers], pgqrs_dsn: str, pool: str
) -> None:
    with Proxy(pgqrs_dsn) as proxy:
        crew = make_crew(proxy.dsn)
        worker = crew.start(pool, "-c", "1", options={"lease": 2.0, "query_timeout": 1.0})
        crew.tasks.slow.delay("a", 1)
        crew.wait_for("begin a")
        proxy.freeze()
        # Not through what hangs.
        near = Workers(pgqrs_dsn, crew.directory)
        near.tasks.say.delay("next")
        crew.wait_for("say next", "end a", patience=60)
        eventually(near.is_empty, 60)
        near.close()
        os.kill(worker.process.pid, signal.SIGTERM)
        assert worker.process.wait(30) == 0, worker.log


def delete_queue(crew: Workers, name: str = "celery") -> None:
    """Delete a queue as somebody else would, who is none of those that use it."""
    script = "import pgqrs_kombu, sys\nfrom kombu import Connection\nwith Connection(sys.argv[1]) as connection:\n"
    python(script + "    connection.channel().queue_delete(sys.argv[2])", crew.url, name)


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_queue_that_is_deleted_under_a_worker_is_declared_again(crew: Workers, pool: str) -> None:
    if pool == "gevent":
        pytest.importorskip("gevent")
    worker = crew.start(pool, "-c", "1")
    crew.tasks.say.delay("before")
    crew.wait_for("say before")
    for number in range(2):
        delete_queue(crew)
        crew.tasks.say.delay(number)
        crew.wait_for(f"say {number}")
    delete_queue(crew)
    # Also with nothing to do.
    eventually(lambda: crew.sql("select count(*) from pgqrs.queues where name = 'celery'") == [(1,)])
    eventually(lambda: crew.sql("select count(*) from pgqrs.kombu_bindings where exchange = 'celery'") == [(1,)])
    crew.command("call", "celery_app.say", "--args", '["another process"]')
    crew.wait_for("say another process")
    worker.stop()
