"""Native, blocking and asynchronous, Kombu and Dramatiq do the same with messages and with plugins."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from pgqrs_core.plugins import Plugins
from pgqrs_core.testing.adapters import AdapterConformance, Witness

from .native_support import Native

BODIES = "select body from pgqrs.q_jobs order by message_id"


def bodies(dsn: str) -> list[bytes]:
    with psycopg.connect(dsn) as connection:
        return [bytes(row[0]) for row in connection.execute(BODIES)]


class NativeDriver:
    def __init__(self, native: Native, plugins: Plugins) -> None:
        self.dsn = native.dsn
        self._make = lambda: native.client(plugins=plugins)
        self.client = self._make()
        self.client.admin.install()
        self.client.admin.create_queue("jobs", lease_seconds=1, backoff_base=0.0)

    def send(self, bodies: Sequence[bytes]) -> None:
        self.client.producer.batch_enqueue("jobs", bodies)

    def take(self, count: int) -> list[Any]:
        return self.client.consumer.read_batch("jobs", count=count, lock_time=1.5, wait=1.0)

    def body(self, message: Any) -> bytes:
        return bytes(message.payload)

    def ack(self, messages: Sequence[Any]) -> None:
        assert all(self.client.consumer.dequeue_batch(messages))

    def give_back(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self.client.consumer.release(message)

    def abandon(self) -> None:
        self.client.close()
        self.client = self._make()

    def stored(self) -> list[bytes]:
        return bodies(self.dsn)


class TestNative(AdapterConformance):
    name = "native"
    kind = "sync"

    @contextmanager
    def adapter(self, dsn: str, plugins: Plugins) -> Iterator[NativeDriver]:
        native = Native(self.kind, dsn)
        try:
            yield NativeDriver(native, plugins)
        finally:
            native.close()


class TestAsyncNative(TestNative):
    kind = "async"


class KombuDriver:
    def __init__(self, dsn: str) -> None:
        from kombu import Connection

        self.dsn = dsn
        self._Connection = Connection
        self._open: list[Any] = []
        self._connect()

    def _connect(self) -> None:
        from kombu import Queue
        from pgqrs_kombu.url import masked

        class Client:
            hostname = psycopg.conninfo.make_conninfo(self.dsn)

        url = masked(Client(), include_password=True, mask="")
        self.connection = self._Connection(url, transport_options={"lease": 1})
        self._open.append(self.connection)
        self.channel = self.connection.channel()
        self.queue = Queue("jobs")(self.channel)
        self.queue.declare()

    @property
    def broker(self) -> Any:
        return self.connection.transport.broker

    def send(self, bodies: Sequence[bytes]) -> None:
        from kombu import Producer
        from pgqrs_kombu import batch

        producer = Producer(self.channel)
        if len(bodies) == 1:
            producer.publish(bodies[0], routing_key="jobs")
            return
        with batch():
            for body in bodies:
                producer.publish(body, routing_key="jobs")

    def take(self, count: int) -> list[Any]:
        found: list[Any] = []
        until = time.monotonic() + 1.0
        while len(found) < count and time.monotonic() < until:
            message = self.queue.get(accept=None)
            if message is not None:
                found.append(message)
                until = time.monotonic() + 1.0
        return found

    def body(self, message: Any) -> bytes:
        return bytes(message.body)

    def ack(self, messages: Sequence[Any]) -> None:
        for message in messages:
            message.ack()
        self.broker.settler.flush()

    def give_back(self, messages: Sequence[Any]) -> None:
        for message in messages:
            message.requeue()
        self.broker.settler.flush()

    def abandon(self) -> None:
        # A process that is killed renews nothing and says nothing.
        broker = self.broker
        broker.keeper.close()
        broker.settler.close()
        from pgqrs_kombu import broker as module

        module._brokers.clear()
        self._connect()

    def stored(self) -> list[bytes]:
        return bodies(self.dsn)

    def close(self) -> None:
        for connection in self._open:
            connection.release()


class DramatiqDriver:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connect()

    def _connect(self) -> None:
        from pgqrs_dramatiq import PgqrsBroker

        self.broker = PgqrsBroker(self.dsn, lease=1.0)
        self.broker.declare_queue("jobs")
        self.consumer = self.broker.consume("jobs", prefetch=2_000, timeout=1_000)

    @staticmethod
    def message(body: bytes) -> Any:
        from dramatiq import Message

        text = body.decode()
        return Message("jobs", "act", (text,), {}, {}, message_id=text, message_timestamp=0)

    def send(self, bodies: Sequence[bytes]) -> None:
        if len(bodies) == 1:
            self.broker.enqueue(self.message(bodies[0]))
        else:
            self.broker.enqueue_many(map(self.message, bodies))

    def take(self, count: int) -> list[Any]:
        return list(itertools.islice(iter(self.consumer.__next__, None), count))

    def body(self, message: Any) -> bytes:
        return str(message.args[0]).encode()

    def ack(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self.consumer.ack(message)
        # Acks are written a moment later, or when something is given back.
        self.give_back([])

    def give_back(self, messages: Sequence[Any]) -> None:
        self.consumer.requeue(messages)

    def abandon(self) -> None:
        # That stops renewing leases, and says nothing of what was delivered.
        self.broker.close()
        self._connect()

    def stored(self) -> list[bytes]:
        return bodies(self.dsn)

    def close(self) -> None:
        self.broker.close()


class FrameworkConformance(AdapterConformance):
    """Of adapters that make their engines themselves, with the plugins that are installed."""

    driver: Callable[[str], Any]

    @pytest.fixture(autouse=True)
    def _library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip(self.name)
        self.patch = monkeypatch

    def plugins(self, witness: Witness) -> Plugins:
        plugins = super().plugins(witness)
        plugins.register(importlib.import_module(f"pgqrs_{self.name}.plugin"), self.name)
        return plugins

    @contextmanager
    def adapter(self, dsn: str, plugins: Plugins) -> Iterator[Any]:
        self.patch.setattr("pgqrs_core.engine.default_plugins", lambda *_: plugins)
        with closing(self.driver(dsn)) as driver:
            yield driver


class TestKombu(FrameworkConformance):
    name = "kombu"
    many = 300
    driver = KombuDriver


class TestDramatiq(FrameworkConformance):
    name = "dramatiq"
    driver = DramatiqDriver

    def wire(self, body: bytes) -> bytes:
        return bytes(DramatiqDriver.message(body).encode())
