"""Tables that vanish under running programs are an outage: they wait, make none anew, and go on after the restore."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client

from pgqrs_core.errors import SchemaUnavailable, Unavailable
from pgqrs_core.testing import eventually
from tests.adapters.kombu.kombu_support import url_of
from tests.adapters.native_support import Native
from tests.support.dumps import Backup, replace_database

RESTORE = ("--clean", "--if-exists", "--single-transaction", "--exit-on-error")


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {row[0] for row in connection.execute("select tablename from pg_tables where schemaname = 'pgqrs'")}


def drop_tables(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop schema pgqrs cascade")


class TestNative:
    def test_calls_say_that_the_tables_are_gone_and_work_again_after_a_restore(
        self, native: Native, client: Any, jobs: str, pgqrs_dsn: str, tmp_path: Path
    ) -> None:
        client.producer.enqueue(jobs, 1)
        backup = Backup(pgqrs_dsn, tmp_path / "dump")
        drop_tables(pgqrs_dsn)
        calls: list[Callable[[], Any]] = [
            lambda: client.producer.enqueue(jobs, 2),
            lambda: client.consumer.read_batch(jobs, count=1),
            lambda: client.admin.queue_metrics(jobs),
            lambda: client.admin.list_queues(),
            lambda: client.admin.create_queue("more"),
            lambda: client.admin.maintain(),
        ]
        for call in calls:
            with pytest.raises(SchemaUnavailable, match="restore them, or run `pgqrs install`"):
                call()
        # Another client of the same process knows as much.
        with pytest.raises(SchemaUnavailable):
            native.client().producer.enqueue(jobs, 2)
        assert tables(pgqrs_dsn) == set()

        backup.restore(pgqrs_dsn, "--single-transaction")

        client.producer.enqueue(jobs, 2)
        found = client.consumer.read_batch(jobs, count=10)
        assert sorted(message.payload for message in found) == [1, 2]

    def test_a_worker_waits_for_the_tables(
        self, native: Native, client: Any, jobs: str, pgqrs_dsn: str, tmp_path: Path
    ) -> None:
        seen: list[Any] = []
        worker = native.worker(client, concurrency=1)
        worker.handler(jobs)(lambda message: seen.append(message.payload))
        with native.working(worker):
            client.producer.enqueue(jobs, 1)
            eventually(lambda: seen == [1])
            backup = Backup(pgqrs_dsn, tmp_path / "dump")
            replace_database(pgqrs_dsn)
            _outlast(client.producer, jobs)
            assert tables(pgqrs_dsn) == set()

            backup.restore(pgqrs_dsn, *RESTORE)
            client.producer.enqueue(jobs, 2)

            eventually(lambda: 2 in seen)

    def test_a_restore_that_is_half_done_is_awaited(
        self, native: Native, client: Any, jobs: str, pgqrs_dsn: str, tmp_path: Path
    ) -> None:
        client.producer.enqueue(jobs, 1)
        backup = Backup(pgqrs_dsn, tmp_path / "dump")
        drop_tables(pgqrs_dsn)
        for section in ("pre-data", "data"):
            with pytest.raises(SchemaUnavailable):
                client.producer.enqueue(jobs, 2)
            backup.restore(pgqrs_dsn, "--section", section)

        with pytest.raises(SchemaUnavailable, match="not complete"):
            client.producer.enqueue(jobs, 2)
        backup.restore(pgqrs_dsn, "--section", "post-data")

        client.producer.enqueue(jobs, 2)
        assert sorted(message.payload for message in client.consumer.read_batch(jobs, count=10)) == [1, 2]

    def test_what_was_removed_on_purpose_may_be_installed_again(self, client: Any, jobs: str) -> None:
        client.admin.list_queues()
        client.admin.uninstall()

        client.admin.install()

        assert client.admin.list_queues() == []


def _outlast(producer: Any, jobs: str) -> None:
    """Call until it is the tables that are missed, and no longer the connections or the database."""

    def gone() -> bool:
        try:
            producer.enqueue(jobs, 0)
        except SchemaUnavailable:
            return True
        except Unavailable:
            pass
        return False

    eventually(gone, what="the tables are missed")


class TestCelery:
    @pytest.fixture
    def crew(self, pgqrs_dsn: str, tmp_path: Path) -> Iterator[Any]:
        pytest.importorskip("celery")
        from tests.adapters.celery.celery_support import Workers

        made = Workers(pgqrs_dsn, tmp_path)
        yield made
        made.close()

    def test_a_worker_outlives_a_database_that_is_replaced_and_restored(
        self, crew: Any, pgqrs_dsn: str, tmp_path: Path
    ) -> None:
        worker = crew.start(
            "prefork", "-c", "1", conf={"result_backend": url_of(pgqrs_dsn), "task_ignore_result": False}
        )
        crew.tasks.say.delay("before")
        crew.wait_for("say before")
        crew.tasks.say.apply_async(["kept"], countdown=1)
        backup = Backup(pgqrs_dsn, tmp_path / "dump")
        replace_database(pgqrs_dsn)
        # Its own lines, in the order of what it meets: the sessions, the database, the tables.
        eventually(lambda: "are not there any more" in worker.log, what="the worker misses the tables")
        assert tables(pgqrs_dsn) == set()

        # Not in one transaction: while it lasts, the worker must not write into tables that are half restored.
        backup.restore(pgqrs_dsn)
        crew.tasks.say.delay("after")

        crew.wait_for("say after", "say kept", patience=60)
        assert worker.process.poll() is None
        worker.process.terminate()
        assert worker.process.wait(30) == 0

    def test_a_worker_that_may_not_make_tables_waits_for_the_restore_when_it_is_started_in_between(
        self, crew: Any, pgqrs_dsn: str, tmp_path: Path
    ) -> None:
        crew.tasks.say.delay("kept")
        backup = Backup(pgqrs_dsn, tmp_path / "dump")
        replace_database(pgqrs_dsn)
        crew.environment["TEST_OPTIONS"] = '{"create_schema": false}'
        started = threading.Thread(target=lambda: crew.start(options={"create_schema": False}), daemon=True)
        started.start()
        eventually(lambda: crew.processes and "holds no pgqrs tables" in crew.processes[0].log)

        backup.restore(pgqrs_dsn, *RESTORE)

        crew.wait_for("say kept", patience=60)
        started.join(30)
        assert tables(pgqrs_dsn) >= {"q_celery", "queues"}

    def test_a_worker_whose_queue_has_lost_its_row_waits_until_it_is_adopted(self, crew: Any, pgqrs_dsn: str) -> None:
        crew.tasks.say.delay("kept")
        with psycopg.connect(pgqrs_dsn, autocommit=True) as connection:
            connection.execute("delete from pgqrs.queues")
            connection.execute("delete from pgqrs.kombu_queues")
        started = threading.Thread(target=crew.start, daemon=True)
        started.start()
        eventually(lambda: crew.processes and "--repair` adopts it" in crew.processes[0].log, 60)

        with Client(pgqrs_dsn) as client:
            client.admin.repair()

        crew.wait_for("say kept", patience=60)
        started.join(30)
        assert crew.processes[0].process.poll() is None

    def test_a_connection_awaits_the_end_of_a_restore(self, pgqrs_dsn: str, tmp_path: Path) -> None:
        pytest.importorskip("kombu")
        from kombu import Connection, Queue

        with Connection(url_of(pgqrs_dsn)) as connection:
            Queue("celery")(connection.channel()).declare()
            backup = Backup(pgqrs_dsn, tmp_path / "dump")
            drop_tables(pgqrs_dsn)
            for section in ("pre-data", "data", "post-data"):
                with pytest.raises(connection.connection_errors, match="are not there any more"):
                    Queue("celery")(Connection(url_of(pgqrs_dsn)).channel()).declare()
                backup.restore(pgqrs_dsn, "--section", section)
            Queue("celery")(Connection(url_of(pgqrs_dsn)).channel()).declare()

        with psycopg.connect(pgqrs_dsn) as looks:
            assert looks.execute("select count(*) from pgqrs.queues").fetchone() == (1,)

    def test_results_are_waited_for_and_stored_again(self, pgqrs_dsn: str, tmp_path: Path) -> None:
        celery = pytest.importorskip("celery")
        app = celery.Celery("app", backend=url_of(pgqrs_dsn), set_as_current=False)
        try:
            app.backend.store_result("a", 1, "SUCCESS")
            backup = Backup(pgqrs_dsn, tmp_path / "dump")
            found: list[Any] = []
            waits = threading.Thread(target=lambda: found.append(app.AsyncResult("b").get(timeout=60)), daemon=True)
            waits.start()
            eventually(lambda: app.backend.listener.is_connected)
            drop_tables(pgqrs_dsn)
            with pytest.raises(Unavailable):
                app.backend.store_result("b", 1, "SUCCESS")
            time.sleep(1.5)  # The wait meets the missing tables, in a poll at least.
            assert tables(pgqrs_dsn) == set()

            backup.restore(pgqrs_dsn, "--single-transaction")
            app.backend.store_result("b", 2, "SUCCESS")

            waits.join(30)
            assert found == [2]
        finally:
            app.backend.close()
            app.close()


class TestDramatiq:
    def test_a_worker_waits_for_the_tables(self, pgqrs_dsn: str, tmp_path: Path) -> None:
        pytest.importorskip("dramatiq")
        from dramatiq import Worker, actor
        from pgqrs_dramatiq import PgqrsBroker

        seen: list[int] = []
        broker = PgqrsBroker(pgqrs_dsn)
        act = actor(lambda number: seen.append(number), actor_name="act", broker=broker)
        act.send(1)
        worker = Worker(broker, worker_threads=1, worker_timeout=100)
        worker.start()
        try:
            eventually(lambda: seen == [1])
            backup = Backup(pgqrs_dsn, tmp_path / "dump")
            replace_database(pgqrs_dsn)
            eventually(lambda: _fails(lambda: act.send(0), "are not there any more"))
            assert tables(pgqrs_dsn) == set()

            backup.restore(pgqrs_dsn)
            act.send(2)

            eventually(lambda: 2 in seen)
        finally:
            worker.stop()
            broker.close()


def _fails(call: Callable[[], Any], words: str) -> bool:
    try:
        call()
    except Exception as error:
        return words in str(error)
    return False
