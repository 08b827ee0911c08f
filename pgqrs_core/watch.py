"""Which queues this process waits for, and what to do about it next. Pure: no connection, no thread, no sleep.

A consumer that finds nothing joins the watch. The first to do so has its queue **marked** in the database, so that
producers notify one of the processes that sleep, and looks **once more**; then it sleeps. What a producer commits before it
can see the mark, that look finds, or one of the polls that follow.

**Polls** are the correctness path. One statement asks, for several queues, whether anything is claimable and when the
next delayed message is due: `QUICK` seconds after a mark or a notification, a few times more at intervals that grow by
`GROWTH`, and then every `POLL` seconds in the two processes whose numbers come first among those that sleep on the
queue (`place` 0 and 1). The others only renew their marks; the answer tells them how many processes sleep and whether they
are among the first two now. Polls cover notifications that were never sent (a producer in a foreign transaction, a pooler
in between, a full notify queue, a sleeper that was killed) and leases that expire.

**A message that this process has no time for** is somebody else's: what a notification tells or a poll finds while nobody
here waits is passed on to another process that sleeps.

Numbers of zero and below are an adapter's own: whoever makes news of them notifies in the transaction that makes it,
always, so they are not marked and need no quick polls.

A mark stays while the consumer comes back within `LINGER` seconds, so a queue that is nearly idle is not marked and
unmarked at each message, and a consumer that has taken all there was need not claim again before it sleeps.

**In a storm** of notifications the mark goes: what costs a producer a statement for each message, and wakes a process for
a handful, is worth less than a poll every few milliseconds, which takes what has come meanwhile all at once. It is back as
soon as some polls in a row have found nothing. Network drivers do the same with interrupts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from pgqrs_core.interest import CALM, NEVER, QUICK, Interest
from pgqrs_core.messages import Queue

__all__ = ["Agenda", "Watch"]

#: Seconds between two polls of an idle queue: a little over one, so that an idle process runs less than a statement a
#: second whatever else it has to say.
POLL: Final = 1.1
#: By how much the intervals between polls grow from then on, until they reach `POLL`.
GROWTH: Final = 8
#: Processes that poll an idle queue. With one alone, its death would leave messages that nobody was notified of.
POLLERS: Final = 2
#: Seconds between two polls of an adapter's own number: its notifications cannot fail to be sent.
SELDOM: Final = 30.0
#: Seconds without a waiting consumer after which a queue is unmarked.
LINGER: Final = 1.0
#: For how many seconds a mark is good.
MARK_SECONDS: Final = 120.0
#: Seconds after which a mark is renewed at the latest. Sooner where few processes sleep, so that some process
#: notices about once in `POLL` who has died.
RENEW: Final = 45.0
#: The part of the time that polls may take.
POLL_SHARE: Final = 0.02
#: A message that has been there for less than this many seconds is left to the process that was notified of it.
YOUNG: Final = 0.02
#: Processes that are notified of messages that nobody takes.
PASS_ON: Final = 4
#: When the turn of an idle queue has come, those whose turn comes within this part of `POLL` go with it, so that idle
#: queues end up in one statement a second. More than 1.1, by which turns are spread, would undo `POLL_SHARE`.
_TOGETHER: Final = 1.1


class Agenda(NamedTuple):
    """What the connection should do now, and for how many seconds it may sleep afterwards."""

    mark: list[int]
    #: Queues to unmark, and whether others must be told because this process polled them.
    unmark: list[int]
    polled: bool
    probe: list[Queue]
    #: Queues of which so many other processes are to be notified.
    pass_on: dict[int, int]
    sleep: float

    @property
    def works(self) -> bool:
        """Whether there is anything to do before the connection sleeps."""
        return bool(self.mark or self.unmark or self.probe or self.pass_on)


class Watch:
    """The state of one process's wake-ups. The caller serialises access."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        #: Whether notifications can arrive. Without them nothing is marked and polls alone wake consumers.
        self.listening = True
        #: How many notifications, polls and breaks of the connection there have been.
        self.rings = self.probes = self.losses = 0
        self._interests: dict[int, Interest] = {}
        self._healthy_at = clock()
        #: Until when the connection means to sleep.
        self._sleeps_until = NEVER

    def join(self, queue: Queue) -> int | None:
        """Begin to wait. Return the generation to outwait, or None to look once more as soon as the queue is marked."""
        now = self.clock()
        interest = self._interests.get(queue.id)
        unknown = interest is None
        if interest is None:
            interest = self._interests[queue.id] = Interest(queue, now)
        interest.waiting += 1
        if interest.waiting == 1:
            interest.passed = False
            if interest.storm:
                # Not at once, for whoever has just looked would find little.
                interest.probe_at = now + QUICK
        fresh, interest.fresh = interest.fresh, False
        if fresh or not self.is_marked(queue) or (unknown and queue.id <= 0):
            return None
        return interest.generation

    def leave(self, queue: Queue) -> int:
        """End a wait; return the generation."""
        interest = self._interests[queue.id]
        interest.waiting -= 1
        interest.left_at = self.clock()
        return interest.generation

    def is_marked(self, queue: Queue) -> bool:
        """Tell whether producers know that somebody waits, as far as they need to."""
        if queue.id <= 0 or not self.listening:
            return True
        interest = self._interests[queue.id]
        return interest.marked_at is not None or interest.storm > 0

    def is_quiet(self, queue: Queue, generation: int | None) -> bool:
        """Tell whether nothing happened to a queue since ``generation``, for which it was marked all the time."""
        interest = self._interests.get(queue.id)
        return (
            interest is not None
            and interest.marked_at is not None
            and not interest.fresh
            and interest.generation == generation
        )

    def has_news(self, queue: Queue, generation: int) -> bool:
        """Tell whether something happened to a queue since ``generation``."""
        return self._interests[queue.id].generation != generation

    def is_early(self, queue: Queue) -> bool:
        """Tell whether a queue is to be polled before the connection, asleep while nobody waited for it, wakes up."""
        interest = self._interests[queue.id]
        return min(interest.probe_at, interest.due_at) < self._sleeps_until

    def is_stale(self) -> bool:
        """Tell whether the connection has been silent for too long to rely on."""
        return self.clock() - self._healthy_at > 3 * POLL

    def agenda(self) -> Agenda:
        """Return what is to be done now."""
        now = self.clock()
        unmark, polled = self._unmark(now)
        items = list(self._interests.items())
        polls = any(self._is_poller(item) for _, item in items)
        mark, next_at = self._marking(now, [item for _, item in items], polls=polls)
        soon = now + _TOGETHER * POLL
        probing = any(item.waiting and item.step >= POLL and item.probe_at <= now for _, item in items)
        probe: list[Queue] = []
        pass_on: dict[int, int] = {}
        for number, item in items:
            if item.surplus:
                pass_on[number], item.surplus = item.surplus, 0
            if not item.waiting:
                next_at = min(next_at, item.left_at + LINGER)
                if not item.others or item.marked_at is None:
                    continue
            if item.due_at <= now:
                item.wake()
                item.due_at = NEVER
                item.look_soon(now)
            if item.probe_at <= now or (probing and item.step >= POLL and item.probe_at <= soon):
                probe.append(item.queue)
            else:
                next_at = min(next_at, item.probe_at)
            next_at = min(next_at, item.due_at)
        self._sleeps_until = next_at
        agenda = Agenda(mark, unmark, polled, probe, pass_on, max(next_at - now, 0.0))
        # Without work the connection is not to be heard of before.
        self._healthy_at = min(self._healthy_at, now) if agenda.works else next_at
        return agenda

    def _unmark(self, now: float) -> tuple[list[int], bool]:
        """Forget queues that nobody waits for; return those whose marks go, and whether this process polled any of them."""
        unmark: list[int] = []
        polled = False
        for number, item in list(self._interests.items()):
            left = not item.waiting and now - item.left_at >= LINGER
            # In a storm also while nobody waits: a consumer that is busy would be notified, too.
            if item.marked_at is not None and (left or item.storm):
                unmark.append(number)
                polled = polled or (item.others > 0 and item.place < POLLERS)
                item.marked_at = None
            if left:
                del self._interests[number]
        return unmark, polled

    def _marking(self, now: float, items: Iterable[Interest], *, polls: bool) -> tuple[list[int], float]:
        """Return the queues to mark, or whose marks to renew, and when to ask again."""
        due: list[tuple[float, Interest]] = []
        if self.listening:
            for item in items:
                if item.queue.id > 0 and item.waiting and not item.storm:
                    # One that polls every second has no statement to spare for this. The others together renew twice
                    # as often as it polls, and so notice soon that both pollers went, also if no notification says so.
                    every = RENEW if polls else min(max(POLL * (item.others + 1) / 2, POLL), RENEW)
                    due.append((item.renew_at(every), item))
        first = min((at for at, _ in due), default=now + RENEW)
        if first > now:
            return [], first
        return [item.queue.id for at, item in due if at <= now + RENEW / 2], now + POLL

    def marked(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Note that marks were made or renewed, and for each queue how many others sleep, and how many come first."""
        now = self._healthy_at = self.clock()
        for number, others, place, *_ in rows:
            item = self._interests.get(number)
            if item is None:
                continue
            if item.marked_at is None:
                item.look_soon(now)
            item.marked_at = now
            item.others, item.place = others, place
            item.renew = False
            if item.probe_at == NEVER and self._is_poller(item):
                item.probe_at = now

    def probed(self, queues: Sequence[Queue], rows: Iterable[tuple[Any, ...]], cost: float) -> None:
        """Note what a poll of these queues found, and that it took ``cost`` seconds."""
        now = self._healthy_at = self.clock()
        self.probes += 1
        found = {row[0]: row for row in rows}
        for queue in queues:
            item = self._interests.get(queue.id)
            if item is None:
                continue
            _, claimable, next_due, first, age = found.get(queue.id, (queue.id, True, None, None, None))
            if item.storm:
                item.storm = CALM if claimable else item.storm - 1
            least = cost / POLL_SHARE
            known, item.first = item.first, first
            if claimable and item.others and not item.storm and age is not None and age < YOUNG:
                # Some process was notified of it just now. Look whether that helped.
                item.probe_at = now + max(QUICK, least)
                continue
            self._schedule(item, now, least)
            self._note_due(item, now, next_due)
            if not claimable:
                continue
            if item.waiting or not item.others:
                item.wake()
            elif known == first:
                # Nobody takes it, here or elsewhere.
                item.wake()
                item.surplus = PASS_ON
            elif known is None:
                item.probe_at = now + max(QUICK, least)

    def _schedule(self, item: Interest, now: float, least: float) -> None:
        """Decide when a queue that was polled just now is polled next; a poll that is dear comes seldom."""
        if not item.storm:
            # A pause that was as long as that counts: on a busy machine, too, queues soon take turns together.
            item.step = min(max(item.step, least) * GROWTH, POLL)
        if item.step < POLL:
            pause = item.step
        elif item.queue.id <= 0 and self.listening:
            pause = SELDOM
        else:
            pause = POLL if self._is_poller(item) else NEVER
        item.probe_at = now + max(pause * random.uniform(1.0, 1.1), least)

    def _note_due(self, item: Interest, now: float, next_due: float | None) -> None:
        """Note when the next delayed message is due. The first poller serves it, the second one sees whether it did."""
        item.due_at = NEVER
        if next_due is None:
            return
        if item.queue.id <= 0 or item.marked_at is None or item.place == 0:
            item.due_at = now + next_due
        elif item.place < POLLERS:
            item.probe_at = min(item.probe_at, now + next_due + 2 * YOUNG)

    def rang(self, queue_id: int) -> None:
        """Note a notification. It is a hint, and may name any number."""
        item = self._interests.get(queue_id)
        if item is None:
            return
        self.rings += 1
        if queue_id > 0 and not item.waiting and item.others and not item.passed:
            # Once in a while of work: where all are busy it would go round.
            item.passed = True
            item.surplus = max(item.surplus, 1)
        else:
            item.wake()
        if queue_id > 0:
            now = self.clock()
            if item.waiting or item.step >= POLL:
                item.look_soon(now)
            item.count_notification(now)

    def passed_on(self, queue_id: int, count: int) -> None:
        """Note that ``count`` other processes were notified of a queue."""
        item = self._interests.get(queue_id)
        if item is not None and not count:
            # No other process sleeps, as far as is known until the mark is renewed.
            item.others = 0
            item.wake()

    def renew(self, queue_id: int) -> None:
        """Note that others came or went, so that it may be this process's turn to poll. A hint, too."""
        item = self._interests.get(queue_id)
        if item is not None:
            item.renew = True

    def lost(self) -> None:
        """Note that the connection broke: marks and notifications may be gone, so each consumer looks for itself."""
        self.losses += 1
        now = self.clock()
        self._healthy_at = min(self._healthy_at, now)
        for item in self._interests.values():
            item.marked_at = None
            item.storm = 0
            item.wake()
            # Once more when the connection is back: what came between this and its LISTEN was told to no one.
            item.look_soon(now)

    @property
    def watched(self) -> int:
        """How many queues somebody waits for."""
        return sum(1 for item in list(self._interests.values()) if item.waiting)

    def marks(self) -> list[int]:
        """Return the queues that are marked."""
        return [number for number, item in self._interests.items() if item.marked_at is not None]

    def _is_poller(self, item: Interest) -> bool:
        """Tell whether this process polls a queue: with others that do, or because they cannot know of it."""
        if item.queue.id <= 0:
            return not self.listening
        return item.marked_at is None or item.place < POLLERS
