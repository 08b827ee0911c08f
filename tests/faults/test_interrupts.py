"""Exceptions that strike threads at any instruction, as time limits of Dramatiq and Celery do, for a while."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time

import pytest
from pgqrs_native import Client

from pgqrs_core.config import Config

from .crowd import ask, until

pytestmark = pytest.mark.faults

THREADS = 6
SECONDS = 15


class Struck(BaseException):
    """As Dramatiq's time limit, it is no Exception."""


# One may strike within a destructor, of which Python only tells.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_lost_and_nothing_is_kept_when_exceptions_strike_at_any_instruction(pgqrs_dsn: str) -> None:
    stored: set[int] = set()
    settled: list[int] = []
    over = threading.Event()
    with Client(Config.load(url=pgqrs_dsn, max_connections=4, connection_timeout_seconds=10)) as client:
        client.admin.install()
        client.admin.create_queue("jobs", max_attempts=1_000_000, lease_seconds=1.0)

        def work() -> None:
            while not over.is_set():
                stored.add(client.producer.enqueue("jobs", "x"))
                for message in client.consumer.read_batch("jobs", count=3, wait=0.01):
                    client.consumer.dequeue(message)
                    settled.append(message.id)
                with client.consumer.lease("jobs") as held:
                    pass
                if held is not None:
                    settled.append(held.id)

        def persist() -> None:
            while not over.is_set():
                # It may strike between any two lines here, too; a lease may be lost to a thread that was struck.
                with contextlib.suppress(BaseException):
                    work()

        threads = [threading.Thread(target=persist, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        dice = random.Random(11)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            struck = dice.choice(threads)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(struck.ident or 0), ctypes.py_object(Struck))
            time.sleep(dice.random() * 0.01)
        over.set()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)

        assert client.engine.connections.total <= 3
        links = [client.engine.connections.get(relaxed=relaxed) for relaxed in (False, False, True)]
        for link in links:
            client.engine.connections.put(link)
        left = {row[0] for row in ask(pgqrs_dsn, "select message_id from pgqrs.q_jobs")}
        # An ack that was struck may have been written, and its message is then in neither.
        assert len(settled) == len(set(settled))
        assert not left & set(settled)
        # What nobody settled comes again, to threads that wait as ever.
        again: set[int] = set()

        def take() -> bool:
            for message in client.consumer.read_batch("jobs", count=100, wait=1.0):
                again.add(message.id)
                client.consumer.dequeue(message)
            return again >= left

        until(take, "all leases have ended")
        assert stored
