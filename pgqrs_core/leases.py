"""Keeping the leases of this process alive, however long its handlers run.

A lease is renewed after a third of its time, so two renewals may fail before it is lost. A dead process renews
nothing, and its messages pass on when their leases end. What is due when is decided by `Ledger`, which is pure.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pgqrs_core.backoff import Backoff
from pgqrs_core.conditions import Condition
from pgqrs_core.errors import PgqrsError, ServerError, TableLocked
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.interrupts import FAILURES
from pgqrs_core.logs import error_text, get_logger, worker_name
from pgqrs_core.operations.settle import extend, extend_unlocked
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import join, start_task, start_thread

if TYPE_CHECKING:
    from pgqrs_core.engine import AsyncEngine, Engine
    from pgqrs_core.messages import Lease, Queue

__all__ = ["AsyncLeaseKeeper", "LeaseKeeper", "Ledger"]

_log = get_logger("pgqrs.leases")

#: Leases renewed by one statement.
_PAGE: Final = 1_000
#: Seconds until the next try after a failed renewal.
_RETRY: Final = 0.5


class Renewal(NamedTuple):
    """Leases of one queue that are due together, as many as one statement renews."""

    queue: Queue
    seconds: float
    leases: list[Lease]
    #: Whether another session had locked the rows of these the last time.
    locked: bool = False


class _Held:
    __slots__ = ("due_at", "locked", "on_lost", "queue", "seconds", "settling")

    def __init__(self, queue: Queue, seconds: float, due_at: float, on_lost: Callable[[Lease], None] | None) -> None:
        self.queue = queue
        self.seconds = seconds
        self.due_at = due_at
        self.on_lost = on_lost
        self.settling = False
        self.locked = False


class Ledger:
    """Which leases are held, and when each is due for renewal. The caller serialises access."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[Lease, _Held] = {}
        self._backoff = Backoff(_RETRY, _RETRY, clock)

    def hold(
        self,
        queue: Queue,
        leases: Iterable[Lease],
        seconds: float,
        on_lost: Callable[[Lease], None] | None = None,
        *,
        age: float = 0.0,
    ) -> None:
        """Begin to renew leases that were claimed for ``seconds``, ``age`` seconds ago.

        ``on_lost`` is told if one is lost.
        """
        due_at = self._clock() + max(seconds / 3 - age, 0.0)
        for lease in leases:
            self._held[lease] = _Held(queue, seconds, due_at, on_lost)

    def drop(self, leases: Iterable[Lease]) -> None:
        """Renew these no more: they were settled, or are about to be."""
        for lease in leases:
            self._held.pop(lease, None)

    def settling(self, leases: Iterable[Lease], *, begun: bool = True) -> None:
        """Renew these still, but say of none that it is lost: it may be settled, and whoever does that learns which.

        Without ``begun`` that is taken back: they could not be settled.
        """
        for lease in leases:
            if lease in self._held:
                self._held[lease].settling = begun

    def due(self) -> list[Renewal]:
        """Return what should be renewed now, those due soon after included."""
        now = self._clock()
        groups: dict[tuple[int, float, bool], Renewal] = {}
        for lease, held in self._held.items():
            if held.due_at <= now + held.seconds / 12:
                key = held.queue.id, held.seconds, held.locked
                groups.setdefault(key, Renewal(held.queue, held.seconds, [], held.locked)).leases.append(lease)
        ripe = [group for group in groups.values() if min(self._held[x].due_at for x in group.leases) <= now]
        # A queue that is locked makes its own renewals wait, and not those of others.
        ripe.sort(key=lambda group: self._backoff.has_failed(group.queue.id))
        return [
            group._replace(leases=group.leases[start : start + _PAGE])
            for group in ripe
            for start in range(0, len(group.leases), _PAGE)
        ]

    def next_at(self) -> float | None:
        """Return when the next renewal is due, on the ledger's clock."""
        return min((held.due_at for held in self._held.values()), default=None)

    def renewed(self, renewal: Renewal, kept: Sequence[bool | None]) -> list[tuple[Callable[[Lease], None], Lease]]:
        """Note the answers to a renewal; return whom to tell of which lost lease.

        None is a lease whose row another session has locked, a transaction that has settled it for instance. It is tried
        again soon, apart, so that the others need not wait for it.
        """
        self._backoff.succeeded(renewal.queue.id)
        due_at = self._clock() + renewal.seconds / 3
        told: list[tuple[Callable[[Lease], None], Lease]] = []
        for lease, alive in zip(renewal.leases, kept):
            held = self._held.get(lease)
            if held is None:
                continue
            held.locked = alive is None
            if alive is None:
                held.due_at = self._clock() + min(_RETRY, renewal.seconds / 10)
                continue
            if alive:
                held.due_at = due_at
                continue
            del self._held[lease]
            if held.settling:
                continue
            fields = {"queue": renewal.queue.name, "message_id": lease.message_id, "worker": worker_name()}
            _log.warning(
                "the lease on message %d of queue %r was lost", lease.message_id, renewal.queue.name, extra=fields
            )
            if held.on_lost is not None:
                told.append((held.on_lost, lease))
        return told

    def is_due(self, renewal: Renewal) -> bool:
        """Tell whether to carry a renewal out that was due: others of its queue may have failed meanwhile."""
        return not self._backoff.waits(renewal.queue.id)

    def is_failing(self, queue: Queue) -> bool:
        """Tell whether leases of a queue could not be renewed the last time.

        They may have ended: to claim from the queue now would be to take over what this process handles.
        """
        return self._backoff.has_failed(queue.id) and any(held.queue.id == queue.id for held in self._held.values())

    def failed(self, renewal: Renewal, error: BaseException, *, known: bool = False) -> None:
        """Note that a renewal could not be carried out, and try all those of its queue again soon.

        ``known`` says that the reason has a line in the log already: the server is away.
        """
        number = renewal.queue.id
        log = _log.debug if known or self._backoff.has_failed(number) else _log.warning
        text = "%d leases of queue %r could not be renewed yet: %s"
        log(text, len(renewal.leases), renewal.queue.name, error_text(error), exc_info=_trace(error))
        due_at = self._clock() + self._backoff.failed(number, first=min(_RETRY, renewal.seconds / 10))
        for held in self._held.values():
            if held.queue.id == number:
                held.due_at = max(held.due_at, due_at)

    def __len__(self) -> int:
        return len(self._held)


class LeaseKeeper:
    """Renews leases from a thread of its own, which runs while any is held."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: hold nothing, for the leases are the parent's to renew."""
        self._ledger = Ledger()
        self._changed = Condition()
        self._thread: threading.Thread | None = None
        self._wake_at: float | None = None
        self._closing = False

    def hold(
        self,
        queue: Queue,
        leases: Sequence[Lease],
        seconds: float,
        on_lost: Callable[[Lease], None] | None = None,
        *,
        age: float = 0.0,
    ) -> None:
        """Begin to renew; see `Ledger.hold`."""
        if not leases:
            return
        with self._changed:
            self._ledger.hold(queue, leases, seconds, on_lost, age=age)
            if self._thread is None or not self._thread.is_alive():
                self._thread = start_thread(self._run, name="pgqrs-leases")
            elif self._wake_at is None or time.monotonic() + seconds / 3 - age < self._wake_at:
                self._changed.notify()

    def drop(self, leases: Iterable[Lease]) -> None:
        """Renew these no more."""
        # Where nothing is held, as with single reads, not even the lock is worth its time.
        if self._ledger:
            with self._changed:
                self._ledger.drop(leases)

    def is_failing(self, queue: Queue) -> bool:
        """Tell whether to leave a queue alone; see `Ledger.is_failing`."""
        with self._changed:
            return self._ledger.is_failing(queue)

    def settling(self, leases: Iterable[Lease], *, begun: bool = True) -> None:
        """These are about to be settled; see `Ledger.settling`."""
        if self._ledger:
            with self._changed:
                self._ledger.settling(leases, begun=begun)

    def close(self) -> None:
        """Stop renewing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        join(self._thread)

    def _run(self) -> None:
        while True:
            with self._changed:
                due = self._ledger.due()
                while not due and not self._closing:
                    self._wake_at = self._ledger.next_at()
                    pause = None if self._wake_at is None else max(self._wake_at - time.monotonic(), 0.001)
                    self._changed.wait(pause)
                    due = self._ledger.due()
                if self._closing:
                    return
            for renewal in due:
                if self._ledger.is_due(renewal):
                    self._renew(renewal)

    def _renew(self, renewal: Renewal) -> None:
        try:
            kept = self._extend(renewal)
        except BaseException as error:
            with self._changed:
                self._ledger.failed(renewal, error, known=OUTAGES.explains(error, self._engine.connections.target))
            if not isinstance(error, FAILURES):
                raise
            return
        with self._changed:
            told = self._ledger.renewed(renewal, kept)
        for tell, lease in told:
            tell(lease)

    def _extend(self, renewal: Renewal) -> Sequence[bool | None]:
        if not renewal.locked:
            try:
                return self._engine.run(extend, renewal.queue, renewal.leases, renewal.seconds)
            except TableLocked as error:
                if not error.is_row:
                    raise
                _note_locked(renewal, error)
            except ServerError as error:
                return _without_table(renewal, error)
        return self._engine.run(extend_unlocked, renewal.queue, renewal.leases, renewal.seconds)


def _note_locked(renewal: Renewal, error: TableLocked) -> None:
    text = "some of %d leases of queue %r cannot be renewed yet, the others are: %s"
    _log.warning(text, len(renewal.leases), renewal.queue.name, error)


def _without_table(renewal: Renewal, error: ServerError) -> Sequence[bool]:
    """Return the answer of a queue that was deleted: none of its leases holds, and to ask again would be in vain."""
    if not error.is_missing_table:
        raise error
    return [False] * len(renewal.leases)


def _trace(error: BaseException) -> BaseException | None:
    return None if isinstance(error, PgqrsError) else error


class AsyncLeaseKeeper:
    """Renews leases from a task of its own, which runs while any is held."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: hold nothing, for the leases are the parent's to renew."""
        self._ledger = Ledger()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def hold(
        self,
        queue: Queue,
        leases: Sequence[Lease],
        seconds: float,
        on_lost: Callable[[Lease], None] | None = None,
        *,
        age: float = 0.0,
    ) -> None:
        """Begin to renew; see `Ledger.hold`."""
        if not leases:
            return
        self._ledger.hold(queue, leases, seconds, on_lost, age=age)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = start_task(self._run, name="pgqrs-leases")

    def drop(self, leases: Iterable[Lease]) -> None:
        """Renew these no more."""
        self._ledger.drop(leases)

    def is_failing(self, queue: Queue) -> bool:
        """Tell whether to leave a queue alone; see `Ledger.is_failing`."""
        return self._ledger.is_failing(queue)

    def settling(self, leases: Iterable[Lease], *, begun: bool = True) -> None:
        """These are about to be settled; see `Ledger.settling`."""
        self._ledger.settling(leases, begun=begun)

    async def close(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while len(self._ledger):
            for renewal in self._ledger.due():
                if self._ledger.is_due(renewal):
                    await self._renew(renewal)
            next_at = self._ledger.next_at()
            if next_at is None:
                return
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(next_at - time.monotonic(), 0.001))

    async def _renew(self, renewal: Renewal) -> None:
        try:
            kept = await self._extend(renewal)
        except FAILURES as error:
            self._ledger.failed(renewal, error, known=OUTAGES.explains(error, self._engine.connections.target))
            return
        for tell, lease in self._ledger.renewed(renewal, kept):
            tell(lease)

    async def _extend(self, renewal: Renewal) -> Sequence[bool | None]:
        if not renewal.locked:
            try:
                return await self._engine.run(extend, renewal.queue, renewal.leases, renewal.seconds)
            except TableLocked as error:
                if not error.is_row:
                    raise
                _note_locked(renewal, error)
            except ServerError as error:
                return _without_table(renewal, error)
        return await self._engine.run(extend_unlocked, renewal.queue, renewal.leases, renewal.seconds)
