"""What one consumer takes from its queue: claimed ahead of it, delivered, settled."""

from __future__ import annotations

import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Literal

from pgqrs_core.marks import Marks
from pgqrs_core.pace import Pace
from pgqrs_core.settling import Verdict

if TYPE_CHECKING:
    from pgqrs_core.errors import PgqrsError
    from pgqrs_core.leases import LeaseKeeper
    from pgqrs_core.messages import Delivery, Lease, Queue
    from pgqrs_core.settling import Settler
    from pgqrs_dramatiq.intake import Intake

__all__ = ["Source"]

#: Seconds after which what was claimed ahead is given back.
STALE: Final = 0.25


class Source:
    """What one consumer takes from its queue, and how much of it. Settling is safe from any thread."""

    def __init__(self, intake: Intake, queue: Queue, prefetch: int, lease: float) -> None:
        self._intake = intake
        self.settler: Settler = intake.settler
        self.keeper: LeaseKeeper = intake.keeper
        self.queue = queue
        self.prefetch = max(prefetch, 1)
        self.lease = lease
        self.marks = Marks()
        #: What becomes of messages that need a codec or key that is not loaded in this process.
        self.on_unknown: Literal["retry", "bury"] = "retry"
        #: Claimed and not delivered yet, with the time of the claim.
        self.claimed: deque[tuple[Delivery, float]] = deque()
        #: Delivered and not settled yet.
        self.unsettled: dict[Lease, None] = {}
        #: Delivered, and dropped by Dramatiq without a word; with the time from which on others have the message.
        self._abandoned: deque[tuple[Lease, float]] = deque()
        #: Whether there may be something to take, and when to try again where that failed.
        self.look = True
        self.again_at = 0.0
        self.filled_at = 0.0
        #: How many more than there is room for the next claim takes.
        self.ahead = 0
        #: What its consumer is to raise.
        self.error: PgqrsError | None = None
        #: Nothing is claimed any more; what was claimed is given back.
        self.ended = False
        self._pace = Pace()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._waiting = False

    @property
    def room(self) -> int:
        """How many more messages may be claimed without reaching ahead."""
        return self.prefetch - len(self.unsettled) - len(self.claimed)

    @property
    def wants(self) -> bool:
        """Whether to claim, if there is anything: before what was claimed ahead is used up."""
        return self.room + self.ahead // 2 > 0 and not self.ended

    def holds(self, lease: Lease) -> bool:
        """Tell whether a message was claimed and is not settled."""
        return lease in self.unsettled or any(delivery.lease == lease for delivery, _ in list(self.claimed))

    def is_stale(self, now: float) -> bool:
        """Tell whether it has held for a while what there is no room for."""
        return bool(self.claimed) and len(self.unsettled) >= self.prefetch and now - self.filled_at > STALE

    def take(self, deadline: float) -> tuple[Delivery, float] | None:
        """Return the next message as soon as there is one, and room for it; None at the deadline. For its consumer only."""
        while True:
            self._waiting = True
            if self.error is not None:
                return None
            if len(self.unsettled) < self.prefetch and (found := self._pop()) is not None:
                self._waiting = False
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                self._waiting = False
                return None
            try:
                self._bell.get(timeout=left)
            except Empty:
                continue

    def settled(self, lease: Lease) -> None:
        """A delivery is settled: there is room for another one."""
        self.unsettled.pop(lease, None)
        if self.claimed:
            self.ring()
        self._ask()

    def abandon(self, lease: Lease) -> None:
        """Nobody has a delivery any more. From any thread, under any lock, in the middle of a garbage collection."""
        self._abandoned.append((lease, time.monotonic() + self.lease))

    def let_go(self, now: float) -> None:
        """Let the leases of abandoned deliveries end; when they have, there is room for others."""
        if self._abandoned:
            self.keeper.drop([lease for lease, _ in list(self._abandoned)])
            while self._abandoned and self._abandoned[0][1] <= now:
                self.settled(self._abandoned.popleft()[0])

    def look_again(self) -> None:
        """Something was put into the queue here: there is no need to wait for the database to say so."""
        self.look = True
        self._intake.kick()

    def ring(self) -> None:
        """Let its consumer look."""
        if self._waiting:
            self._waiting = False
            self._bell.put(None)

    def measure(self) -> None:
        """Find out how far ahead to claim."""
        self._pace.measure()
        self.ahead = self._pace.ahead

    def fill(self, found: list[Delivery]) -> None:
        """Take what was claimed for it."""
        now = time.time()
        self.filled_at = time.monotonic()
        self.claimed.extend((delivery, now) for delivery in found)
        self.ring()

    def give_back(self) -> None:
        """Release what was claimed and not delivered."""
        while (found := self._popleft()) is not None:
            self.settler.give(Verdict("release", self.queue, *found))
            self.look = True

    def fail(self, error: PgqrsError) -> None:
        """Let its consumer raise ``error``, and claim nothing more for it."""
        self.error = error
        self.ended = True
        self.ring()

    def _pop(self) -> tuple[Delivery, float] | None:
        found = self._popleft()
        if found is not None:
            self.unsettled[found[0].lease] = None
            self._pace.handed += 1
            self._ask()
        return found

    def _popleft(self) -> tuple[Delivery, float] | None:
        try:
            return self.claimed.popleft()
        except IndexError:
            return None

    def _ask(self) -> None:
        if self.look and self.wants:
            self._intake.kick()
