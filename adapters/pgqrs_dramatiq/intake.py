"""How messages come in: one thread claims for all consumers of the process.

There is a query only for a reason: a queue rang or has come due, the last claim was full, or there is room again for what
was left. Queues that were found empty are watched by the wake-up connection of the process, all by one statement a second.

A claim takes as much as there is room for. Where messages are handled quickly it takes a little more, as many as will be
handled within 40 ms at the present pace, so that thousands of short tasks a second need tens of claims, and a worker with
long ones hoards nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Literal

from pgqrs_core.errors import PgqrsError, QueueNotFound, ServerError, TimedOut, Unavailable
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.claim import is_last
from pgqrs_core.operations.traffic import incoming
from pgqrs_core.subscriptions import Subscription
from pgqrs_core.supervision import join, start_thread
from pgqrs_dramatiq.database import persist
from pgqrs_dramatiq.plugin import ADAPTER
from pgqrs_dramatiq.source import STALE, Source

if TYPE_CHECKING:
    from pgqrs_core.engine import Engine
    from pgqrs_core.leases import LeaseKeeper
    from pgqrs_core.messages import Delivery, Lease, Queue
    from pgqrs_core.settling import Settler

__all__ = ["Intake"]

_log = get_logger("pgqrs.dramatiq")

#: Messages taken by one statement.
MOST: Final = 200
#: Seconds for which a queue is left alone whose claim failed.
ASIDE: Final = 2.0
#: The same for one whose leases could not be renewed.
PAUSE: Final = 0.5
#: Seconds between two looks at what no event tells.
CHECK: Final = 1.0


class Intake:
    """Claims for all consumers of this process, by a thread of its own that starts with the first.

    Args:
        engine: where to claim.
        keeper: who renews the leases.
        settler: who settles what was claimed in vain.
        on_round: called about once a second, by the thread; it must not block.
    """

    def __init__(
        self, engine: Engine, keeper: LeaseKeeper, settler: Settler, on_round: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = engine
        self.keeper = keeper
        self.settler = settler
        self._on_round = on_round
        self._sources: list[Source] = []
        self._lock = threading.Lock()
        self._mailbox: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._closing = False
        #: A message on its last attempt, beside which nothing is claimed, and whose it is.
        self._last: tuple[Source, Lease] | None = None

    def add(
        self, queue: Queue, prefetch: int, lease: float, *, on_unknown: Literal["retry", "bury"] = "retry"
    ) -> Source:
        """Begin to claim from a queue, for ``lease`` seconds each time."""
        source = Source(self, queue, prefetch, lease)
        source.on_unknown = on_unknown
        with self._lock:
            self._sources.append(source)
            if self._thread is None:
                self._subscription = Subscription(self._engine.wakeups, self.kick)
                self._thread = start_thread(self._run, name="pgqrs-dramatiq-intake")
        self.kick()
        return source

    def end(self, source: Source) -> None:
        """Claim nothing more for a consumer, and give back what it has not seen. What it has is still to be settled."""
        source.ended = True
        with self._lock:
            if source in self._sources:
                self._sources.remove(source)
        source.give_back()

    def forget(self, name: str) -> None:
        """Drop what was claimed from a queue and not delivered: it was flushed."""
        with self._lock:
            sources = list(self._sources)
        for source in sources:
            if source.queue.name == name:
                while source._popleft() is not None:
                    pass

    def kick(self) -> None:
        """There may be something to do. From any thread, under any lock."""
        # What has come and was not read yet is read after this.
        if self._mailbox.empty():
            self._mailbox.put(None)

    def close(self) -> None:
        """End all consumers, and the thread."""
        self._closing = True
        self.kick()
        join(self._thread)
        for source in list(self._sources):
            self.end(source)
        if self._subscription is not None:
            self._subscription.close()

    def _run(self) -> None:
        while not self._closing:
            try:
                pause = self._round()
            except Exception:
                _log.exception("the thread that claims messages met an unexpected error, and goes on")
                pause = CHECK
            if pause:
                with contextlib.suppress(Empty):
                    self._mailbox.get(timeout=pause)
            self._on_round()

    def _round(self) -> float:
        """Claim what there is and there is room for; return for how many seconds to rest, kicks apart."""
        assert self._subscription is not None
        with self._lock:
            sources = list(self._sources)
        numbers = {queue.id for queue in self._subscription.rise()}
        now = time.monotonic()
        for source in sources:
            if source.queue.id in numbers or (source.again_at and source.again_at <= now):
                source.look, source.again_at = True, 0.0
            source.let_go(now)
            if source.is_stale(now):
                # Others may have time for what was claimed ahead of a room that has not come.
                source.ahead = 0
                source.give_back()
            if source.look and self.keeper.is_failing(source.queue):
                source.look, source.again_at = False, now + PAUSE
            elif self._may_claim(source):
                self._claim(source)
        with self._lock:
            # Whoever was served first is served last.
            self._sources = self._sources[1:] + self._sources[:1]
        self._subscription.rest([source.queue for source in sources if not (source.look or source.again_at)])
        if any(self._may_claim(source) for source in sources):
            return 0.0
        return STALE if any(source.claimed for source in sources) else CHECK

    def _may_claim(self, source: Source) -> bool:
        """Tell whether to look; not while a message that may kill this process could take others with it."""
        if self._last is not None and not self._last[0].holds(self._last[1]):
            self._last = None
        return source.look and source.wants and self._last is None

    def _claim(self, source: Source) -> None:
        source.measure()
        limit = min(max(source.room + source.ahead, 1), MOST)
        try:
            found = persist(lambda: self._ask(source, limit))
        except PgqrsError as error:
            self._failed(source, error)
            return
        last = is_last(source.queue, found)
        source.look = len(found) >= limit or last
        if last:
            self._last = source, found[0].lease
        if found:
            # The keeper first: a consumer may settle at once.
            leases = [delivery.lease for delivery in found]
            self.keeper.hold(source.queue, leases, source.lease)
            source.fill(found)
        if source.ended:
            source.give_back()

    def _ask(self, source: Source, limit: int) -> list[Delivery]:
        # Dramatiq buries what has used up its attempts itself: its middleware wants to know.
        return self._engine.run(
            incoming,
            source.queue,
            source.marks,
            limit=limit,
            lease=source.lease,
            patience=0.0,
            plugins=self._engine.plugins,
            adapter=ADAPTER,
            bury=False,
            on_unknown=source.on_unknown,
        )

    def _failed(self, source: Source, error: PgqrsError) -> None:
        """Tell Dramatiq, which starts the consumer anew; what passes by itself is tried again here."""
        source.look = False
        passes = isinstance(error, TimedOut) or (isinstance(error, ServerError) and error.retryable)
        if isinstance(error, (Unavailable, ServerError, QueueNotFound)) and not passes:
            self._engine.forget(source.queue.name)
            source.fail(error)
            return
        source.again_at = time.monotonic() + ASIDE
        _log.warning("cannot take from queue %r, which is tried again: %s", source.queue.name, error)
