"""How many connections an idle worker holds: two, as the docs say. Celery's is in the folder of its own tests."""

from __future__ import annotations

import threading

import dramatiq
import pytest
from dramatiq.results import Results
from pgqrs_dramatiq import PgqrsBroker, PgqrsResultBackend
from pgqrs_native import Client, Worker

from pgqrs_core.testing import PATIENCE, eventually
from tests.support.database import OURS, Database


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQRS_PERFORMANCE_CONNECTION_IDLE_SECONDS", "0.5")


def test_of_the_native_worker(pgqrs_dsn: str) -> None:
    database, seen = Database(pgqrs_dsn), []
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        worker = Worker(client, concurrency=4)
        worker.handler("jobs", int)(lambda message: seen.append(message.payload))
        thread = threading.Thread(target=worker.run, kwargs={"signals": False})
        thread.start()
        try:
            for number in range(20):
                client.producer.enqueue("jobs", number)
            eventually(lambda: len(seen) == 20)
            eventually(lambda: database.sql(OURS) == [(2,)])
        finally:
            worker.stop()
            thread.join(PATIENCE)
        eventually(lambda: database.sql(OURS) <= [(1,)])
    database.close()


def test_of_dramatiqs_worker_with_results(pgqrs_dsn: str) -> None:
    database = Database(pgqrs_dsn)
    broker, results = PgqrsBroker(pgqrs_dsn), PgqrsResultBackend(pgqrs_dsn)
    broker.add_middleware(Results(backend=results))
    act = dramatiq.actor(lambda number: number, actor_name="act", broker=broker, store_results=True)
    worker = dramatiq.Worker(broker, worker_threads=4, worker_timeout=100)
    worker.start()
    try:
        messages = [act.send(number) for number in range(20)]
        assert [each.get_result(backend=results, block=True) for each in messages] == list(range(20))
        eventually(lambda: database.sql(OURS) == [(2,)])
    finally:
        worker.stop()
        broker.close()
        database.close()
