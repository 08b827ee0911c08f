"""What all connections of a process to one address share: the engine, leases, verdicts, what is known of the topology.

Kombu opens connections freely: for consuming, for events, several for publishing. Here they are names for one engine with a
few connections to PostgreSQL. It outlives each of them as long as another is open or some delivery is unsettled.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.engine import Engine
from pgqrs_core.errors import PgqrsError, Unavailable
from pgqrs_core.forks import Lock, begin_anew_in_children
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Delivery, Queue, QueueOptions
from pgqrs_core.operations.schema import prepare
from pgqrs_core.operations.traffic import incoming
from pgqrs_core.outages import OUTAGES
from pgqrs_core.settling import Settler, Verdict
from pgqrs_core.supervision import start_timer
from pgqrs_kombu import mail, topology
from pgqrs_kombu.closing import Closing
from pgqrs_kombu.directory import Directory
from pgqrs_kombu.forwarding import Forwarder
from pgqrs_kombu.plugin import ADAPTER, COMPONENT
from pgqrs_kombu.publishing import Publisher
from pgqrs_kombu.remembered import Remembered
from pgqrs_kombu.sql import MIGRATIONS
from pgqrs_kombu.upkeep import HOLD, Upkeep

if TYPE_CHECKING:
    from pgqrs_core.config import Config
    from pgqrs_core.marks import Marks
    from pgqrs_kombu.options import Options
    from pgqrs_kombu.qos import QoS

__all__ = ["Broker", "broker_for"]

_log = get_logger("pgqrs.kombu")

#: Seconds for which what was shared outlives the last connection: one that was lost, or one of a program that opens a
#: connection for each message, as Celery does with ``broker_pool_limit=0``.
_LINGER: Final = 5.0
#: Seconds for which such a program's next connection takes it that the server is still there.
_FRESH: Final = 1.0


class Broker:
    """One address as seen by one process."""

    def __init__(self, config: Config, options: Options) -> None:
        self.key = (config, options)
        self.options = options
        self.engine = Engine(config)
        self.keeper = LeaseKeeper(self.engine)
        self.settler = Settler(self.engine, self.keeper, ADAPTER)
        self.directory = Directory(self.engine, self._is_watching)
        self.remembered = Remembered(self)
        self.forwarder = Forwarder(self)
        self.publisher = Publisher(
            self.engine,
            self.directory,
            restore=self.remembered.restore,
            stored=self.forwarder.stored,
            hold_eta=options.hold_eta,
            most_bytes=self.most_bytes,
        )
        self.upkeep = Upkeep(self)
        self.closing = Closing()
        #: This process, where the database asks who uses a queue; below zero where no lock tells that it lives.
        self.consumer = secrets.randbits(62)
        #: Transports that listen; while there is one, changes of bindings ring.
        self.listeners = 0
        #: How many messages of ephemeral queues went back to their places, which consumers may have passed.
        self.mail_returned = 0
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ready = False
        #: Whether the same was closed only just now: then it is opened and closed all the time.
        self._opened_again = time.monotonic() - _closed_at.get(self.key, -_LINGER) < _LINGER
        self._lingers = False
        self._left_at = self._asked_at = -_LINGER
        self.closed = False
        #: Whether it is a parent process's. What it holds is the parent's, so nothing of it is used any more.
        self.inherited = False
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: make room for one of its own."""
        self.closed = self.inherited = True
        _brokers.pop(self.key, None)

    @property
    def channel(self) -> str:
        """The channel of notifications."""
        return self.engine.doorbell.channel

    @property
    def queue_options(self) -> QueueOptions:
        """How durable queues are made that are declared here."""
        options = self.options
        return QueueOptions(
            lease_seconds=options.lease,
            max_attempts=options.max_attempts,
            max_body_bytes=options.max_body_bytes,
            archive=False,
            backoff_base=0.0,
        )

    def most_bytes(self, queue: Queue) -> int:
        """Return how large a body of a queue may be once it is expanded: as one that was not compressed."""
        return max(queue.options.max_body_bytes, self.options.max_body_bytes)

    def connect(self, user: Any) -> None:
        """Let ``user`` be one who needs this broker.

        Raises:
            Unavailable: the server cannot be reached.
            SchemaError: the tables are missing, and are not to be created.
        """
        if self._ready and not self.engine.installation.is_awaited:
            # One round trip shows that the server is there.
            if not self._opened_again or time.monotonic() - self._asked_at > _FRESH:
                self.engine.run(topology.migrated)
                self._asked_at = time.monotonic()
        else:
            engine = self.engine
            engine.run(
                prepare,
                engine.installation,
                engine.plugins,
                create=self.options.create_schema,
                component=COMPONENT,
                migrations=MIGRATIONS,
            )
            self._be_seen()
            self._ready = True
        self._users.add(user)

    def leave(self, user: Any) -> None:
        """``user`` is done; the last one to leave closes what nothing depends on any more."""
        self._users.discard(user)
        if not self._opened_again:
            self.close_if_idle()
            return
        self._left_at = time.monotonic()
        if not self._lingers and not self._users:
            self._lingers = True
            start_timer(_LINGER, self._end_lingering, name="pgqrs-kombu-close")

    def _end_lingering(self) -> None:
        left = self._left_at + _LINGER - time.monotonic()
        if left > 0 and not self.closed:
            # It was used meanwhile.
            start_timer(left, self._end_lingering, name="pgqrs-kombu-close")
            return
        self._lingers = False
        self.close_if_idle()

    def leave_later(self, user: Any) -> None:
        """``user`` lost its connection, and may be back in a moment; nothing here may wait for the server now."""
        self._users.discard(user)
        start_timer(_LINGER, self.close_if_idle, name="pgqrs-kombu-close")

    def close_if_idle(self) -> None:
        """Close everything unless somebody uses it, or some delivery waits to be settled."""
        if not self._users and not self.upkeep.is_needed and not self.inherited:
            with _lock:
                if self._users:
                    return
                self.closed = True
                _brokers.pop(self.key, None)
                if len(_closed_at) > _MOST_CLOSED:
                    _closed_at.clear()
                _closed_at[self.key] = time.monotonic()
            self.close()

    def hang_up(self) -> None:
        """The process ends, and with it all connections, closed or not: do what any broker does then."""
        self.upkeep.release_all()
        for user in list(self._users):
            # One that cannot be closed leaves its deliveries to the end of their leases.
            with contextlib.suppress(PgqrsError):
                user.close_connection(user)

    def close(self) -> None:
        """Write what is left to write, and close all connections. Beside a server that is silent it takes a few seconds."""
        self.closing.run(self._close)

    def _close(self) -> None:
        self.upkeep.close()
        self.forwarder.close()
        self.settler.close()
        self.keeper.close()
        self.engine.close()

    def claim(self, queue: Queue, marks: Marks, limit: int) -> list[Delivery]:
        """Take up to ``limit`` messages of a durable queue, for the time of a lease."""
        return self.engine.run(
            incoming,
            queue,
            marks,
            limit=limit,
            lease=self.options.lease,
            patience=0.0,
            plugins=self.engine.plugins,
            adapter=ADAPTER,
        )

    def give(self, verdict: Verdict) -> None:
        """Settle a delivery, soon. Verdicts on mail take effect at once: it is gone unless it is put back."""
        if self.inherited:
            # A forked child holds messages of its parent; what becomes of them is the parent's to say.
            return
        if verdict.queue.id > 0:
            self.settler.give(verdict)
            if verdict.kind in ("reject", "requeue") and self.forwarder.has_rules(verdict.queue.name):
                self.forwarder.hurry(verdict.queue.name)
        elif verdict.kind in ("release", "requeue"):
            try:
                self.engine.run(mail.put_back, [(-verdict.queue.id, verdict.delivery)], self.channel)
                self.mail_returned += 1
            except PgqrsError as error:
                _log.warning("a message of queue %r could not be put back: %s", verdict.queue.name, error)

    def bury(self, queue: Queue, delivery: Delivery, claimed_at: float, error: PgqrsError) -> None:
        """Dead-letter a message that no consumer can be given. There are no dead letters of ephemeral queues."""
        if queue.id <= 0:
            _log.error("a message of the ephemeral queue %r is discarded: %s", queue.name, error)
            return
        reason = {"type": type(error).__name__, "message": str(error)}
        self.give(Verdict("reject", queue, delivery, claimed_at, error=reason))

    def flush(self) -> None:
        """Write verdicts now; those that cannot be written are kept."""
        if not self.inherited:
            try:
                self.settler.flush()
            except Unavailable as error:
                text = "%d messages could not be settled yet: %s"
                OUTAGES.warn(self.engine.connections.target, error, _log, text, self.settler.pending)

    def watch_over(self, qos: QoS) -> None:
        """Give back, as soon as they are dropped, the deliveries of a channel that was lost."""
        self.upkeep.watch_over(qos)

    def use_mailbox(self, number: int) -> bool:
        """Keep an ephemeral queue from expiring; False if it has gone already."""
        found = self.engine.run(topology.renew, self.consumer, [number], HOLD, self.engine.schema)
        if number not in found:
            return False
        self.upkeep.hold(number)
        return True

    def count_consumers(self, number: int) -> int:
        """Return how many living processes consume from an ephemeral queue; this one by what it does now."""
        others = self.engine.run(topology.consumer_count, number, but=self.consumer)
        return others + self.upkeep.holds(number)

    def drop_mailbox(self, number: int) -> None:
        """An ephemeral queue is no longer used by one of those here that did."""
        if self.upkeep.drop(number):
            self.engine.run(topology.leave, self.consumer, [number])

    def _be_seen(self) -> None:
        """Let others see by a lock that this process lives; where it cannot listen, by its number that there is none."""
        link = self.engine.connections.get(relaxed=None)
        self.engine.connections.put(link)
        if link.pooled or not self.engine.config.queue.enable_listen_notify:
            self.consumer = -abs(self.consumer)
        else:
            self.engine.wakeups.lifelines.add(self.consumer)

    def _is_watching(self) -> bool:
        if not self.listeners or self.inherited:
            return False
        watch = self.engine.wakeups.watch
        return watch.listening and not watch.is_stale()


_lock = Lock()
_brokers: Final[dict[Any, Broker]] = {}
#: When the brokers were closed that were used last.
_closed_at: Final[dict[Any, float]] = {}
_MOST_CLOSED: Final = 100


def broker_for(config: Config, options: Options) -> Broker:
    """Return this process's broker for an address and options."""
    key = (config, options)
    with _lock:
        found = _brokers.get(key)
        if found is None:
            found = _brokers[key] = Broker(config, options)
        return found


def _at_exit() -> None:
    for broker in list(_brokers.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            broker.hang_up()
            broker.close()


atexit.register(_at_exit)
