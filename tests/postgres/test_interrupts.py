"""What is left behind by exceptions that strike at any instruction, and by cancelled tasks: no place, no lock, no claim."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import ask, draft, until
from pgqrs_native import AsyncClient, Client

from pgqrs_core.config import Config
from pgqrs_core.drivers import aio, idle, pool
from pgqrs_core.drivers.idle import IdleCloser
from pgqrs_core.drivers.locks import Attempts
from pgqrs_core.effects import Op, Transact
from pgqrs_core.engine import AsyncEngine, Engine
from pgqrs_core.errors import WrongEventLoop
from pgqrs_core.marks import Marks
from pgqrs_core.messages import QueueOptions
from pgqrs_core.operations import claim, enqueue, queues, schema

if TYPE_CHECKING:
    from collections.abc import Iterator


class Struck(BaseException):
    """As Dramatiq's time limit, it is no Exception."""


def strike(thread: threading.Thread) -> None:
    """Raise `Struck` in a thread, at whatever instruction it is."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Struck))


def struck(*_: object, **__: object) -> None:
    raise Struck


def nested() -> Op[None]:
    """An operation with a transaction of its own that changes something."""
    yield Transact(lambda: queues.pause_queue("jobs"))


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Let objects go by their last reference alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def dsn(pgqrs_dsn: str) -> str:
    with Engine(pgqrs_dsn) as engine:
        engine.transact(schema.install, "pgqrs")
        engine.transact(queues.create_queue, "jobs", QueueOptions(max_attempts=1))
    return pgqrs_dsn


def held(dsn: str) -> list[tuple[Any, ...]]:
    """The messages that somebody holds, or that have been charged an attempt."""
    return ask(dsn, "select message_id, attempt from pgqrs.q_jobs where lease_token <> 0 or attempt > 0")


class TestExceptionsAtAnyInstruction:
    @pytest.fixture
    def engine(self, dsn: str) -> Iterator[Engine]:
        with Engine(Config.load(url=dsn, max_connections=4, connection_timeout_seconds=5)) as engine:
            yield engine

    # One may strike within a destructor, of which Python only tells, and between two lines of the loop that starts anew.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_they_leak_no_place_of_the_pool(self, engine: Engine) -> None:
        """Also not one by one: after hundreds of them as many threads as ever are served."""
        over = threading.Event()
        done = [0] * 4

        def work(number: int) -> None:
            while not over.is_set():
                with contextlib.suppress(Struck):
                    while not over.is_set():
                        engine.on("jobs", enqueue.enqueue, [draft()], engine.doorbell)
                        engine.on("jobs", claim.claim, Marks(), limit=2, lease=30.0)
                        engine.transact(queues.pause_queue, "nothing") if number == 3 else None
                        done[number] += 1

        def persist(number: int) -> None:
            while not over.is_set():
                # It may strike between any two lines here, too.
                with contextlib.suppress(BaseException):
                    work(number)

        threads = [threading.Thread(target=persist, args=(number,), daemon=True) for number in range(4)]
        for thread in threads:
            thread.start()
        dice = random.Random(7)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            strike(dice.choice(threads))
            time.sleep(dice.random() * 0.004)
        over.set()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)

        assert engine.connections.total <= 3
        # All places are there: as many connections as may be are lent at once.
        links = [engine.connections.get(relaxed=False) for _ in range(2)]
        links.append(engine.connections.get(relaxed=True))
        for link in links:
            engine.connections.put(link)
        assert engine.on("jobs", enqueue.enqueue, [draft()], engine.doorbell)

    def test_a_connection_that_is_lost_on_the_way_frees_its_place_and_its_session(self, engine: Engine) -> None:
        links = [engine.connections.get(relaxed=False) for _ in range(3)]
        pids = [link.connection.info.backend_pid for link in links]

        links.clear()

        assert engine.connections.total == 0
        gone = "select 1 from pg_stat_activity where pid = any(%s::int[])"
        until(lambda: not ask(engine.config.conninfo(), gone, pids), "the sessions have ended")

    @pytest.mark.parametrize("locked", [False, True], ids=["at the first attempt", "once a lock was free"])
    def test_a_transaction_leaves_nothing_that_holds_its_connection(
        self, engine: Engine, locked: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as a function that refers to itself, or a kept error: a place would be lost until garbage is collected."""
        with psycopg.connect(engine.config.conninfo()) as other, without_collector():
            monkeypatch.setattr(Attempts, "pause_after", lambda *_: other.rollback() or 0.0)
            if locked:
                other.execute("lock table pgqrs.queues")
            engine.transact(nested)
            link = engine.connections.get(relaxed=False)
            assert engine.connections.usage.open == 1

            del link

            assert engine.connections.total == 0

    def test_nor_does_one_on_an_event_loop(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def run() -> None:
            async with AsyncEngine(dsn) as engine:
                for locked in (False, True):
                    if locked:
                        other.execute("lock table pgqrs.queues")
                    await engine.transact(nested)
                    link = await engine.connections.get(relaxed=False)
                    assert engine.connections.usage.open == 1

                    del link

                    assert engine.connections.total == 0

        with psycopg.connect(dsn) as other, without_collector():
            monkeypatch.setattr(Attempts, "pause_after", lambda *_: other.rollback() or 0.0)
            asyncio.run(run())

    def test_one_that_keeps_a_pool_from_being_watched_is_made_up_for(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closer = IdleCloser()
        monkeypatch.setattr(pool, "CLOSER", closer)
        with monkeypatch.context() as striking:
            striking.setattr(idle, "start_thread", struck)
            with pytest.raises(Struck):
                engine.transact(nested)
        assert closer._thread is None

        engine.transact(nested)

        assert closer._thread is not None
        closer.stop_before_fork()

    def test_who_waits_notices_a_place_that_was_freed_in_silence(self, engine: Engine) -> None:
        links = [engine.connections.get(relaxed=False) for _ in range(3)]
        got: list[Any] = []
        waiter = threading.Thread(target=lambda: got.append(engine.connections.get(relaxed=False)))
        waiter.start()
        until(lambda: engine.connections._waiting, "it waits")

        links.clear()

        waiter.join(20)
        assert got
        engine.connections.put(got[0])


class TestAReadThatIsInterrupted:
    """Nobody received what it had claimed, so that is given back uncharged: with one attempt it would be dead."""

    @pytest.fixture
    def slow(self, dsn: str) -> str:
        """A queue whose claims take a moment."""
        ask(
            dsn,
            "create function wait() returns trigger language plpgsql as "
            "$$ begin perform pg_sleep(0.3); return new; end $$; "
            "create trigger wait before update on pgqrs.q_jobs for each row when (new.attempt > old.attempt) "
            "execute function wait()",
        )
        return dsn

    def test_by_a_signal_handler_while_the_server_works(self, slow: str) -> None:
        """As by Celery's soft time limit. The server goes on and commits, so the end of the claim is awaited."""

        class SoftLimit(Exception):
            pass

        def expire(*_: object) -> None:
            raise SoftLimit

        before = signal.signal(signal.SIGALRM, expire)
        try:
            with Client(slow) as client:
                client.producer.enqueue("jobs", {})
                assert client.consumer.read("jobs", lock_time=0.1) is not None
                ask(slow, "update pgqrs.q_jobs set attempt = 0, lease_token = 0, lease_until = 'epoch'")
                signal.setitimer(signal.ITIMER_REAL, 0.15)

                with pytest.raises(SoftLimit):
                    client.consumer.read("jobs")

                assert held(slow) == []
                message = client.consumer.read("jobs")
                assert message is not None
                assert message.attempt == 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_by_a_cancellation_while_the_server_works(self, slow: str) -> None:
        async def run() -> None:
            async with AsyncClient(slow) as client:
                await client.producer.enqueue("jobs", {})
                task = asyncio.create_task(client.consumer.read("jobs"))
                await asyncio.sleep(0.15)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert held(slow) == []
                message = await client.consumer.read("jobs")
                assert message is not None
                assert message.attempt == 1

        asyncio.run(run())

    @pytest.mark.parametrize("where", ["in the claim", "after the claim"])
    def test_by_a_cancellation_when_the_claim_has_been_committed(
        self, dsn: str, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the worst moments: the answer is there, and the statement or the operation is cancelled."""
        owner: Any = aio if where == "in the claim" else AsyncEngine
        name = "perform" if where == "in the claim" else "_perform"
        whole = getattr(owner, name)

        async def perform(*args: Any, **kwargs: Any) -> Any:
            answer = await whole(*args, **kwargs)
            if any(getattr(argument, "hand", None) for argument in args):
                assert held(dsn)
                monkeypatch.undo()
                raise asyncio.CancelledError
            return answer

        async def run() -> None:
            async with AsyncClient(dsn) as client:
                await client.producer.enqueue("jobs", {})
                monkeypatch.setattr(owner, name, perform)

                with pytest.raises(asyncio.CancelledError):
                    await client.consumer.read("jobs")

                assert held(dsn) == []
                message = await client.consumer.read("jobs")
                assert message is not None
                assert message.attempt == 1

        asyncio.run(run())


class TestASecondEventLoop:
    def test_is_refused_by_name_with_a_remedy(self, dsn: str) -> None:
        client = AsyncClient(dsn)
        asyncio.run(client.producer.enqueue("jobs", {}))

        with pytest.raises(WrongEventLoop, match="Make a client in each loop"):
            asyncio.run(client.producer.enqueue("jobs", {}))
        with pytest.raises(WrongEventLoop):
            asyncio.run(client.consumer.read("jobs", wait=1))

        asyncio.run(client.close())
        assert ask(dsn, "select count(*) from pgqrs.q_jobs") == [(1,)]
