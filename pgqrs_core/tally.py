"""What plugins that count are made of: events are noted as they come, and added up together.

Code that runs once between two waits for the server finds its way out of the processor's caches, and takes three to five
times what it takes in a loop. So in the caller's time a hook leaves a note, and no more; the notes are added up
by the hundred, or when somebody asks for the figures.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from pgqrs_core.events import Enqueued
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.logs import get_logger
from pgqrs_core.supervision import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pgqrs_core.events import Claimed, Consumed, OutcomeKind

__all__ = ["Sums", "Tally"]

_log = get_logger("pgqrs.plugins")

#: Messages whose events are kept at most, or little more: in one thread of many a message may be overlooked.
_MOST: Final = 1_000


class Sums(msgspec.Struct):
    """What happened to messages of one queue by one adapter. Times are in seconds, and never negative, whatever clocks say.

    Attributes:
        enqueued: Messages written and committed.
        enqueue_seconds: How long each enqueue took.
        claimed: How many messages each claim found.
        claim_seconds: How long each claim took; waiting is not counted.
        longest: The longest time in the queue among the messages of each claim.
        waited: Times in the queue, one for each message.
        pickups: The same for first attempts of messages that were due at once.
        settled: Messages by what became of them.
        handled: Times in the handler.
    """

    enqueued: int = 0
    enqueue_seconds: list[float] = []
    claimed: list[int] = []
    claim_seconds: list[float] = []
    longest: list[float] = []
    waited: list[float] = []
    pickups: list[float] = []
    settled: dict[OutcomeKind, int] = {}
    handled: list[float] = []


#: What is kept of an event: what adds it up, the queue, the adapter, what happened and for how long. Never a message.
_Note: TypeAlias = "tuple[Callable[[Sums, Any, Any], None], str, str, Any, Any]"


class Tally:
    """A plugin that counts; derive from it, and say in `write` where the sums go. Any thread may use it.

    A forked child begins anew: what its parent had noted is the parent's to write.

    Args:
        within: for how many seconds notes may wait, where nobody calls `flush`: then a thread writes them, and they are
            written when the process ends. None is for figures that are fetched.
    """

    def __init__(self, *, within: float | None = None) -> None:
        self._within = within
        #: With how many messages there is something to arrange.
        self._enough = _MOST if within is None else 1
        self._begin()
        begin_anew_in_children(self)
        if within is not None:
            atexit.register(self.flush)

    def write(self, queue: str, adapter: str, sums: Sums) -> None:
        """Take what has happened since the last time; called by one thread at a time.

        Args:
            queue: the queue's name.
            adapter: which front end.
            sums: yours to keep.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Write all that has been noted. Call it before the figures are read, and at the end."""
        with self._writing:
            self._write()

    # The hooks say three times what a method could say once: each frame costs a microsecond where they run.

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        """Note what was enqueued."""
        self._notes.append((_add_enqueued, event.queue, event.adapter, event.count, event.seconds))
        self._weight += event.count
        if self._weight >= self._enough:
            self._arrange()

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        """Note what was claimed, and how long it had waited."""
        facts = [(one.enqueued_at, one.attempt == 1 and one.lane >= 0) for one in event.deliveries]
        self._notes.append((_add_claimed, event.queue, event.adapter, (event.claimed_at, facts), event.seconds))
        self._weight += len(facts)
        if self._weight >= self._enough:
            self._arrange()

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        """Note what became of messages, and how long their handlers took."""
        self._notes.append((_add_settled, event.queue, event.adapter, event.kinds, event.seconds_in_handler))
        self._weight += len(event.kinds)
        if self._weight >= self._enough:
            self._arrange()

    def _arrange(self) -> None:
        """Have the notes written: by the thread, or here and now if they are many."""
        if self._within is not None:
            self._ring(self._within)
        # If another thread is at it already, it takes them along, or the next one does.
        if self._weight >= _MOST and self._writing.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._writing.release()

    def _write(self) -> None:
        self._weight = 0
        found: dict[tuple[str, str], Sums] = {}
        for _ in range(len(self._notes)):
            add, queue, adapter, what, times = self._notes.popleft()
            sums = found.get((queue, adapter))
            if sums is None:
                sums = found[queue, adapter] = Sums()
            add(sums, what, times)
        for (queue, adapter), sums in found.items():
            self.write(queue, adapter, sums)

    def begin_anew(self) -> None:
        """In a forked child: forget what the parent noted, and the locks that its threads held."""
        self._begin()

    def _begin(self) -> None:
        self._notes: deque[_Note] = deque()
        self._weight = 0
        self._writing = threading.Lock()
        self._starting = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def _ring(self, within: float) -> None:
        # A bell that has rung and was not heard yet is heard after this.
        if self._bell.empty():
            self._bell.put(None)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = start_thread(self._run, within, name="pgqrs-tally")
                    _at_childs_end(self.flush)

    def _run(self, within: float) -> None:
        while True:
            self._bell.get()
            time.sleep(within)
            try:
                self.flush()
            except Exception:
                _log.exception("figures of %s could not be written and are lost", type(self).__name__)


def _add_enqueued(sums: Sums, count: int, seconds: float) -> None:
    sums.enqueued += count
    sums.enqueue_seconds.append(seconds)


def _add_claimed(sums: Sums, found: tuple[float, list[tuple[datetime, bool]]], seconds: float) -> None:
    now, facts = found
    waited = _ages([since for since, _ in facts], now)
    sums.claimed.append(len(waited))
    sums.claim_seconds.append(seconds)
    sums.longest.append(max(waited, default=0.0))
    sums.waited += waited
    sums.pickups += [wait for wait, (_, is_first) in zip(waited, facts) if is_first]


def _ages(since: list[datetime], now: float) -> list[float]:
    # Messages that were enqueued together are mostly claimed together, and have one time.
    if since and since.count(since[0]) == len(since):
        return [max(now - since[0].timestamp(), 0.0)] * len(since)
    return [max(now - one.timestamp(), 0.0) for one in since]


def _add_settled(sums: Sums, kinds: Sequence[OutcomeKind], seconds: Sequence[float | None]) -> None:
    settled = sums.settled
    for kind in set(kinds):
        settled[kind] = settled.get(kind, 0) + kinds.count(kind)
    sums.handled += [max(one, 0.0) for one in seconds if one is not None]


def _at_childs_end(flush: Callable[[], None]) -> None:
    # Children of multiprocessing, and Celery's, leave by os._exit; what atexit holds does not run there.
    for name in ("multiprocessing.util", "billiard.util"):
        if name in sys.modules:
            sys.modules[name].Finalize(None, flush, exitpriority=0)
