"""The processes of the scenario `herd`: consumers that wait on one queue, and report what they picked up, and how soon."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks.floors import Latencies, latency, stamped

__all__ = ["KINDS", "QUEUE", "WORK", "Herd", "Report", "Send", "send"]

QUEUE: Final = "herd"
#: Seconds of work for each message.
WORK: Final = 0.005

#: Processes are forked from one that has imported everything: sixty-four interpreters would take minutes to start.
_CONTEXT: Final = multiprocessing.get_context("forkserver")

Seen = Callable[[bytes], None]
#: Sends some messages at once, each with some work or without.
Send = Callable[[int, bool], object]

#: How a body ends that means work.
_TOIL: Final = b"work"


@dataclass
class Report:
    """What one consumer saw since it was last asked."""

    latencies: Latencies
    #: Claims that found nothing.
    empty: int


class _Sight:
    """Notes the messages and the empty claims of this process."""

    def __init__(self) -> None:
        self._report = Report([], 0)

    def see(self, body: bytes) -> None:
        self._report.latencies.append(latency(body))
        if body.endswith(_TOIL):
            time.sleep(WORK)

    def count_empty_claims(self) -> None:
        from pgqrs_core.marks import Marks

        original = Marks.finish

        def finish(marks: Marks, seen: Any, *, full: bool) -> None:
            self._report.empty += seen is None
            original(marks, seen, full=full)

        Marks.finish = finish  # type: ignore[method-assign]

    def serve(self, pipe: Connection) -> None:
        """Answer each question with what was seen since the last one, until there are no more."""
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while pipe.recv():
                report, self._report = self._report, Report([], 0)
                pipe.send(report)


def _worker(dsn: str, see: Seen) -> None:
    from pgqrs_native import Client, Worker

    with Client(dsn) as client:
        worker = Worker(client, housekeeping=False)
        worker.handler(QUEUE, bytes)(lambda message: see(message.payload))
        worker.run(signals=False)


def _reader(dsn: str, see: Seen) -> None:
    from pgqrs_native import Client

    with Client(dsn) as client:
        while True:
            for message in client.consumer.read_batch(QUEUE, bytes, wait=3600):
                see(message.payload)
                client.consumer.dequeue(message)


def _async_reader(dsn: str, see: Seen) -> None:
    import asyncio

    from pgqrs_native import AsyncClient

    async def read() -> None:
        async with AsyncClient(dsn) as client:
            while True:
                for message in await client.consumer.read_batch(QUEUE, bytes, wait=3600):
                    see(message.payload)
                    await client.consumer.dequeue(message)

    asyncio.run(read())


def _kombu(dsn: str, see: Seen) -> None:
    from kombu import Connection as Broker
    from kombu import Consumer, Queue

    def on_message(body: Any, message: Any) -> None:
        see(body)
        message.ack()

    with Broker(_kombu_url(dsn)) as broker, broker.channel() as channel:
        channel.basic_qos(0, 10, False)
        with Consumer(channel, [Queue(QUEUE, no_declare=True)], callbacks=[on_message], accept=["application/data"]):
            while True:
                with contextlib.suppress(TimeoutError):
                    broker.drain_events(timeout=3600)


def _dramatiq(dsn: str, see: Seen) -> None:
    import dramatiq

    broker = _dramatiq_broker(dsn)
    actor = dramatiq.actor(_see_text(see), actor_name="act", queue_name=QUEUE, broker=broker)
    dramatiq.Worker(broker, worker_threads=8).start()
    assert actor
    threading.Event().wait()


def _body(work: bool) -> bytes:
    return stamped() + _TOIL if work else stamped()


def _see_text(see: Seen) -> Callable[[str], None]:
    return lambda text: see(bytes.fromhex(text))


def _kombu_url(dsn: str) -> str:
    return dsn.replace("postgresql://", "pgqrs://", 1)


def _dramatiq_broker(dsn: str) -> Any:
    from pgqrs_dramatiq import PgqrsBroker

    return PgqrsBroker(url=dsn)


#: Ways to consume, and how each is sent to.
KINDS: Final[dict[str, Callable[[str, Seen], None]]] = {
    "Worker": _worker,
    "read_batch": _reader,
    "async read_batch": _async_reader,
    "Kombu": _kombu,
    "Dramatiq": _dramatiq,
}


@contextlib.contextmanager
def send(kind: str, dsn: str) -> Iterator[Send]:
    """Yield a way to send some messages at once to consumers of a kind."""
    with contextlib.ExitStack() as stack:
        if kind == "Kombu":
            from kombu import Connection as Broker
            from kombu import Producer

            broker = stack.enter_context(Broker(_kombu_url(dsn)))
            producer = Producer(broker.channel())

            def publish(count: int, work: bool) -> None:
                from pgqrs_kombu import batch

                with batch() if count > 1 else contextlib.nullcontext():
                    for _ in range(count):
                        producer.publish(
                            _body(work), routing_key=QUEUE, content_type="application/data", content_encoding="binary"
                        )

            yield publish
        elif kind == "Dramatiq":
            import dramatiq

            broker = _dramatiq_broker(dsn)
            stack.callback(broker.close)
            actor = dramatiq.actor(_see_text(lambda _: None), actor_name="act", queue_name=QUEUE, broker=broker)

            def act(count: int, work: bool) -> None:
                if count == 1:
                    actor.send(_body(work).hex())
                else:
                    dramatiq.group([actor.message(_body(work).hex()) for _ in range(count)], broker=broker).run()

            yield act
        else:
            from pgqrs_native import Client

            client = stack.enter_context(Client(dsn))

            def enqueue(count: int, work: bool) -> None:
                if count == 1:
                    client.producer.enqueue(QUEUE, _body(work))
                else:
                    client.producer.batch_enqueue(QUEUE, [_body(work) for _ in range(count)])

            yield enqueue


class Herd:
    """Some consumers of one kind."""

    def __init__(self, kind: str, dsn: str, count: int) -> None:
        _CONTEXT.set_forkserver_preload(["benchmarks.herd_preload"])
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_consume, args=(kind, dsn, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def report(self) -> list[Report]:
        """Return what each has seen since the last report."""
        for pipe in self._pipes:
            pipe.send(True)
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        """End them all."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def _consume(kind: str, dsn: str, pipe: Connection) -> None:
    sight = _Sight()
    sight.count_empty_claims()
    threading.Thread(target=KINDS[kind], args=(dsn, sight.see), daemon=True).start()
    sight.serve(pipe)
