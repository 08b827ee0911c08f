"""A producer or a consumer as a process of its own, which notes what it does: see `crowd.Crowd`.

    actor.py ROLE NOTES DSN OPTIONS      options as JSON, see `Options`

It says ``ready`` on its standard output and begins when it is told to. Whatever the server or the network does to it, it
notes, and goes on.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

sys.path.insert(0, str(Path(__file__).parent))

import broken
import psycopg
from pgqrs_native import Client

from pgqrs_core.config import Config
from pgqrs_core.drivers import patience
from pgqrs_core.errors import EnqueueUnknown, PgqrsError, Unavailable
from pgqrs_core.messages import Lease

QUEUE = "jobs"

now = time.monotonic


@dataclass(frozen=True)
class Options:
    """How an actor behaves."""

    #: ``native`` or ``kombu``.
    adapter: str = "native"
    #: The most messages that a producer sends.
    count: int = 1_000_000
    #: Seconds between two sends.
    pause: float = 0.0
    #: Seconds of a lease.
    lease: float = 0.6
    #: The most messages in a claim.
    batch: int = 8
    #: How often it is slower than its lease.
    slow: float = 0.02
    #: Whether it dies by itself now and then.
    mortal: bool = False
    #: Whether it only acks, at once, instead of doing all that is allowed.
    plain: bool = False
    #: Seconds for which it waits for messages.
    wait: float = 0.05
    #: Seconds without a message after which it believes that there are none, beside two leases.
    idle: float = 0.3
    #: Seconds until a statement is given up, and until a server that does not even say so is.
    timeout: float = 2.0
    grace: float = 0.5
    #: A bug to put into the engine: see `broken`.
    bug: str = ""
    #: Files whose existence tells producers to end, and consumers to end once they find nothing.
    halt: str = ""
    done: str = ""


class Held(NamedTuple):
    """A delivery, as all adapters show it here."""

    key: str
    lease: Lease
    attempt: int
    raw: Any


class Notes:
    """A file to which each event goes at once, so that a death loses at most the one being written."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, op: str, **fields: Any) -> None:
        os.write(self._file, (json.dumps({"op": op, **fields}) + "\n").encode())


class Adapter(Protocol):
    """What producers and consumers need."""

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]: ...

    def receive(self, limit: int) -> list[Held]: ...

    def settle(self, what: str, held: list[Held], delay: float) -> list[bool] | None: ...

    def extend(self, held: list[Held], lease: float) -> list[bool]: ...

    def close(self) -> None: ...


class Native:
    """The native client."""

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        bodies = [key.encode() for key in keys]
        if len(keys) == 1:
            return [self.client.producer.enqueue(QUEUE, bodies[0], priority=priority, delay=delay)]
        return self.client.producer.batch_enqueue(QUEUE, bodies, priority=priority, delay=delay)

    def receive(self, limit: int) -> list[Held]:
        read = self.client.consumer.read_batch
        # What Kombu sent is not for this client to decode, nor to bury.
        messages = read(QUEUE, count=limit, lock_time=self.options.lease, wait=self.options.wait, mismatch="return")
        return [Held(message._delivery.body.decode(), message.lease, message.attempt, message) for message in messages]

    def settle(self, what: str, held: list[Held], delay: float) -> list[bool]:
        consumer, messages = self.client.consumer, [item.raw for item in held]
        if what == "nack":
            return [fate != "lost" for fate in consumer.nack_batch(messages, delay=delay)]
        method: Callable[[Any], list[bool]] = {
            "ack": consumer.dequeue_batch,
            "archive": consumer.archive_batch,
            "release": consumer.release_batch,
        }[what]
        return method(messages)

    def extend(self, held: list[Held], lease: float) -> list[bool]:
        return self.client.consumer.extend_lock_batch([item.raw for item in held], lease)

    def close(self) -> None:
        self.client.close()


class Kombu:
    """Kombu's transport. Its acks are answered late, by `pgqrs_kombu.settling`, so they are noted there."""

    def __init__(self, dsn: str, options: Options, notes: Notes) -> None:
        import kombu
        import pgqrs_kombu  # noqa: F401 - makes the scheme known
        from pgqrs_kombu.url import masked

        from pgqrs_core import settling

        class Address:
            hostname = dsn

        self.options = options
        self.kombu = kombu
        self.url = masked(Address(), include_password=True, mask="")
        self.queue = kombu.Queue(QUEUE, durable=True)
        self.buffer: list[Any] = []
        self.connection: Any = None
        self.consumer: Any = None
        self.asked: dict[tuple[int, int], float] = {}
        written = settling.Settler._done

        def noted(settler: Any, kind: str, group: list[Any], fates: list[Any]) -> None:
            ended = now()
            for verdict, fate in zip(group, fates, strict=True):
                lease = verdict.delivery.lease
                what = {"requeue": "nack", "reject": "nack"}.get(kind, kind)
                notes(
                    "settled",
                    what=what,
                    lane=lease.lane,
                    id=lease.message_id,
                    token=lease.token,
                    ok=fate not in (False, "lost"),
                    began=self.asked.pop((lease.message_id, lease.token), ended),
                    ended=ended,
                )
            written(settler, kind, group, fates)

        settling.Settler._done = noted

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        try:
            if self.connection is None:
                settings = {"lease": max(self.options.lease, 1.0), "query_timeout": self.options.timeout}
                self.connection = self.kombu.Connection(self.url, transport_options=settings)
                self.connection.connect()
            yield self.connection
        except (PgqrsError, OSError):
            # As Kombu's own `ensure` does: what was open is dropped, and the next use begins anew.
            connection, self.connection, self.consumer = self.connection, None, None
            if connection is not None:
                connection.collect()
            raise

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        with self._connected() as connection:
            producer = connection.Producer(serializer="raw")
            for key in keys:
                producer.publish(
                    key.encode(),
                    content_type="application/data",
                    content_encoding="binary",
                    routing_key=QUEUE,
                    declare=[self.queue],
                    priority=priority,
                )
        return [0] * len(keys)

    def receive(self, limit: int) -> list[Held]:
        with self._connected() as connection:
            if self.consumer is None:
                channel = connection.channel()
                channel.basic_qos(0, self.options.batch, False)
                accept, put = ["application/data"], self.buffer.append
                self.consumer = self.kombu.Consumer(channel, [self.queue], on_message=put, accept=accept)
                self.consumer.consume()
            with suppress(TimeoutError):
                connection.drain_events(timeout=self.options.wait)
        messages, self.buffer[:] = self.buffer[:], []
        found = []
        for message in messages:
            held = message.channel.qos._held[message.delivery_tag].delivery
            found.append(Held(bytes(message.body).decode(), held.lease, held.attempt, message))
        return found

    def settle(self, what: str, held: list[Held], delay: float) -> None:
        for item in held:
            self.asked[item.lease.message_id, item.lease.token] = now()
            if what == "nack":
                item.raw.requeue()
            else:
                item.raw.ack()

    def extend(self, held: list[Held], lease: float) -> list[bool]:
        # It renews by itself.
        return []

    def close(self) -> None:
        if self.connection is not None:
            self.connection.release()


def produce(adapter: Adapter, client: Client, notes: Notes, name: str, options: Options) -> None:
    chance = random.Random(name)
    number = 0
    while number < options.count and not (options.halt and os.path.exists(options.halt)):
        sizes = [1, 1, 3, 20] if options.adapter == "native" else [1]
        keys = [f"{name}-{number + place}" for place in range(chance.choice(sizes))]
        number += len(keys)
        for key in keys:
            notes("sending", key=key, at=now())
        try:
            if options.adapter == "native" and not options.plain and chance.random() < 0.3:
                ids = _send_in_transaction(client, keys, chance, options.timeout + options.grace)
            else:
                priority = 0 if options.plain else chance.choice([0, 0, 5])
                delay = None if options.plain else chance.choice([None, None, 0.05])
                ids = adapter.send(keys, priority, delay)
        except _Aborted:
            for key in keys:
                notes("aborted", key=key)
        except EnqueueUnknown:
            notes("unknown", keys=keys)
        except (PgqrsError, OSError) as error:
            # Nothing was stored, they say. Kombu's errors are those of the core.
            notes("refused", error=f"{type(error).__name__}: {error}")
            for key in keys:
                notes("aborted", key=key)
            time.sleep(0.05)
        else:
            for key, id_given in zip(keys, ids, strict=True):
                notes("sent", key=key, id=id_given, at=now())
        time.sleep(options.pause)


class _Aborted(Exception):
    """A transaction did not reach its commit."""


def _send_in_transaction(client: Client, keys: list[str], chance: random.Random, limit: float) -> list[int]:
    """Enqueue in a transaction of the caller's that takes its time, so that ids are committed out of order."""
    try:
        connection = patience.Connection.connect(client.config.conninfo(), application_name="theirs")
        # Nobody but the caller can give up on a connection of the caller's; this one does.
        connection.limit = limit
    except psycopg.Error as error:
        raise _Aborted from error
    try:
        try:
            ids = client.producer.batch_enqueue(QUEUE, [key.encode() for key in keys], connection=connection)
            time.sleep(chance.random() * 0.05)
            if chance.random() < 0.3:
                connection.rollback()
                raise _Aborted
        except (PgqrsError, psycopg.Error) as error:
            raise _Aborted from error
        try:
            connection.commit()
        except psycopg.Error as error:
            raise EnqueueUnknown(QUEUE, str(error)) from error
        return ids
    finally:
        connection.close()


def consume(adapter: Adapter, notes: Notes, name: str, options: Options) -> None:
    chance = random.Random(name)
    kept: list[Held] = []
    busy_at = now()
    while True:
        limit = options.batch if options.plain else chance.choice([1, options.batch])
        began = now()
        try:
            found = adapter.receive(limit)
        except (PgqrsError, OSError) as error:
            busy_at = now()
            notes("unnoted", claims=options.batch, error=f"{type(error).__name__}: {error}")
            time.sleep(0.05)
            continue
        _note_claims(notes, found, began, options)
        if not found and kept and options.adapter == "kombu":
            # Renewed for as long as this process lives, they would never go to anybody else.
            _settle(adapter, notes, "ack", kept, 0.0)
            kept = []
        if not found:
            if os.path.exists(options.done) and now() - busy_at > 2 * options.lease + options.idle:
                return
            time.sleep(0.01)
            continue
        busy_at = now()
        if options.mortal and chance.random() < 0.02:
            os._exit(9)
        kept += found
        if not options.plain and chance.random() < options.slow:
            # Slower than its lease; half of the time it renews it on the way.
            time.sleep(0.6 * options.lease)
            if chance.random() < 0.5:
                _extend(adapter, notes, kept, options.lease)
            time.sleep(0.6 * options.lease)
        # Some are kept beyond their leases, and asked about all the same.
        chosen = kept if options.plain else [item for item in kept if chance.random() < 0.8]
        kept = [item for item in kept if item not in chosen]
        kinds = ["ack", "ack", "ack", "nack"] + (["archive", "release"] if options.adapter == "native" else [])
        _settle(adapter, notes, "ack" if options.plain else chance.choice(kinds), chosen, chance.choice([0.0, 0.1]))


def _note_claims(notes: Notes, found: list[Held], began: float, options: Options) -> None:
    # Kombu claims ahead of what it delivers; when, it does not say.
    early = 0.5 if options.adapter == "kombu" else 0.0
    ended = now()
    for item in found:
        notes(
            "claimed",
            key=item.key,
            id=item.lease.message_id,
            token=item.lease.token,
            attempt=item.attempt,
            lane=item.lease.lane,
            lease=options.lease,
            began=began - early,
            ended=ended,
        )


def _settle(adapter: Adapter, notes: Notes, what: str, chosen: list[Held], delay: float) -> None:
    began = now()
    for item in chosen:
        notes(
            "settling", what=what, lane=item.lease.lane, id=item.lease.message_id, token=item.lease.token, began=began
        )
    for _ in range(3):
        # Again after a lost reply: an answer is then about the second try only, so it is not noted as one of the first.
        try:
            answers = adapter.settle(what, chosen, delay)
        except (PgqrsError, OSError) as error:
            notes("unanswered", what=what, error=f"{type(error).__name__}: {error}")
            if isinstance(error, Unavailable):
                time.sleep(0.05)
            continue
        break
    else:
        return
    if answers is None:
        return
    ended = now()
    for item, answer in zip(chosen, answers, strict=True):
        # What a lost first try did is not told by the refusal of a second.
        if answer or _ == 0:
            lease = item.lease
            notes(
                "settled",
                what=what,
                lane=lease.lane,
                id=lease.message_id,
                token=lease.token,
                ok=answer,
                began=began,
                ended=ended,
            )


def _extend(adapter: Adapter, notes: Notes, held: list[Held], lease: float) -> None:
    began = now()
    try:
        answers = adapter.extend(held, lease)
    except (PgqrsError, OSError):
        return
    for item, answer in zip(held, answers):
        given = item.lease
        notes(
            "extended",
            lane=given.lane,
            id=given.message_id,
            token=given.token,
            ok=answer,
            lease=lease,
            began=began,
            ended=now(),
        )


def main() -> None:
    role, path, dsn, given = sys.argv[1:5]
    options = Options(**json.loads(given))
    patience._GRACE = options.grace
    notes = Notes(path)
    name = Path(path).stem
    dsn = psycopg.conninfo.make_conninfo(dsn, connect_timeout=2)
    config = Config.load(url=dsn, query_timeout_seconds=options.timeout)
    broken.BUGS[options.bug]()
    with Client(config) as client:
        adapter: Adapter = Native(client, options) if options.adapter == "native" else Kombu(dsn, options, notes)
        print("ready", flush=True)
        sys.stdin.readline()
        if role == "producer":
            produce(adapter, client, notes, name, options)
        else:
            consume(adapter, notes, name, options)
        adapter.close()


if __name__ == "__main__":
    main()
