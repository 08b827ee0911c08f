"""How messages come in: when to look, where, and how much to take.

There is a query only for a reason: a queue rang or has come due, the last claim was full, or there is room again for what
was left. Queues that were found empty are watched by the wake-up connection of the process, all by one statement a second.
Mail (control messages, replies, events) goes before tasks.

A claim takes as much as the channel has room for. Where messages are handled quickly it takes a little more, as many as
will be handled within 40 ms at the present pace, and a queue that runs dry is left for 10 ms to gather some: so thousands
of short tasks a second need tens of claims, and a worker with long ones hoards nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.errors import DecodeError, PgqrsError, QueueNotFound, ServerError, TimedOut, Unavailable
from pgqrs_core.logs import get_logger
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Delivery, Lease, Queue, QueueOptions
from pgqrs_core.operations.claim import is_last
from pgqrs_core.pace import GATHER, Pace
from pgqrs_core.polling import PollSchedule
from pgqrs_core.settling import Verdict
from pgqrs_core.subscriptions import Subscription
from pgqrs_kombu import mail
from pgqrs_kombu.envelope import headers_of
from pgqrs_kombu.errors import QueueGone
from pgqrs_kombu.source import Source
from pgqrs_kombu.sql import queries

if TYPE_CHECKING:
    from pgqrs_kombu.broker import Broker

__all__ = ["STALE", "Intake"]

_log = get_logger("pgqrs.kombu")

#: Messages taken by one statement.
MOST: Final = 100
#: Seconds after which what was claimed ahead is given back.
STALE: Final = 0.25
#: Seconds for which a queue is left alone whose claim failed.
ASIDE: Final = 5.0
#: The same for one whose leases could not be renewed.
PAUSE: Final = 0.5

#: The bindings, as something that can ring.
_TOPOLOGY: Final = Queue(0, "", "", QueueOptions())


class Intake:
    """All consumers of one Kombu connection. Used by one thread at a time, but for `alert`."""

    def __init__(self, broker: Broker, alert: Callable[[], None]) -> None:
        self._broker = broker
        self._subscription = Subscription(broker.engine.wakeups, alert)
        self._alert = alert
        self._sources: list[Source] = []
        #: Claimed, and waiting for room.
        self._ready: deque[tuple[Source, Delivery, float]] = deque()
        self._filled_at = 0.0
        self._pace = Pace()
        self._listening = False
        #: A message on its last attempt, beside which no task is claimed.
        self._last: Lease | None = None
        #: Whether what was claimed ahead is to be given back: something older went back.
        self.recalled = False
        #: When ephemeral queues are looked at although nothing was heard of them.
        self._polls = PollSchedule()

    def add(self, source: Source) -> None:
        """Begin to consume."""
        self._sources.append(source)
        if source.mailbox is not None:
            self._polls.begin()
        if not self._listening:
            self._listening = True
            self._broker.engine.wakeups.probes[0] = queries["topology_probe"]
            self._broker.listeners += 1
            self._broker.upkeep.on_vanished.add(self._alert)
            self._broker.upkeep.start()
            self._broker.forwarder.start()
        self._alert()

    def remove(self, source: Source) -> None:
        """End a consumer; what was claimed for it is given back.

        Its queue is not watched any more, also if nothing is taken from this connection again: it may be deleted now.
        """
        self._sources.remove(source)
        self._subscription.leave_out(source.queue)
        self._give_back(lambda item: item[0] is source)

    def close(self) -> None:
        """End all consumers, and be told nothing more."""
        for source in list(self._sources):
            self.remove(source)
        self._subscription.close()
        if self._listening:
            self._listening = False
            self._broker.listeners -= 1
            self._broker.upkeep.on_vanished.discard(self._alert)

    def abandon(self) -> None:
        """The connection is lost: forget the consumers, and ask the server nothing."""
        self._ready = deque(item for item in self._ready if item[0].mailbox is None)
        for source in self._sources:
            if source.mailbox is not None:
                self._broker.upkeep.drop(source.mailbox)
        self.close()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def hand_on(self) -> bool:
        """Deliver the first message that there is room for; tell whether there was one."""
        self._recall()
        ready = self._ready
        # Asked after every message that ends, with a hundred of them ready: so it is the few consumers that are asked.
        if not any(source.has_room for source in self._sources):
            return False
        for _ in range(len(ready)):
            source, delivery, claimed_at = item = ready.popleft()
            if source.has_room:
                self._pace.handed += 1
                source.deliver(delivery, claimed_at)
                return True
            ready.append(item)
        return False

    def hand_on_all(self) -> None:
        """Deliver everything that there is room for."""
        # Even with nothing to deliver: what is claimed after this is not to be given back for what happened before.
        self._recall()
        while self._ready and self.hand_on():
            pass

    def _recall(self) -> None:
        if self.recalled:
            self.recalled = False
            self._give_back(lambda item: not item[0].no_ack and item[0].mailbox is None)
            self._broker.flush()

    def fetch(self) -> bool:
        """Take what is there and there is room for; tell whether to come again at once.

        Raises:
            Unavailable: the server is away.
            QueueGone: an ephemeral queue has vanished; everything must be declared anew.
        """
        self._hear()
        more = self._fetch_mail()
        for channel in dict.fromkeys(source.channel for source in self._sources if source.mailbox is None):
            more = self._fetch_tasks(channel) or more
        self._subscription.rest([_TOPOLOGY, *(source.queue for source in self._sources if self._is_dry(source))])
        return more

    def check(self) -> bool:
        """What no event tells: a wake-up connection that hangs, queues to try again, claims that went stale."""
        now = time.monotonic()
        due = False
        for source in self._sources:
            if source.again_at and source.again_at <= now:
                source.again_at = 0.0
                due = source.look = True
        if self._ready and now - self._filled_at > STALE:
            self._give_back(lambda item: not item[0].no_ack)
        # Beside a last attempt nothing is fetched, and nothing else says that it has gone back.
        return due or self._subscription.is_over() or (self.is_hungry and not self._is_alone())

    def poll(self, *, last: bool = False) -> bool:
        """Look at ephemeral queues once more if it is time to: the wake-up connection may hang. Tell whether to fetch.

        Only for who waits for replies alone: beside a durable queue, whose polls show that the connection is there, nothing
        more is asked.

        Args:
            last: the caller is about to give up. Then one look is due since the wait began, or something came.
        """
        if any(source.mailbox is None for source in self._sources):
            return False
        if not (self._polls.is_due or (last and self._polls.is_untried)):
            return False
        idle = [source for source in self._sources if source.mailbox is not None and not source.look]
        for source in idle:
            source.look = True
        self._polls.polled(0.0)
        return bool(idle)

    @property
    def next_look(self) -> float | None:
        """In how many seconds `check` should be called for a queue that is looked at without a bell, if there is one."""
        times = [source.again_at for source in self._sources if source.again_at]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    @property
    def is_hungry(self) -> bool:
        """Whether there may be something to take somewhere that there is room for."""
        return any(source.look and source.has_room for source in self._sources)

    @property
    def has_ready(self) -> bool:
        """Whether something is claimed and waits for room."""
        return bool(self._ready)

    def _is_dry(self, source: Source) -> bool:
        return not source.look and not source.again_at

    def _hear(self) -> None:
        numbers = {queue.id for queue in self._subscription.rise()}
        if 0 in numbers:
            self._broker.directory.changed()
            self._broker.forwarder.changed()
        for source in self._sources:
            if source.queue.id in numbers:
                source.look = True
        vanished = self._broker.upkeep.vanished
        if vanished:
            for source in self._sources:
                if source.mailbox in vanished:
                    raise QueueGone(f"queue {source.name!r} has expired, or was deleted, while it was consumed")

    def _fetch_mail(self) -> bool:
        wanted = {
            source.mailbox: source
            for source in self._sources
            if source.mailbox is not None and source.look and source.has_room
        }
        if not wanted:
            return False
        returned = self._broker.mail_returned
        sought = {number: source.sought(returned) for number, source in wanted.items()}
        try:
            found = self._broker.engine.run(mail.receive, sought, MOST, self._broker.engine.plugins)
        except PgqrsError as error:
            self._failed(wanted.values(), error)
            return False
        now = time.time()
        # Before any task that waits.
        self._ready.extendleft((wanted[number], delivery, now) for number, delivery in reversed(found))
        for source in wanted.values():
            source.look = len(found) >= MOST
        if found:
            self._polls.begin()
        return len(found) >= MOST

    def _fetch_tasks(self, channel: Any) -> bool:
        waiting = sum(1 for item in self._ready if item[0].channel is channel)
        credit = channel.qos.can_consume_max_estimate()
        room = MOST if credit is None else credit - waiting
        sources = [source for source in self._sources if source.channel is channel and source.mailbox is None]
        more = False
        if room > 0 and any(source.look for source in sources):
            self._pace.measure()
            room = min(room + self._pace.ahead, MOST)
            # Whoever was served last is asked last.
            for source in sources:
                if source.look and self._broker.keeper.is_failing(source.queue):
                    source.look, source.again_at = False, time.monotonic() + PAUSE
                elif source.look and room > 0 and not self._is_alone():
                    count = self._claim(source, room)
                    room -= count
                    more = more or source.look
                    if count:
                        self._sources.remove(source)
                        self._sources.append(source)
        return more and not self._is_alone() and (credit is None or credit > waiting + 1)

    def _is_alone(self) -> bool:
        """Tell whether a message that may kill this process could take others with it."""
        last = self._last
        if last is not None and not (
            any(delivery.lease == last for _, delivery, _ in self._ready)
            or any(source.channel.qos.holds(last) for source in self._sources)
        ):
            self._last = None
        return self._last is not None

    def _claim(self, source: Source, limit: int) -> int:
        try:
            if source.is_gone:
                self._find_anew(source)
            if source.is_gone:
                # A claim would be an error in the server's log each time.
                source.look, source.again_at = False, time.monotonic() + ASIDE
                return 0
            found = self._ask(source, limit)
        except PgqrsError as error:
            self._failed([source], error)
            return 0
        last = is_last(source.queue, found)
        source.look = len(found) >= limit or last
        if last:
            self._last = found[0].lease
        if not found:
            return 0
        now = time.time()
        if source.no_ack:
            found = [delivery for delivery in found if self._ack(source, delivery, now)]
        else:
            self._broker.keeper.hold(source.queue, [delivery.lease for delivery in found], self._broker.options.lease)
        self._ready.extend((source, delivery, now) for delivery in found)
        self._filled_at = time.monotonic()
        if not source.look and self._pace.gathers(len(found)):
            source.again_at = self._filled_at + GATHER
        return len(found)

    def _ack(self, source: Source, delivery: Delivery, now: float) -> bool:
        """Settle a message before it is delivered, as its consumer wants; False for one that is buried instead."""
        try:
            headers_of(delivery.raw_headers)
        except DecodeError as error:
            self._broker.bury(source.queue, delivery, now, error)
            return False
        self._broker.give(Verdict("ack", source.queue, delivery, now))
        return True

    def _ask(self, source: Source, limit: int) -> list[Delivery]:
        try:
            return self._broker.claim(source.queue, source.marks, limit)
        except TimedOut:
            raise
        except Unavailable as error:
            if not error.in_flight:
                raise
            # One connection broke; another may not.
            return self._broker.claim(source.queue, source.marks, limit)

    def _failed(self, sources: Iterable[Source], error: PgqrsError) -> None:
        """Leave queues alone for a while; only a server that is away ends the connection."""
        if isinstance(error, Unavailable) and not isinstance(error, TimedOut):
            raise error
        for source in sources:
            source.look = False
            source.again_at = time.monotonic() + ASIDE
            _log.warning("cannot take from queue %r, which is tried again: %s", source.name, error)
            if isinstance(error, (ServerError, QueueNotFound)) and not error.retryable and source.mailbox is None:
                self._find_anew(source)

    def _find_anew(self, source: Source) -> None:
        """The queue was deleted, perhaps, and made again: then it has another number and other tables."""
        engine = self._broker.engine
        engine.forget(source.name)
        try:
            try:
                found = engine.queue(source.name)
            except QueueNotFound:
                if not self._broker.remembered.restore(source.name):
                    source.is_gone = True
                    return
                found = engine.queue(source.name)
        except PgqrsError:
            return
        source.is_gone = False
        source.queue, source.marks = found, Marks()

    def _give_back(self, chosen: Callable[[tuple[Source, Delivery, float]], bool]) -> None:
        kept: deque[tuple[Source, Delivery, float]] = deque()
        for item in self._ready:
            if not chosen(item):
                kept.append(item)
                continue
            source, delivery, claimed_at = item
            self._broker.give(Verdict("release", source.queue, delivery, claimed_at))
            source.look = True
        self._ready = kept
