"""The bookkeeping of a pool: which connections are idle, and how many there are. Blocks nowhere, locks nothing.

Places are counted by the objects that hold them, so one whose holder was struck by an exception at an unlucky moment
(a time limit of Dramatiq or Celery, Ctrl-C) is free again as soon as nothing refers to it.
"""

from __future__ import annotations

import time
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

import psycopg

from pgqrs_core.drivers.session import Link
from pgqrs_core.errors import TimedOut
from pgqrs_core.figures import PoolUsage

__all__ = ["GRACE", "LONGEST_TURN", "Shelf", "Slot"]

#: Seconds after which a glance opens a connection although others are open. More than opening one takes on a busy machine.
GRACE: Final = 0.25
#: Seconds after which a caller that waits looks again, even if it was not woken: a place may have been freed in silence.
LONGEST_TURN: Final = 1.0
#: Seconds for which a place is reserved for a caller that waits for the first relaxed connection.
_RESERVED: Final = 2 * LONGEST_TURN

#: A connection is kept idle for at least as many times the time that it took to open it: the first of several hosts may not
#: answer, and to open one takes as long as the time-out of a connection then.
_WORTH: Final = 10
#: Seconds between two looks of a caller that waits for a connection which is being opened beyond its patience.
_BEYOND: Final = 0.1

C = TypeVar("C", bound="psycopg.BaseConnection[Any]")
K = TypeVar("K")


class Slot:
    """A place among the connections of a pool."""

    __slots__ = ("__weakref__", "opening_since", "relaxed")

    def __init__(self, *, relaxed: bool) -> None:
        self.relaxed = relaxed
        #: When the attempt to connect began, by the monotonic clock; None once it has succeeded.
        self.opening_since: float | None = time.monotonic()

    def opened(self) -> float:
        """The connection is there; return how many seconds it took to open it."""
        began, self.opening_since = self.opening_since, None
        return 0.0 if began is None else time.monotonic() - began


class Shelf(Generic[C, K]):
    """Connections keep to one kind of commit, so that claims and enqueues do not switch a setting back and forth.

    What to do when all of the wanted kind are busy depends on what a statement waits for:

    ==========  ===============================  ==============================================================
    wanted      statements                       when none is idle
    ==========  ===============================  ==============================================================
    relaxed     claim, extend, watch             wait: they are short, wait for no disk, and few fat claimers
                                                 are quicker than many lean ones
    durable     enqueue, ack, transactions       open one more up to the limit: each waits for the disk, and
                                                 PostgreSQL writes the commits of several at one go
    either      a glance at queues and schema    wait up to `GRACE` seconds, then as durable: so ten threads
                                                 that begin together do not open ten connections for it
    ==========  ===============================  ==============================================================

    The limit holds at every moment. Where it is used up by durable connections, the first relaxed one takes the place of
    one of them: at once if one is idle, else of the next that is given back. Where it is 1, one durable connection serves
    all kinds.

    Args:
        limit: the most connections open at once, at least 1.
        keep: how many stay open when idle.
        longest: seconds after which an idle one is closed; 0 for never.
    """

    def __init__(self, *, limit: int, keep: int, longest: float = 0.0) -> None:
        self._limit = limit
        self._keep = keep
        self._longest = longest
        self._idle: list[Link[C, K]] = []
        self._slots: dict[bool, WeakSet[Slot]] = {True: WeakSet(), False: WeakSet()}
        self._reserved_until = 0.0

    @property
    def total(self) -> int:
        """How many connections are open, or being opened."""
        return len(self._slots[True]) + len(self._slots[False])

    @property
    def usage(self) -> PoolUsage:
        """How many are open, how many of them idle, and how many there may be."""
        return PoolUsage(self.total, len(self._idle), self._limit)

    def take(self, *, relaxed: bool | None) -> Link[C, K] | None:
        """Return an idle connection of this kind, the most recently used first; None: open one, or wait."""
        idle = self._idle
        any_kind = relaxed is None or self._limit == 1
        for place in range(len(idle) - 1, -1, -1):
            if any_kind or idle[place].relaxed == relaxed:
                return idle.pop(place)
        return None

    def reserve(self, *, relaxed: bool | None, waited: float) -> tuple[Slot, Link[C, K] | None] | None:
        """Return the place of a connection to be opened, and an idle one to be closed for it; None: wait.

        Args:
            relaxed: the wanted kind; `take` has found none.
            waited: for how many seconds the caller has waited.
        """
        if self._limit == 1:
            return None if self.total else (self._add(relaxed=False), None)
        if relaxed is None:
            enough = self.total > 0 and (waited < GRACE or self._is_full)
            return None if enough else (self._add(relaxed=False), None)
        if not relaxed:
            return None if self._is_full else (self._add(relaxed=False), None)
        if self._slots[True]:
            return None
        if self.total < self._limit:
            self._reserved_until = 0.0
            return self._add(relaxed=True), None
        for place, link in enumerate(self._idle):
            if not link.relaxed:
                self.free(link.slot)
                return self._add(relaxed=True), self._idle.pop(place)
        self._reserved_until = time.monotonic() + _RESERVED
        return None

    @property
    def opening(self) -> int:
        """How many connections are being opened at this moment."""
        return sum(slot.opening_since is not None for slots in self._slots.values() for slot in list(slots))

    def is_too_late(self, waited: float, patience: float) -> bool:
        """Tell whether a caller has waited long enough: twice as long while a connection is being opened.

        The first of several hosts may not answer, and the next one is tried after the time-out of one connection.
        """
        return waited >= (2 * patience if self.opening else patience)

    def none_in_time(self, target: str, waited: float) -> TimedOut:
        """Return the error for a caller that got no connection, with the reason."""
        reason = (
            f"{self.opening} of {self._limit} are being opened, and the server, or one of several hosts in the address, "
            "does not answer; connection_timeout_seconds is the time for each host"
            if self.opening
            else f"all {self._limit} are in use; raise max_connections"
        )
        return TimedOut(f"no connection to {target} became free in {waited:.3g} s: {reason}", target=target)

    def turn(self, *, relaxed: bool | None, waited: float, patience: float) -> float:
        """Return for how many seconds to wait now, ``patience`` being the longest wait altogether."""
        longest = min(GRACE, patience) if relaxed is None and waited < GRACE else patience
        left = longest - waited
        # Beyond the patience there is only a connection that is being opened to wait for.
        return min(left, LONGEST_TURN) if left > 0 else _BEYOND

    def free(self, slot: Slot) -> None:
        """Free the place of a connection that was closed, or could not be opened."""
        self._slots[slot.relaxed].discard(slot)

    def give(self, link: Link[C, K]) -> bool:
        """Keep an idle connection; False when there are enough, and it should be closed."""
        if not link.relaxed:
            is_wanted = self._reserved_until and self._is_reserved and self.total >= self._limit
            if is_wanted or len(self._idle) >= self._keep:
                return False
        # Whoever was interrupted while waiting for a standby does not hear of it; the next one must not either.
        link.doubt.arisen = False
        link.fresh = False
        link.idle_since = time.monotonic()
        self._idle.append(link)
        return True

    @property
    def closes_idle(self) -> bool:
        """Whether there is something idle that is to be closed some time."""
        return bool(self._idle) and self._longest > 0

    def expired(self, *, claims: bool) -> list[Link[C, K]]:
        """Forget what has been idle for too long, and return it; with ``claims`` not the connection for claims."""
        if not self._longest:
            return []
        now = time.monotonic()
        expired = [link for link in self._idle if self._expiry(link) <= now and not (claims and self._claims(link))]
        for link in expired:
            self._idle.remove(link)
            self.free(link.slot)
        return expired

    def next_expiry(self) -> float | None:
        """Return in how many seconds to ask `expired` again; None if nothing is open, and so nothing becomes idle."""
        if not self._longest or not self.total:
            return None
        left = min(map(self._expiry, self._idle), default=0.0) - time.monotonic()
        # One for claims was kept although its time had come. Other pools are served in the same round, and do not wait
        # longer because one of these took long to open.
        return min(left, self._longest) if left > 0 else self._longest

    def _expiry(self, link: Link[C, K]) -> float:
        return link.idle_since + max(self._longest, _WORTH * link.opened_in)

    def _claims(self, link: Link[C, K]) -> bool:
        return link.relaxed or self._limit == 1

    def empty(self) -> list[Link[C, K]]:
        """Forget all idle connections and return them."""
        idle, self._idle = self._idle, []
        for link in idle:
            self.free(link.slot)
        return idle

    def _add(self, *, relaxed: bool) -> Slot:
        slot = Slot(relaxed=relaxed)
        self._slots[relaxed].add(slot)
        return slot

    @property
    def _is_full(self) -> bool:
        """Whether no further durable connection may be opened."""
        return self.total + self._is_reserved >= self._limit

    @property
    def _is_reserved(self) -> bool:
        return not self._slots[True] and time.monotonic() < self._reserved_until
