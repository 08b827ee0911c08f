"""What an engine tells of itself: connections and wake-ups."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import pytest
from pgqrs_native import AsyncClient, Client

from pgqrs_core import Plugins
from pgqrs_core.engine import Engine
from pgqrs_core.figures import EngineFigures, process_figures
from pgqrs_core.messages import Queue, QueueOptions
from pgqrs_core.watch import Watch

PATIENCE = 20.0


def test_an_engine_counts_its_connections_and_what_wakes_it(pgqrs_dsn: str) -> None:
    with Client(pgqrs_dsn, plugins=Plugins.core()) as client:
        assert client.engine.figures().pool.open == 0
        assert client.engine.figures().listening is None
        client.admin.install()
        client.admin.create_queue("jobs")
        reader = threading.Thread(target=client.consumer.read, args=("jobs",), kwargs={"wait": PATIENCE})
        reader.start()
        deadline = time.monotonic() + PATIENCE
        while not (client.engine.figures().watched and client.engine.figures().probes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client.producer.enqueue("jobs", 1)
        reader.join(PATIENCE)

        figures = client.engine.figures()
        assert figures in process_figures()

    assert not reader.is_alive()
    assert figures.listening is True
    assert figures.notifications + figures.probes > 0
    assert figures.losses == 0
    assert 1 <= figures.pool.open <= figures.pool.limit
    assert figures.pool.idle <= figures.pool.open
    assert client.engine.figures().pool.open == 0


def test_an_asynchronous_engine_counts_the_same(pgqrs_dsn: str) -> None:
    async def run() -> EngineFigures:
        async with AsyncClient(pgqrs_dsn, plugins=Plugins.core()) as client:
            await client.admin.install()
            await client.admin.create_queue("jobs")
            reading = asyncio.create_task(client.consumer.read("jobs", wait=PATIENCE))
            while not client.engine.figures().watched:
                await asyncio.sleep(0.01)
            await client.producer.enqueue("jobs", 1)
            assert await reading is not None
            return client.engine.figures()

    figures = asyncio.run(asyncio.wait_for(run(), PATIENCE))

    assert figures.listening is True
    assert 1 <= figures.pool.open <= figures.pool.limit


def test_a_watch_counts_what_happens_to_it() -> None:
    watch = Watch()
    queue = Queue(1, "jobs", "jobs", QueueOptions())
    watch.join(queue)

    watch.rang(1)
    watch.rang(2)
    watch.probed([queue], [], 0.001)
    watch.lost()

    assert (watch.watched, watch.rings, watch.probes, watch.losses) == (1, 1, 1, 1)
    watch.leave(queue)
    assert watch.watched == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_engines_that_nobody_keeps_and_those_of_a_parent_are_not_counted(pgqrs_dsn: str) -> None:
    gc.collect()
    before = len(process_figures())
    engine = Engine(pgqrs_dsn, plugins=Plugins.core())
    assert len(process_figures()) == before + 1

    child = os.fork()
    if not child:
        os._exit(len(process_figures()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    del engine
    gc.collect()
    assert len(process_figures()) == before
