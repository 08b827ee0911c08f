"""With the server gone, whatever a program calls raises the errors that Kombu and Celery name for it, and ours in one."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery, chain, chord, group
from celery.result import AsyncResult, GroupResult
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import OperationalError
from kombu.simple import SimpleQueue
from pgqrs_kombu import BatchPublishError, batch

from pgqrs_core.errors import Unavailable
from pgqrs_core.testing import Proxy, with_database
from tests.adapters.kombu.kombu_support import url_of
from tests.support.versions import needs_batches

#: No retries, which would only take their time.
AT_ONCE = {"max_retries": 0}
QUICK = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


@pytest.fixture(scope="module")
def gone(pgqrs_server: str) -> Iterator[tuple[Celery, Any, Connection]]:
    """An application and a connection that were connected to a server that is there no more."""
    name = f"pgqrs_gone_{secrets.token_hex(4)}"
    with psycopg.connect(pgqrs_server, autocommit=True) as administrator:
        administrator.execute(f"create database {name} template template0".encode())
    with Proxy(with_database(pgqrs_server, name)) as proxy:
        url = url_of(proxy.dsn, connect_timeout="2")
        app = Celery("gone", broker=url, backend=url, set_as_current=False)
        app.conf.update(broker_transport_options={"create_schema": True}, task_publish_retry_policy=QUICK)

        @app.task(name="task")
        def task(*_: Any) -> None: ...

        connection = Connection(url, transport_options={"create_schema": True})
        Queue("q", Exchange("e"))(connection.default_channel).declare()
        group([task.s(), task.s()], app=app).apply_async()
        app.backend.store_result("id", 1, "SUCCESS")
        app.control.inspect(timeout=0.01).ping()
        proxy.close()
        yield app, task, connection
        # Nothing of it can be closed in order.
        with contextlib.suppress(Exception):
            app.pool.force_close_all()
    with psycopg.connect(pgqrs_server, autocommit=True) as administrator:
        administrator.execute(f"drop database {name} with (force)".encode())


CELERY: dict[str, Callable[[Celery, Any], object]] = {
    "delay": lambda app, task: task.delay(),
    "without retry": lambda app, task: task.apply_async(retry=False),
    "send_task": lambda app, task: app.send_task("task"),
    "group": lambda app, task: group([task.s(), task.s()], app=app).delay(),
    "group without retry": lambda app, task: group([task.s(), task.s()], app=app).apply_async(retry=False),
    "group of a generator": lambda app, task: group((task.s() for _ in range(3)), app=app).delay(),
    "chain": lambda app, task: chain(task.s(), task.s(), app=app).delay(),
    "chord": lambda app, task: chord([task.s(), task.s()], task.s(), app=app).delay(),
    "batch": lambda app, task: _in_batch(task.delay),
    "group in a batch": lambda app, task: _in_batch(group([task.s()], app=app).delay),
    "get": lambda app, task: AsyncResult("other", app=app).get(timeout=1),
    "state": lambda app, task: AsyncResult("other", app=app).state,
    "forget": lambda app, task: AsyncResult("other", app=app).forget(),
    "store": lambda app, task: app.backend.store_result("other", 1, "SUCCESS"),
    "save a group": lambda app, task: GroupResult("g", [AsyncResult("other", app=app)], app=app).save(),
    "restore a group": lambda app, task: GroupResult.restore("g", app=app),
    "join": lambda app, task: GroupResult("g", [AsyncResult("other", app=app)], app=app).join(timeout=1),
    "clean up": lambda app, task: app.backend.cleanup(),
    "ping": lambda app, task: app.control.ping(timeout=0.1),
    "inspect": lambda app, task: app.control.inspect(timeout=0.1).stats(),
    "revoke": lambda app, task: app.control.revoke("id"),
    "purge": lambda app, task: app.control.purge(),
    "ensure a connection": lambda app, task: app.connection_for_write().ensure_connection(**QUICK),
}


def _in_batch(publish: Callable[[], object]) -> None:
    with batch():
        publish()


@pytest.mark.parametrize("name", CELERY)
def test_celery_raises_its_operational_error(gone: tuple[Celery, Any, Connection], name: str) -> None:
    app, task, _ = gone
    with pytest.raises(OperationalError) as raised:
        CELERY[name](app, task)

    error: BaseException | None = raised.value
    while error is not None and not isinstance(error, Unavailable):
        error = error.__cause__ or error.__context__
    assert error is not None


KOMBU: dict[str, Callable[[Connection], object]] = {
    "connect": lambda connection: connection.clone().connect(),
    "ensure_connection": lambda connection: connection.clone().ensure_connection(**QUICK),
    "channel": lambda connection: connection.clone().channel(),
    "publish": lambda connection: Producer(connection.default_channel).publish("x", routing_key="q"),
    "publish to an exchange": lambda connection: Producer(connection.default_channel).publish("x", exchange="other"),
    "publish with retry": lambda connection: Producer(connection).publish(
        "x", routing_key="q", retry=True, retry_policy=QUICK
    ),
    "declare an exchange": lambda connection: Exchange("e2")(connection.default_channel).declare(),
    "delete an exchange": lambda connection: Exchange("e")(connection.default_channel).delete(),
    "declare": lambda connection: Queue("q2")(connection.default_channel).declare(),
    "declare passively": lambda connection: connection.default_channel.queue_declare("q2", passive=True),
    "bind": lambda connection: connection.default_channel.queue_bind("q", "e", "k"),
    "unbind": lambda connection: connection.default_channel.queue_unbind("q", "e", "k"),
    "purge": lambda connection: connection.default_channel.queue_purge("q"),
    "delete": lambda connection: connection.default_channel.queue_delete("q"),
    "get": lambda connection: connection.default_channel.basic_get("q"),
    "consume": lambda connection: connection.default_channel.basic_consume("q2", callback=print),
    "drain": lambda connection: _drain(connection),
    "bindings": lambda connection: connection.get_manager().get_bindings(),
    "simple queue": lambda connection: SimpleQueue(connection, "q").put("x"),
    "size": lambda connection: SimpleQueue(connection, "q").qsize(),
}


def _drain(connection: Connection) -> None:
    with Consumer(connection.default_channel, [Queue("q")], auto_declare=False):
        connection.drain_events(timeout=5)


@pytest.mark.parametrize("name", KOMBU)
def test_kombu_raises_an_error_of_the_connection(gone: tuple[Celery, Any, Connection], name: str) -> None:
    connection = gone[2]
    with pytest.raises((OperationalError, *connection.connection_errors)) as raised:
        KOMBU[name](connection)

    assert isinstance(raised.value, OperationalError), repr(raised.value)


@needs_batches
def test_a_producers_batch_says_whether_it_may_be_tried_again(gone: tuple[Celery, Any, Connection]) -> None:
    connection = gone[2]
    with (
        pytest.raises((OperationalError, BatchPublishError)),
        Producer(connection.default_channel) as producer,
        producer.batch(),
    ):
        producer.publish("x", routing_key="q")
