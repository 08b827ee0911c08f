"""The transport: one Kombu connection, in an event loop or without."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg
from kombu.transport import virtual

from pgqrs_core.drivers.patience import hurry
from pgqrs_core.errors import PgqrsError
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.logs import get_logger
from pgqrs_core.pipe import Pipe
from pgqrs_kombu import channel as channels
from pgqrs_kombu import topology
from pgqrs_kombu.address import place, place_alternates, split_when_taken
from pgqrs_kombu.broker import Broker, broker_for
from pgqrs_kombu.errors import CHANNEL_ERRORS, CONNECTION_ERRORS, RECOVERABLE_CONNECTION_ERRORS, translated, translating
from pgqrs_kombu.event_guard import guard_receivers
from pgqrs_kombu.groups import publish_groups_together
from pgqrs_kombu.guard import guard_worker
from pgqrs_kombu.intake import STALE, Intake
from pgqrs_kombu.options import Options
from pgqrs_kombu.requests import follow_requests
from pgqrs_kombu.shown import mask_settings
from pgqrs_kombu.tasks import surround_tasks
from pgqrs_kombu.url import config_of, masked
from pgqrs_kombu.workers import mend_workers

if TYPE_CHECKING:
    from kombu import Connection

__all__ = ["Transport"]

_log = get_logger("pgqrs.kombu")

#: Seconds between two looks at what no event tells.
_CHECK: Final = 1.0
#: Seconds for which Celery's time limits hold.
_HURRY: Final = 15.0
#: Celery's parts that work with brokers of certain names only, and what lets ours in.
_GATES: Final = (
    ("celery.worker.consumer.mingle", "Mingle", None),
    ("celery.worker.consumer.gossip", "Gossip", "gossip"),
)


class Transport(virtual.Transport):  # type: ignore[misc]
    """Kombu's connection to a pgqrs database. Cheap: what costs is shared by the process, see `Broker`."""

    Channel = channels.Channel

    can_parse_url = True
    default_port = 5432
    driver_type = "pgqrs"
    driver_name = "psycopg"
    connection_errors = CONNECTION_ERRORS
    channel_errors = CHANNEL_ERRORS
    recoverable_connection_errors = RECOVERABLE_CONNECTION_ERRORS
    recoverable_channel_errors = ()
    supports_batch_publish = True

    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    def __init__(self, client: Connection, **_: Any) -> None:
        self.client = client
        self.channels: list[channels.Channel] = []
        self.owner = secrets.randbits(62)
        #: Exclusive queues that go with this connection.
        self.exclusive: set[str] = set()
        self._broker: Broker | None = None
        self._intake: Intake | None = None
        self._connected = False
        self._news = False
        self._event = threading.Event()
        self._loop: Any = None
        self._pipe: Pipe | None = None
        self._timers: list[Any] = []
        self._scheduled = False
        self._looking = False
        self._stale_at: float | None = None
        begin_anew_in_children(self)
        place(client)
        place_alternates(client)
        _open_gates(client)
        surround_tasks()
        follow_requests()
        guard_worker()
        guard_receivers()
        mend_workers()
        mask_settings()

    # Connecting

    @property
    def broker(self) -> Broker:
        """What this process shares for this address."""
        broker = self._broker
        if broker is None or broker.closed:
            options = Options.from_mapping(self.client.transport_options)
            broker = self._broker = broker_for(config_of(self.client, options), options)
        return broker

    @property
    def intake(self) -> Intake:
        """The consumers of this connection."""
        if self._intake is None:
            self._intake = Intake(self.broker, self._alert)
        return self._intake

    def establish_connection(self) -> Transport:
        """See that the server is there and holds what is needed."""
        # Outside of the translation: a wrong address or option is no error of a channel.
        broker = self.broker
        with translated():
            broker.connect(self)
        self._connected = True
        return self

    @property
    def _transport(self) -> Transport:
        """Where Celery looks for a socket that it gives a time limit, before a cold stop and after a lost connection."""
        return self

    @property
    def sock(self) -> Transport:
        """See `settimeout`."""
        return self

    def settimeout(self, seconds: float) -> None:
        """Await answers of the server for at most ``seconds``, for the time that it takes to end or to connect anew."""
        hurry(seconds, window=_HURRY)

    def verify_connection(self, connection: Transport) -> bool:
        """Tell whether this connection is open, without asking the server."""
        return connection._connected

    @property
    def connected(self) -> bool:
        """Whether this connection is open."""
        return self.verify_connection(self)

    def create_channel(self, connection: Transport) -> channels.Channel:
        """Open a channel. Costs nothing."""
        channel = channels.Channel(connection)
        self.channels.append(channel)
        return channel

    def close_channel(self, channel: channels.Channel) -> None:
        """Forget a channel that has closed."""
        if channel in self.channels:
            self.channels.remove(channel)
        channel.connection = None

    @translating
    def close_connection(self, connection: Transport) -> None:
        """Give back what is unsettled, delete the exclusive queues, and close what nobody else needs."""
        self._connected = False
        try:
            for channel in list(self.channels):
                channel.close()
            if self.exclusive:
                broker = self.broker
                names, self.exclusive = list(self.exclusive), set()
                forget = partial(broker.engine.run, topology.forget, names, broker.channel, owner=self.owner)
                broker.closing.run(forget)
        finally:
            self._leave_loop()
            if self._intake is not None:
                self._intake.close()
                self._intake = None
            if self._broker is not None:
                self._broker.leave(self)

    def _collect(self, connection: Transport) -> None:
        """Take a connection down that is lost, or that belongs to another process: without a word to the server."""
        self._connected = False
        self._leave_loop()
        for channel in list(self.channels):
            channel.abandon()
        self.channels.clear()
        if self._intake is not None:
            self._intake.abandon()
            self._intake = None
        if self._broker is not None:
            self._broker.leave_later(self)

    def begin_anew(self) -> None:
        """In a forked child: be closed, and forget what is the parent's."""
        self._connected = self._news = self._scheduled = self._looking = False
        self.channels = []
        self.exclusive = set()
        self._timers = []
        self._event = threading.Event()
        self._intake = self._broker = self._loop = self._pipe = None

    # Without an event loop

    @translating
    def drain_events(self, connection: Transport, timeout: float | None = None, **_: Any) -> None:
        """Deliver one message, waiting for it if need be.

        Raises:
            socket.timeout: there was none.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        intake = self.intake
        while True:
            if intake.hand_on():
                return
            self._event.clear()
            more = self._fetch()
            if intake.hand_on():
                return
            left = _CHECK if deadline is None else deadline - time.monotonic()
            if left <= 0:
                if intake.poll(last=True):
                    self._news = True
                    continue
                raise TimeoutError
            if more:
                continue
            pause = STALE if intake.has_ready else _CHECK
            look = intake.next_look
            self._event.wait(min(left, pause if look is None else min(pause, look)))
            if intake.check() or intake.poll():
                self._news = True

    # With an event loop

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        """Be served by Kombu's event loop from now on."""
        if self._loop is loop:
            return
        self._leave_loop()
        self._loop = loop
        self._pipe = Pipe()
        loop.add_reader(self._pipe.reader, self._on_news)
        self._timers = [loop.call_repeatedly(_CHECK, self._on_check)]
        self.kick()

    def unregister_from_event_loop(self, connection: Transport, loop: Any) -> None:
        """Be served no more."""
        self._leave_loop()

    def on_readable(self, connection: Transport, loop: Any) -> None:
        """Deliver what there is."""
        self._work()

    def kick(self) -> None:
        """There may be something to do: room for more, or another consumer. From any thread."""
        self._event.set()
        pipe = self._pipe
        # Not by the loop's call_soon: what is called from a callback waits there for the next event.
        if pipe is not None and not self._scheduled and self._intake:
            self._scheduled = True
            pipe.write()

    def recall(self) -> None:
        """What was claimed ahead must wait for a message that went back. From any thread."""
        if self._intake is not None:
            self._intake.recalled = True

    def _alert(self) -> None:
        """There is news. From any thread, and under a lock."""
        self._news = True
        self._event.set()
        pipe = self._pipe
        if pipe is not None:
            pipe.write()

    def _on_news(self) -> None:
        if self._pipe is not None:
            self._pipe.drain()
            self._work()

    def _on_check(self) -> None:
        if self._intake is not None and self._intake.check():
            self._news = True
            self._work()

    def _on_look(self) -> None:
        self._looking = False
        self._on_check()

    def _on_stale(self) -> None:
        self._stale_at = None
        self._on_check()

    def _work(self) -> None:
        self._scheduled = False
        intake = self._intake
        if intake is None or self._loop is None:
            return
        intake.hand_on_all()
        more = self._fetch()
        intake.hand_on_all()
        look = intake.next_look
        if more:
            self.kick()
        elif look is not None and look < _CHECK and not self._looking:
            self._looking = True
            self._loop.call_later(look, self._on_look)
        elif intake.has_ready and self._stale_at is None:
            self._stale_at = time.monotonic() + STALE
            self._timers.append(self._loop.call_later(1.1 * STALE, self._on_stale))
            del self._timers[1:-1]

    def _fetch(self) -> bool:
        intake = self.intake
        if not intake or not (self._news or intake.is_hungry):
            return False
        self._news = False
        return intake.fetch()

    def _leave_loop(self) -> None:
        loop, self._loop = self._loop, None
        pipe, self._pipe = self._pipe, None
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        self._looking = False
        if pipe is not None:
            if loop is not None:
                loop.remove_reader(pipe.reader)
            pipe.close()

    # What Kombu asks

    def qos_semantics_matches_spec(self, connection: Transport) -> bool:
        """The prefetch count is per channel and can be changed at any time, so Celery may lower it after a reconnect."""
        return False

    def driver_version(self) -> str:
        """Return psycopg's version."""
        return psycopg.__version__

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the address, without the password unless that is asked for."""
        try:
            return masked(self.client, include_password=include_password, mask=mask)
        except PgqrsError:
            return "pgqrs://"

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """What the address says, for those who ask for its parts."""
        return {"hostname": "localhost", "port": self.default_port}


# Kombu asks for this module before it takes the first address.
split_when_taken()


def _open_gates(client: Connection) -> None:
    """Let parts of Celery work that ask for a broker's name; only those that are loaded ask."""
    options = client.transport_options or {}
    for module, name, option in _GATES:
        gate = getattr(sys.modules.get(module), name, None)
        if gate is not None and (option is None or options.get(option)):
            gate.compatible_transports.add(Transport.driver_type)
    publish_groups_together()
