"""Tasks that Celery gives up when its connection or its process ends: each runs again, and none is acked meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pgqrs_core.testing import Proxy, eventually
from tests.adapters.kombu.kombu_support import url_of
from tests.support.versions import needs_celery_57

from .celery_support import Worker, Workers

if TYPE_CHECKING:
    from pgqrs_core.cluster import Cluster

BRIEF = {"lease": 2.0}


@pytest.fixture
def crew(make_crew: Callable[[str], Workers], pgqrs_private_cluster: Cluster) -> Iterator[Workers]:
    """Workers whose server can be stopped, with results on the same one."""
    made = make_crew(pgqrs_private_cluster.dsn)
    made.app.conf.update(result_backend=made.url, task_ignore_result=False)
    yield made
    made.app.backend.close()


def start(crew: Workers, pool: str, *arguments: str, name: str = "one", **conf: Any) -> Worker:
    if pool == "gevent":
        pytest.importorskip("gevent")
    conf = {"result_backend": crew.url, "task_ignore_result": False, **conf}
    return crew.start(pool, "-c", "3", *arguments, name=name, options=BRIEF, conf=conf)


def stop_server(cluster: Cluster, worker: Worker) -> None:
    """Stop the server, and wait until the worker has noticed."""
    cluster.stop("fast")
    worker.wait_for("Trying again")


# Gevent's pool can cancel tasks since 5.7.
@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=needs_celery_57)])
def test_tasks_that_are_cancelled_when_the_connection_is_lost_run_again(
    crew: Workers, pgqrs_private_cluster: Cluster, pool: str
) -> None:
    worker = start(crew, pool, worker_cancel_long_running_tasks_on_connection_loss=True)
    results = [crew.tasks.hold.delay(name) for name in "abc"]
    crew.wait_for("begin a", "begin b", "begin c")

    stop_server(pgqrs_private_cluster, worker)
    pgqrs_private_cluster.start()

    eventually(lambda: [crew.notes()[f"begin {name}"] for name in "abc"] == [2, 2, 2])
    crew.let_go()
    assert [result.get(timeout=10) for result in results] == [None] * 3
    eventually(crew.is_empty)
    assert [crew.notes()[f"end {name}"] for name in "abc"] == [1, 1, 1]
    worker.kill()


@pytest.mark.parametrize(
    ("pool", "task", "cancels"),
    [("threads", "hold", True), ("prefork", "hold_acked", True), ("prefork", "hold", False)],
    ids=["threads cannot be cancelled", "acked early", "not to be cancelled"],
)
def test_tasks_that_go_on_when_the_connection_is_lost_run_once(
    crew: Workers, pgqrs_private_cluster: Cluster, pool: str, task: str, cancels: bool
) -> None:
    worker = start(crew, pool, worker_cancel_long_running_tasks_on_connection_loss=cancels)
    results = [getattr(crew.tasks, task).delay(name) for name in "abc"]
    crew.wait_for("begin a", "begin b", "begin c")

    stop_server(pgqrs_private_cluster, worker)
    pgqrs_private_cluster.start()
    eventually(lambda: worker.log.count("Connected to") == 2)
    crew.let_go()

    assert [result.get(timeout=10) for result in results] == [None] * 3
    eventually(crew.is_empty)
    assert set(crew.notes().values()) == {1}
    worker.kill()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_result_of_a_task_that_ends_while_the_server_is_away_is_stored_when_it_is_back(
    crew: Workers, pgqrs_private_cluster: Cluster, pool: str
) -> None:
    worker = start(crew, pool)
    result = crew.tasks.hold.delay("a")
    crew.wait_for("begin a")

    pgqrs_private_cluster.stop("fast")
    crew.let_go()
    worker.wait_for("cannot reach the result backend")
    pgqrs_private_cluster.start()

    assert result.get(timeout=20) is None
    eventually(crew.is_empty)
    assert crew.notes() == {"begin a": 1, "end a": 1}
    worker.kill()


@pytest.fixture
def beside(make_crew: Callable[[str], Workers], pgqrs_dsn: str) -> Iterator[tuple[Workers, Proxy]]:
    """Workers whose results go by another way than their messages, and that way."""
    with Proxy(pgqrs_dsn) as proxy:
        made = make_crew(pgqrs_dsn)
        made.app.conf.update(result_backend=made.url, task_ignore_result=False)
        yield made, proxy
        made.app.backend.close()


def block(proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut()


def test_a_time_limit_that_cannot_be_recorded_is_met_again(beside: tuple[Workers, Proxy]) -> None:
    crew, proxy = beside
    worker = start(crew, "prefork", "--time-limit", "2", result_backend=url_of(proxy.dsn))
    result = crew.tasks.hold.delay("a")
    crew.wait_for("begin a")

    block(proxy)
    worker.wait_for("could not be recorded")
    proxy.refuses = False

    eventually(lambda: crew.notes()["begin a"] == 2)
    assert "TimeLimitExceeded" in repr(result.get(timeout=20, propagate=False))
    eventually(crew.is_empty)
    worker.kill()


def test_a_task_runs_again_whose_process_died_when_that_could_not_be_recorded(beside: tuple[Workers, Proxy]) -> None:
    crew, proxy = beside
    worker = start(crew, "prefork", result_backend=url_of(proxy.dsn))
    result = crew.tasks.hold.delay("a")
    crew.wait_for("begin a")
    (child,) = {task["worker_pid"] for task in crew.inspect(worker).active()[worker.name]}

    block(proxy)
    os.kill(child, signal.SIGKILL)
    worker.wait_for("could not be recorded")
    proxy.refuses = False
    crew.let_go()

    assert result.get(timeout=20) is None
    assert crew.notes()["begin a"] == 2
    eventually(crew.is_empty)
    worker.kill()


@pytest.mark.parametrize("signals", [[signal.SIGQUIT], [signal.SIGTERM, signal.SIGQUIT]], ids=["cold", "warm, cold"])
def test_what_a_worker_gives_up_that_is_stopped_while_the_server_is_away_runs_elsewhere(
    crew: Workers, pgqrs_private_cluster: Cluster, signals: list[int]
) -> None:
    one = start(crew, "prefork")
    results = [crew.tasks.hold.delay("a"), crew.tasks.hold_acked.delay("acked"), crew.tasks.hold.delay("b")]
    crew.wait_for("begin a", "begin acked", "begin b")

    stop_server(pgqrs_private_cluster, one)
    for number in signals:
        os.kill(one.process.pid, number)
    one.process.wait(30)
    pgqrs_private_cluster.start()
    crew.let_go()
    two = start(crew, "threads", name="two")

    assert [result.get(timeout=20) for result in results[::2]] == [None] * 2
    eventually(crew.is_empty)
    assert crew.notes()["begin acked"] == 1
    two.kill()


def test_a_task_that_is_revoked_after_the_connection_was_lost_does_not_run_again(
    crew: Workers, pgqrs_private_cluster: Cluster
) -> None:
    worker = start(crew, "prefork")
    result = crew.tasks.hold.delay("a")
    crew.wait_for("begin a")
    stop_server(pgqrs_private_cluster, worker)
    pgqrs_private_cluster.start()
    eventually(lambda: worker.log.count("Connected to") == 2)

    eventually(lambda: crew.inspect(worker).ping())
    crew.app.control.revoke(result.id, terminate=True)

    eventually(crew.is_empty)
    assert result.state == "REVOKED"
    assert crew.notes() == {"begin a": 1}
    worker.kill()
