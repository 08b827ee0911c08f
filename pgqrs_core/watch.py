"""Which queues this process waits for, and what to do about it next. Pure: no connection, no thread, no sleep.

A consumer that runs dry joins the watch. The first to do so has its queue **marked** in the database, so that producers
know that a NOTIFY is worth sending, and looks **once more**; then it sleeps. What a producer commits before it can
see the mark, that look finds, or one of the probes that follow in quick succession.

**Probes** are the correctness path. One statement asks, for all queues that somebody waits for, whether anything is
claimable and when the next delayed message is due: soon after a mark or a notification, then at doubling intervals
up to `POLL`. They cover notifications that were never sent (a producer in a foreign transaction, a pooler in
between, a full notify queue), leases that expire, and they show that the connection is alive.

Numbers of zero and below are an adapter's own: whoever makes news of them notifies in the transaction that makes it,
always, so they are not marked and need no second looks.

A mark stays while the consumer comes back within `LINGER` seconds, so a queue that is nearly idle is not marked and
unmarked at each message.

**In a storm** of notifications the mark goes: what costs a producer a statement for each message, and wakes everybody for
a handful, is worth less than a look every few milliseconds, which takes what has come meanwhile all at once. It is back as
soon as some looks in a row have found nothing. Network drivers do the same with interrupts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from pgqrs_core.messages import Queue

__all__ = ["Agenda", "Party", "Watch"]

#: Seconds between two probes of an idle queue: a little over one, so that an idle process runs less than a statement a
#: second whatever else it has to say.
POLL: Final = 1.1
#: Seconds from a mark or a notification to the first probe; longer than the quiet time of a producer's doorbell.
QUICK: Final = 0.006
#: Seconds without a waiting consumer after which a queue is unmarked.
LINGER: Final = 1.0
#: For how many seconds a mark is good, and after how many it is renewed.
MARK_SECONDS: Final = 120.0
RENEW: Final = 60.0
#: The part of the time that probes may take.
PROBE_SHARE: Final = 0.02
#: So many notifications of one queue within `SPELL` seconds are a storm: more than a lone producer can cause, which keeps
#: quiet for `pgqrs_core.doorbell.QUIET` after each. Its messages are better picked up at once.
STORM: Final = 15
SPELL: Final = 0.05
#: So many looks in a row that find nothing end it.
CALM: Final = 16
#: When the turn of an idle queue has come, those whose turn comes within this part of `POLL` go with it, so that idle
#: queues end up in one statement a second. More than 1.1, by which turns are spread, would undo `PROBE_SHARE`.
_TOGETHER: Final = 1.1


class Agenda(NamedTuple):
    """What the connection should do now, and for how many seconds it may sleep afterwards."""

    mark: list[int]
    unmark: list[int]
    probe: list[Queue]
    sleep: float


class _Interest:
    __slots__ = (
        "due_at",
        "fresh",
        "generation",
        "left_at",
        "marked_at",
        "probe_at",
        "queue",
        "rings",
        "spell_began",
        "step",
        "storm",
        "waiting",
    )

    def __init__(self, queue: Queue, now: float) -> None:
        self.queue = queue
        self.waiting = 0
        self.generation = 0
        self.marked_at: float | None = None
        self.probe_at = now
        self.step = QUICK
        self.due_at = float("inf")
        self.left_at = now
        #: Something happened while nobody waited: whoever comes next should look before he sleeps.
        self.fresh = False
        #: The notifications since the spell began.
        self.rings = 0
        self.spell_began = now
        #: How many looks that find nothing are still to come before the storm is over; 0 outside one.
        self.storm = 0


class Watch:
    """The state of one process's wake-ups. The caller serialises access."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        #: Whether notifications can arrive. Without them nothing is marked and probes alone wake consumers.
        self.listening = True
        #: How many notifications, probes and breaks of the connection there have been.
        self.rings = self.probes = self.losses = 0
        self._interests: dict[int, _Interest] = {}
        self._healthy_at = clock()
        #: Until when the connection means to sleep.
        self._sleeps_until = float("inf")

    def join(self, queue: Queue) -> int | None:
        """Begin to wait. Return the generation to outwait, or None to look once more as soon as the queue is marked."""
        now = self.clock()
        interest = self._interests.get(queue.id)
        unknown = interest is None
        if interest is None:
            interest = self._interests[queue.id] = _Interest(queue, now)
        interest.waiting += 1
        if interest.storm and interest.waiting == 1:
            # Not at once, for whoever has just looked would find little.
            interest.probe_at = now + QUICK
        fresh, interest.fresh = interest.fresh, False
        if fresh or not self.is_marked(queue) or (unknown and queue.id <= 0):
            return None
        return interest.generation

    def leave(self, queue: Queue) -> None:
        """End a wait."""
        interest = self._interests[queue.id]
        interest.waiting -= 1
        interest.left_at = self.clock()

    def is_marked(self, queue: Queue) -> bool:
        """Tell whether producers know that somebody waits, as far as they need to."""
        if queue.id <= 0 or not self.listening:
            return True
        interest = self._interests[queue.id]
        return interest.marked_at is not None or interest.storm > 0

    def has_news(self, queue: Queue, generation: int) -> bool:
        """Tell whether something happened to a queue since ``generation``."""
        return self._interests[queue.id].generation != generation

    def is_early(self, queue: Queue) -> bool:
        """Tell whether a queue is to be looked at before the connection, asleep while nobody waited for it, wakes up."""
        interest = self._interests[queue.id]
        return min(interest.probe_at, interest.due_at) < self._sleeps_until

    def is_stale(self) -> bool:
        """Tell whether the connection has been silent for too long to rely on."""
        return self.clock() - self._healthy_at > 3 * POLL

    def agenda(self) -> Agenda:
        """Return what is to be done now."""
        now = self.clock()
        mark: list[int] = []
        unmark: list[int] = []
        next_at = now + POLL
        soon = now + _TOGETHER * POLL
        probing = any(item.waiting and item.step >= POLL and item.probe_at <= now for item in self._interests.values())
        probe: list[Queue] = []
        for number, item in list(self._interests.items()):
            if item.storm and item.marked_at is not None:
                # Also while nobody waits: a consumer that is busy is rung for, too.
                unmark.append(number)
                item.marked_at = None
            if not item.waiting:
                if now - item.left_at < LINGER:
                    next_at = min(next_at, item.left_at + LINGER)
                    continue
                if item.marked_at is not None:
                    unmark.append(number)
                del self._interests[number]
                continue
            stale = item.marked_at is None or now - item.marked_at >= RENEW
            if stale and not item.storm and self.listening and number > 0:
                mark.append(number)
            if item.due_at <= now:
                self._wake(item)
                item.due_at = float("inf")
                self._look_soon(item, now)
            idle = item.step >= POLL
            if item.probe_at <= now or (probing and idle and item.probe_at <= soon):
                probe.append(item.queue)
            else:
                next_at = min(next_at, item.probe_at)
            next_at = min(next_at, item.due_at)
        self._sleeps_until = next_at
        return Agenda(mark, unmark, probe, max(next_at - now, 0.0))

    def marked(self, ids: Iterable[int]) -> None:
        """Note that queues were marked, or their marks renewed."""
        now = self._healthy_at = self.clock()
        for number in ids:
            item = self._interests.get(number)
            if item is not None:
                if item.marked_at is None:
                    self._look_soon(item, now)
                item.marked_at = now

    def probed(self, queues: Sequence[Queue], rows: Iterable[tuple[Any, ...]], cost: float) -> None:
        """Note what a probe of these queues found, and that it took ``cost`` seconds."""
        now = self._healthy_at = self.clock()
        self.probes += 1
        found = {row[0]: row for row in rows}
        for queue in queues:
            item = self._interests.get(queue.id)
            if item is None:
                continue
            _, claimable, next_due = found.get(queue.id, (queue.id, True, None))
            if item.storm:
                item.storm = CALM if claimable else item.storm - 1
            least = cost / PROBE_SHARE
            item.probe_at = now + max(item.step * random.uniform(1.0, 1.1), least)
            if not item.storm:
                # A pause that was as long as that counts: on a busy machine, too, queues soon take turns together.
                item.step = min(max(item.step, least) * 2, POLL)
            item.due_at = now + next_due if next_due is not None else float("inf")
            if claimable:
                self._wake(item)

    def rang(self, queue_id: int) -> None:
        """Note a notification. It is a hint, and may name any number."""
        item = self._interests.get(queue_id)
        if item is not None:
            self.rings += 1
            self._wake(item)
            if queue_id > 0:
                now = self.clock()
                self._look_soon(item, now)
                self._count(item, now)

    def lost(self) -> None:
        """Note that the connection broke: marks and notifications may be gone, so everybody looks for himself."""
        self.losses += 1
        for item in self._interests.values():
            item.marked_at = None
            item.storm = 0
            self._wake(item)

    @property
    def watched(self) -> int:
        """How many queues somebody waits for."""
        return sum(1 for item in list(self._interests.values()) if item.waiting)

    def marks(self) -> list[int]:
        """Return the queues that are marked."""
        return [number for number, item in self._interests.items() if item.marked_at is not None]

    @staticmethod
    def _wake(item: _Interest) -> None:
        item.generation += 1
        item.fresh = not item.waiting

    @staticmethod
    def _count(item: _Interest, now: float) -> None:
        if now - item.spell_began > SPELL:
            item.spell_began, item.rings = now, 0
        item.rings += 1
        if item.rings >= STORM:
            item.storm = CALM

    @staticmethod
    def _look_soon(item: _Interest, now: float) -> None:
        item.step = QUICK
        item.probe_at = min(item.probe_at, now + QUICK) if item.probe_at > now else now + QUICK


class Party:
    """One waiter on one or several queues, from joining to leaving.

    If any of its queues is not marked yet, or has had news, it looks once more as soon as all are marked; else it outwaits
    the present generation of each.
    """

    def __init__(self, watch: Watch, queues: Sequence[Queue]) -> None:
        self._watch = watch
        self._joined = [(queue, watch.join(queue)) for queue in queues]
        self.unmarked = any(generation is None for _, generation in self._joined)
        #: Whether the connection must be told that somebody waits.
        self.urgent = self.unmarked or any(watch.is_early(queue) for queue in queues)

    def is_over(self) -> bool:
        """Tell whether it is time to look."""
        if self.unmarked:
            return all(self._watch.is_marked(queue) for queue, _ in self._joined)
        return any(self._has_news(queue, generation) for queue, generation in self._joined)

    def where(self) -> list[Queue]:
        """Return the queues worth a look."""
        return [queue for queue, generation in self._joined if self._has_news(queue, generation)]

    def leave(self) -> None:
        """End the wait."""
        for queue, _ in self._joined:
            self._watch.leave(queue)

    def _has_news(self, queue: Queue, generation: int | None) -> bool:
        return generation is None or self._watch.has_news(queue, generation)
