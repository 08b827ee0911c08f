"""Web servers that fork: hundreds of children, each with threads that begin at once, of a client that was used before."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
import warnings
from pathlib import Path

import pytest
from pgqrs_native import Client

from .crowd import ask

pytestmark = pytest.mark.faults

CHILDREN = 150
AT_A_TIME = 10
THREADS = 6


def test_children_of_a_client_in_use_store_what_they_say_they_stored(pgqrs_dsn: str, tmp_path: Path) -> None:
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs", max_attempts=1_000_000)
        # Python's own locks of modules that are being imported do not survive a fork: what is imported late is by now.
        client.producer.enqueue("jobs", "parent")
        client.consumer.read("jobs", lock_time=0.1)
        over = threading.Event()
        bustle = [threading.Thread(target=_use, args=(client, over)) for _ in range(3)]
        for thread in bustle:
            thread.start()
        try:
            for first in range(0, CHILDREN, AT_A_TIME):
                children = [_fork(client, tmp_path / str(first + n)) for n in range(AT_A_TIME)]
                statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
                assert statuses == [0] * AT_A_TIME
        finally:
            over.set()
            for thread in bustle:
                thread.join(30)

    said = [tuple(pair) for file in tmp_path.iterdir() for pair in json.loads(file.read_text())]
    assert len(said) == CHILDREN * THREADS * 2
    stored = dict(ask(pgqrs_dsn, "select message_id, convert_from(body, 'utf8')::json #>> '{}' from pgqrs.q_jobs"))
    assert [(number, text) for number, text in said if stored.get(number) != text] == []


def _use(client: Client, over: threading.Event) -> None:
    while not over.is_set():
        client.producer.enqueue("jobs", "parent")
        client.consumer.read("jobs", lock_time=0.1, wait=0.01)


def _fork(client: Client, notes: Path) -> int:
    with warnings.catch_warnings():
        # From Python 3.12 on; a forking web server does it too.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(60)
        _serve(client, notes)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(client: Client, notes: Path) -> None:
    barrier = threading.Barrier(THREADS)
    said: list[tuple[int, str]] = []

    def run(number: int) -> None:
        text = f"{os.getpid()}-{number}"
        barrier.wait()
        said.extend([(client.producer.enqueue("jobs", text), text) for _ in range(2)])

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    notes.write_text(json.dumps(said))
