"""Behind PgBouncer in transaction mode: everything works, consumers poll, and no session of the server is changed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client
from psycopg.rows import dict_row

from pgqrs_core.cluster import server_account
from pgqrs_core.drivers import session
from pgqrs_core.errors import LeaseLost
from pgqrs_core.testing import eventually
from tests.support.database import terminate_others

from .native_support import Native, Seen

#: Connections to the server that the pooler shares among all its clients.
SHARED = 3

CONFIGURATION = """
[databases]
{database} = {target}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {shared}
max_client_conn = 100
admin_users = anybody
logfile = {directory}/pgbouncer.log
server_tls_sslmode = prefer
query_wait_timeout = 20
"""


def find_pgbouncer() -> str | None:
    """Return the program: ``$PGBOUNCER``, one on the path, or Debian's."""
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


class Pooler:
    """A PgBouncer in front of one database."""

    def __init__(self, program: str, dsn: str, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.port = free_port()
        self.account = server_account()
        with psycopg.connect(dsn) as connection:
            info = connection.info
            database = info.dbname
            target = {"host": info.host, "port": info.port, "dbname": database, "user": info.user}
            if info.password:
                target["password"] = info.password
        self.file = directory / "pgbouncer.ini"
        self.file.write_text(
            CONFIGURATION.format(
                database=database,
                target=" ".join(f"{key}='{value}'" for key, value in target.items()),
                port=self.port,
                shared=SHARED,
                directory=directory,
            )
        )
        self.dsn = f"host=127.0.0.1 port={self.port} dbname={database} user=anybody"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self.program, str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # It does not run as root.
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
        eventually(lambda: answers(self.dsn))

    def lent(self) -> int:
        """Return how many connections to the server are lent to clients at present."""
        console = psycopg.connect(
            f"host=127.0.0.1 port={self.port} dbname=pgbouncer user=anybody",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
            row_factory=dict_row,
        )
        # It knows no transactions, so the connection is closed by hand.
        with contextlib.closing(console), console.cursor() as cursor:
            return sum(pool["sv_active"] for pool in cursor.execute("show pools") if pool["database"] != "pgbouncer")

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def pooler(pgqrs_dsn: str) -> Iterator[Pooler]:
    program = find_pgbouncer()
    if program is None:
        pytest.skip("needs PgBouncer: install the package pgbouncer, or set PGBOUNCER")
    with tempfile.TemporaryDirectory(prefix="pgqrs-pgbouncer-", dir="/tmp") as name:
        directory = Path(name)
        made = Pooler(program, pgqrs_dsn, directory)
        if made.account:
            os.chown(directory, made.account.uid, made.account.gid)
            os.chown(made.file, made.account.uid, made.account.gid)
        made.start()
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def client(native: Native, pooler: Pooler) -> Any:
    """A client that knows nothing but the pooler."""
    client = native.client(pooler.dsn)
    client.admin.install()
    client.admin.create_queue("jobs", max_attempts=3, backoff_base=0.0)
    return client


def settings(dsn: str) -> list[dict[str, str]]:
    """Return the settings of every connection that the pooler holds to the server, by taking all of them at once."""
    connections = [psycopg.connect(dsn) for _ in range(SHARED)]
    try:
        # Each stays in its transaction, and so on its connection to the server.
        changed = "select name, setting from pg_settings where source = 'session'"
        return [dict(connection.execute(changed).fetchall()) for connection in connections]
    finally:
        for connection in connections:
            connection.close()


OURS = {*session._PINNED, "statement_timeout", "synchronous_commit", "idle_in_transaction_session_timeout"}


def use_everything(client: Any) -> None:
    """Use every kind of statement once."""
    client.producer.enqueue("jobs", 0)
    client.producer.batch_enqueue("jobs", range(1, 6))
    client.producer.enqueue("jobs", 6, delay=0.01)
    messages = client.consumer.read_batch("jobs")
    client.consumer.extend_lock(messages[0], 30)
    client.consumer.dequeue(messages[0])
    client.consumer.archive(messages[1])
    client.consumer.release(messages[2])
    client.consumer.nack(messages[3], delay=60)
    client.consumer.nack(messages[4], bury=True, error="no")
    client.consumer.read("jobs", wait=0.05)
    client.admin.queue_metrics("jobs")
    client.admin.peek("jobs")
    client.admin.list_dead("jobs")
    client.admin.replay_dead("jobs")
    client.admin.list_archive("jobs")
    client.admin.prune_archive("jobs", 0)
    client.admin.maintain()
    client.admin.alter_queue("jobs", max_attempts=4)
    client.admin.pause_queue("jobs")
    client.admin.resume_queue("jobs")
    client.admin.purge_queue("jobs")
    client.admin.create_queue("other")
    client.admin.delete_queue("other")
    client.admin.install()


def test_messages_pass_singly_and_in_batches(client: Any) -> None:
    client.producer.enqueue("jobs", "one", headers={"k": 1}, priority=9)
    client.producer.batch_enqueue("jobs", [b"\0\xff", {"n": 1}] * 500)

    found = client.consumer.read_batch("jobs", count=2_000)

    assert [message.payload for message in found] == ["one", *[b"\0\xff", {"n": 1}] * 500]
    assert client.consumer.dequeue_batch(found) == [True] * 1_001


def test_leases_are_fenced_and_renewed(native: Native, client: Any, pooler: Pooler) -> None:
    client.producer.batch_enqueue("jobs", [1, 2])
    stale = client.consumer.read("jobs", lock_time=0.1)
    fresh = client.consumer.read("jobs", lock_time=30)
    other = native.client(pooler.dsn)
    again = eventually(lambda: other.consumer.read("jobs", wait=1))

    with pytest.raises(LeaseLost):
        client.consumer.dequeue(stale)
    client.consumer.dequeue(fresh)
    other.consumer.release(again)

    with client.consumer.lease("jobs", lock_time=0.5):
        assert other.consumer.read("jobs", wait=1.2) is None


def test_an_idle_client_keeps_no_connection_from_others(client: Any, pooler: Pooler) -> None:
    for number in range(30):
        client.producer.enqueue("jobs", number)
        assert client.consumer.read("jobs") is not None

        eventually(lambda: pooler.lent() == 0)


def test_the_callers_transaction_may_go_through_the_pooler(client: Any, pooler: Pooler) -> None:
    with Client(pooler.dsn) as blocking:
        blocking.producer.enqueue("jobs", "old")
        message = blocking.consumer.read("jobs")
        assert message is not None
        for committed in (False, True):
            with psycopg.connect(pooler.dsn) as connection:
                connection.prepare_threshold = None
                blocking.producer.enqueue("jobs", committed, connection=connection)
                blocking.consumer.dequeue(message, connection=connection)
                if not committed:
                    connection.rollback()

        found = blocking.consumer.read_batch("jobs")

    assert [message.payload for message in found] == [True]


def test_an_idle_consumer_gets_what_is_enqueued_meanwhile(native: Native, client: Any, pooler: Pooler) -> None:
    seen = Seen()
    worker = native.worker(client)
    worker.handler("jobs")(lambda message: seen.add(message.payload))

    with native.working(worker):
        for number in range(3):
            native.client(pooler.dsn).producer.enqueue("jobs", number)
            seen.wait_for(number + 1)

    assert seen.items == [0, 1, 2]


def test_a_producer_behind_the_pooler_wakes_a_consumer_that_is_not(native: Native, client: Any, pgqrs_dsn: str) -> None:
    seen = Seen()
    direct = native.client()
    worker = native.worker(direct)
    worker.handler("jobs")(lambda message: seen.add(message.payload))

    with native.working(worker), psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        eventually(lambda: connection.execute("select from pgqrs.waiters").rowcount)
        before = direct.engine.figures().notifications
        client.producer.enqueue("jobs", 1)
        seen.wait_for(1)
        eventually(lambda: direct.engine.figures().notifications > before)


def test_no_setting_of_ours_is_left_on_a_connection_that_others_will_use(client: Any, pooler: Pooler) -> None:
    use_everything(client)
    with Client(pooler.dsn) as blocking:
        blocking.admin.all_queues_metrics()

    for found in settings(pooler.dsn):
        assert OURS.isdisjoint(found), found


def test_no_prepared_statement_is_left_or_expected_on_a_connection(client: Any, pooler: Pooler, native: Native) -> None:
    for _ in range(3):
        use_everything(client)
        native.client(pooler.dsn).producer.batch_enqueue("jobs", [1, 2])
        client.admin.purge_queue("jobs")

    with psycopg.connect(pooler.dsn) as connection:
        assert connection.execute("select name from pg_prepared_statements").fetchall() == []


def test_the_loss_of_all_connections_to_the_server_is_survived(client: Any, pgqrs_dsn: str) -> None:
    client.producer.enqueue("jobs", 1)
    with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
        terminate_others(connection)
        others = (
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
            "and backend_type = 'client backend'"
        )
        eventually(lambda: connection.execute(others).fetchone() == (0,))

    def enqueued() -> bool:
        # The pooler passes the loss on to one client of each connection.
        try:
            client.producer.enqueue("jobs", 2)
        except ConnectionError:
            return False
        return True

    eventually(enqueued)

    assert [message.payload for message in client.consumer.read_batch("jobs")][:2] == [1, 2]


def test_a_restart_of_the_pooler_is_survived_by_a_worker(native: Native, client: Any, pooler: Pooler) -> None:
    seen = Seen()
    worker = native.worker(client)
    worker.handler("jobs")(lambda message: seen.add(message.payload))

    with native.working(worker):
        client.producer.enqueue("jobs", 1)
        seen.wait_for(1)
        pooler.stop()
        pooler.start()
        native.client(pooler.dsn).producer.enqueue("jobs", 2)
        eventually(lambda: 2 in seen.items)


def test_that_consumers_poll_is_said_once(
    native: Native, pooler: Pooler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_announced", [])
    with caplog.at_level(logging.WARNING, "pgqrs.connections"):
        for _ in range(2):
            client = native.client(pooler.dsn)
            client.admin.install()
            client.admin.create_queue("jobs")
            client.consumer.read("jobs", wait=0.05)

    said = [record.getMessage() for record in caplog.records if record.name == "pgqrs.connections"]
    assert len(said) == 1
    assert "behind a connection pooler: consumers poll" in said[0]


def test_nothing_listens_or_waits_behind_the_pooler(client: Any, pgqrs_dsn: str) -> None:
    client.consumer.read("jobs", wait=0.3)

    with psycopg.connect(pgqrs_dsn) as connection:
        assert connection.execute("select from pgqrs.waiters").rowcount == 0
