"""Low-water marks: where a consumer's next claim starts reading, lane by lane.

PostgreSQL keeps the index entries of settled messages until a vacuum may remove them, and while an old
transaction is open, none may. A claim that read its lane from the start would walk over all of them. So each
consumer remembers, per ready lane, the lowest message id that can still be waiting, and starts there.

A mark is a hint. It lives in memory, and a claimable message below it is found by the next rescan from the start.

* A claim that took ids up to *m* shows that all lower ids were taken, held, or **not yet committed**. So *m* becomes
  the mark only when every transaction that may hold one of them has ended and a later claim has read up to *m*, which
  its snapshot and its batch show, or when `LAG` seconds have passed, so that one open transaction does not hold the
  mark back for ever. A transaction draws an id a moment before snapshots show it: so it is not those of the claim
  itself that must have ended, but those in the snapshot of the first claim that began `SETTLE` seconds after it.
* Most transactions that stay open never write to the queue. Where one has held a mark back for `HELD` seconds and
  `WORTH` messages, the locks tell who does (`wants_writers`, `learn`): whoever stores a message locks the table before
  he draws its id and until his transaction ends. See docs/adr/0016-who-writes-to-a-queue.md.
* A rescan begins every `RESCAN` seconds, or as seldom as keeps its cost under one hundredth of the time. A claim that
  found nothing is followed by a rescan at once where that is cheap: an idle queue is short.
* A rescan whose batch is full is not over: the next claims read on where it stopped, up to the marks. So nothing below
  a mark is overtaken for longer than the time between two rescans, however busy the queue is.
* Nothing else goes below a mark: retries, releases and replays pass through the delayed lanes, which have none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from pgqrs_core.arrays import numbers
from pgqrs_core.messages import CLAIM_LANES

__all__ = ["Marks", "Seen"]

#: Seconds after which a claimed id becomes the mark whatever transactions are still open.
LAG: Final = 2.0
#: Seconds that a transaction may take from drawing an id to showing up in a snapshot.
SETTLE: Final = 0.01
#: Seconds for which open transactions hold a mark back before it is asked which of them write to the queue.
HELD: Final = 0.02
#: By how many ids a mark is then behind, at least; that many dead entries cost a claim about as much as the question.
WORTH: Final = 1_000
#: Seconds between rescans from the start of every lane, at least.
RESCAN: Final = 1.0
#: The part of the time that rescans may take.
RESCAN_SHARE: Final = 0.01
#: The part of the time that questions who writes may take; each saves the claims after it more than that.
QUESTION_SHARE: Final = 0.05
#: A rescan below this many seconds may follow every claim that found nothing.
CHEAP: Final = 0.001
#: Claims that wait to become marks; more are merged, which only delays the mark.
_PENDING: Final = 64

_PLACES: Final = {lane: place for place, lane in enumerate(CLAIM_LANES)}
_READY: Final = tuple(lane for lane in CLAIM_LANES if lane >= 0)
#: The ends of bigint. A sequence draws ids from 1 on; a row that was written by hand may have any.
_LOWEST: Final = -(2**63)
_HIGHEST: Final = 2**63 - 1
_START: Final = numbers(_LOWEST if lane >= 0 else 0 for lane in CLAIM_LANES)


class Seen(NamedTuple):
    """What one claim learnt: the highest id it took per lane, and the transactions that were running."""

    highest: dict[int, int]
    oldest: int
    newest: int


class _Pending:
    __slots__ = ("at", "highest", "newest")

    def __init__(self, highest: dict[int, int], at: float) -> None:
        self.highest = highest
        self.at = at
        #: What must have ended; None until a snapshot shows all who may have drawn a lower id.
        self.newest: int | None = None


class _Reach(NamedTuple):
    """How far a claim read: all lanes before a place, and the lane there up to an id."""

    place: int
    top: int

    def covers(self, lane: int, message_id: int) -> bool:
        """Tell whether it read a lane up to an id."""
        place = _PLACES[lane]
        return place < self.place or (place == self.place and message_id <= self.top)


class Marks:
    """The low-water marks of one consumer on one queue. Not for use by two claims at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: How many claims to come should take one message each: see `claim`.
        self.cautious = 0
        #: Whether the last claim took all there was, and which news of the queue was known before it; None if none was.
        self.drained = False
        self.generation: int | None = None
        self._marks = [0] * len(CLAIM_LANES)
        self._text = ""
        self._pending: deque[_Pending] = deque()
        self._held_back = False
        self._asked_at = 0.0
        self._ask_at = 0.0
        #: Whoever could still write below what was taken before this was learnt has this number, or a higher one.
        self._oldest_writer = 0
        self._rescan_at = 0.0
        self._rescan_cost = 0.0
        self._dry = False
        self._began = 0.0
        self._rescanning = False
        #: From where the rescan has yet to read a lane up to its mark; without the lanes that it has read.
        self._unread: dict[int, int] = {}

    def start(self) -> str:
        """Begin a claim: return the lowest id to read per lane of `CLAIM_LANES`, as a PostgreSQL array."""
        self._began = self._clock()
        cheap = self._dry and self._rescan_cost < CHEAP
        self._rescanning = cheap or self._began >= self._rescan_at
        if self._rescanning:
            self._unread = dict.fromkeys(_READY, _LOWEST)
            self._text = _START
        return self._text

    def start_of(self, lane: int) -> int:
        """Begin a claim of one ready lane: return the lowest id to read."""
        self.start()
        return min(self._unread.get(lane, self.mark(lane)), self.mark(lane))

    def wants_writers(self) -> bool:
        """Tell whether to ask, before the next claim, which is the oldest transaction that writes to the queue."""
        if not self._held_back:
            return False
        self._asked_at = self._clock()
        return self._asked_at >= self._ask_at

    def learn(self, oldest_writer: int) -> None:
        """Note the lowest number among running transactions that have locked the queue to write, or the next one's."""
        now = self._clock()
        self._ask_at = now + max(HELD, (now - self._asked_at) / QUESTION_SHARE)
        self._oldest_writer = oldest_writer

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        """End a claim. ``seen`` is None when it took nothing; ``full`` when there may be more."""
        now = self._clock()
        if self._rescanning:
            self._rescan_cost = now - self._began
            self._rescan_at = now + max(RESCAN, self._rescan_cost / RESCAN_SHARE)
        self._dry = seen is None
        self.drained = not full
        self._held_back = False
        reach = _reach(seen, full=full)
        moved = False
        if seen is not None:
            moved = self._settle(seen, reach, now)
            ready = {lane: top for lane, top in seen.highest.items() if lane >= 0}
            if ready:
                if len(self._pending) >= _PENDING:
                    last = self._pending.pop()
                    ready = {**last.highest, **ready}
                self._pending.append(_Pending(ready, now))
        if self._unread:
            self._read_on(reach)
            moved = True
        if moved:
            starts = self._marks.copy()
            for lane, start in self._unread.items():
                starts[_PLACES[lane]] = min(start, self.mark(lane))
            self._text = numbers(starts)

    def mark(self, lane: int) -> int:
        """Return the lowest id that may still be waiting in a ready lane."""
        return self._marks[_PLACES[lane]]

    def _settle(self, seen: Seen, reach: _Reach, now: float) -> bool:
        """Turn claims that no running transaction can reach below any more into marks; tell whether any moved."""
        for item in reversed(self._pending):
            if item.newest is not None:
                break
            # A snapshot is no older than the beginning of its claim; the answer may have taken long.
            if self._began - item.at >= SETTLE:
                item.newest = seen.newest
        moved = False
        oldest = max(seen.oldest, self._oldest_writer)
        while self._pending:
            first = self._pending[0]
            over = first.newest is not None and oldest >= first.newest
            read = all(reach.covers(lane, top) for lane, top in first.highest.items())
            if not ((over and read) or now - first.at >= LAG):
                self._held_back = not over and now - first.at >= HELD and self._lead() >= WORTH
                break
            for lane, top in first.highest.items():
                place = _PLACES[lane]
                if top > self._marks[place]:
                    self._marks[place] = top
                    moved = True
            self._pending.popleft()
        return moved

    def _lead(self) -> int:
        """Return by how much the newest claim is ahead of the marks."""
        return max(top - self.mark(lane) for lane, top in self._pending[-1].highest.items())

    def _read_on(self, reach: _Reach) -> None:
        """Note how far the rescan has come."""
        for lane in list(self._unread):
            if reach.covers(lane, self.mark(lane)):
                del self._unread[lane]
            elif _PLACES[lane] == reach.place:
                self._unread[lane] = max(self._unread[lane], min(reach.top + 1, _HIGHEST))


def _reach(seen: Seen | None, *, full: bool) -> _Reach:
    if not full:
        return _Reach(len(CLAIM_LANES), 0)
    if seen is None:
        return _Reach(-1, 0)
    lane = max(seen.highest, key=_PLACES.__getitem__)
    return _Reach(_PLACES[lane], seen.highest[lane])


def highest_ids(places: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the highest id per lane of some (lane, id) pairs."""
    highest: dict[int, int] = {}
    for lane, message_id in places:
        if message_id > highest.get(lane, message_id - 1):
            highest[lane] = message_id
    return highest
