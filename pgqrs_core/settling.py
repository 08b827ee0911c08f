"""What becomes of delivered messages, written in batches by a thread of its own.

Frameworks await no answer to an ack, so none need wait for the database: what is settled gathers for a few milliseconds and
is written with one statement for each queue. What is not written when the process dies is delivered again, as on any
broker. A verdict names the lease and not the connection it came by, so it holds however often that was replaced.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pgqrs_core.backoff import Backoff
from pgqrs_core.effects import Op
from pgqrs_core.errors import PgqrsError, TimedOut, Unavailable
from pgqrs_core.events import Consumed, Outcome, OutcomeKind
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.interrupts import is_failure
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.messages import Delivery, Queue
from pgqrs_core.operations.settle import (
    Failure,
    ack,
    is_of_one_row,
    is_perhaps_of_one,
    is_refusal_that_passes,
    nack,
    postpone,
    release,
    unlocked,
)
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import is_interpreter_ending, join, start_thread

if TYPE_CHECKING:
    from pgqrs_core.engine import Engine
    from pgqrs_core.leases import LeaseKeeper

__all__ = ["Kind", "Settler", "Verdict"]

_log = get_logger("pgqrs.settling")

Kind = Literal["ack", "release", "postpone", "requeue", "reject"]

#: Seconds for which verdicts gather.
_GATHER: Final = 0.003
#: Seconds after which it looks for verdicts even if nobody rang.
_LONGEST: Final = 1.0
#: Verdicts written at once; as many end the gathering.
_MOST: Final = 1_000
_ENOUGH: Final = 200
#: Seconds until the next try when the server is away, or a queue refuses it; the latter waits double.
_RETRY: Final = 0.5
_LONGEST_RETRY: Final = 2.0

_KINDS: Final[dict[str, OutcomeKind]] = {
    "ack": "acked",
    "release": "released",
    "postpone": "released",
    "requeue": "nacked",
}
_REJECTED: Final = {"type": "Rejected", "message": "the consumer rejected it"}


class Verdict(NamedTuple):
    """What is to become of one delivery; ``error`` says why one is rejected."""

    kind: Kind
    queue: Queue
    delivery: Delivery
    claimed_at: float
    #: For how many seconds the consumer had it; None if it never got it.
    seconds: float | None = None
    #: Why it is rejected.
    error: dict[str, Any] | None = None


class Settler:
    """Gathers verdicts and writes them. Thread-safe; giving a verdict never blocks and never fails.

    What the server refuses for a reason that passes – a lock, a full disk, an outage – is kept and tried again, and its
    leases are renewed meanwhile. What it refuses for good is logged, and is delivered again when its lease ends.

    An exception that strikes a thread while it gives one (Dramatiq interrupts its workers so) leaves no lock behind: deque
    and SimpleQueue are not written in Python.
    """

    def __init__(self, engine: Engine, keeper: LeaseKeeper, adapter: str) -> None:
        self._engine = engine
        self._keeper = keeper
        self._adapter = adapter
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: have nothing to write, for these verdicts are the parent's."""
        self._given: deque[Verdict] = deque()
        #: Verdicts of queues that refused some, until they are tried again.
        self._kept: dict[int, list[Verdict]] = {}
        self._backoff = Backoff(_RETRY, _LONGEST_RETRY)
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def give(self, verdict: Verdict) -> None:
        """Have a verdict written soon."""
        self._given.append(verdict)
        # A bell that has rung and was not heard yet is heard after this.
        if self._bell.empty():
            self._bell.put(None)
        if self._thread is None:
            self.start()

    def flush(self) -> None:
        """Write what has been given so far, but for queues that refuse it at present.

        Raises:
            Unavailable: the server is away; the verdicts are kept.
        """
        with self._writing:
            while self._given:
                self._write(self._take())

    def close(self) -> None:
        """Write what is left, if the server takes it, and stop."""
        self._closing = True
        self._bell.put(None)
        join(self._thread)
        reason = "their queues refuse it"
        try:
            self._retry(everything=True)
            self.flush()
        except Unavailable as error:
            reason = str(error)
        if self.pending:
            _log.warning("%d messages could not be settled and will be delivered again: %s", self.pending, reason)

    @property
    def pending(self) -> int:
        """How many verdicts wait to be written."""
        return len(self._given) + sum(map(len, list(self._kept.values())))

    def start(self) -> None:
        """Start the thread that writes. The first verdict does it too; but not where an exception may strike meanwhile."""
        with self._starting:
            if self._thread is None:
                try:
                    self._thread = start_thread(self._run, name="pgqrs-settler")
                except RuntimeError as error:
                    # Then `flush` and `close` write what is given.
                    if not is_interpreter_ending(error):
                        raise

    def _run(self) -> None:
        #: The server that could not be reached the last time.
        target: str | None = None
        while not self._closing:
            # The time limit is for a thread that was struck between giving and ringing.
            with contextlib.suppress(Empty):
                self._bell.get(timeout=min(self._backoff.pause() or _LONGEST, _LONGEST))
            self._retry()
            if not self._given:
                continue
            if len(self._given) < _ENOUGH and not self._closing:
                time.sleep(_GATHER)
            try:
                self.flush()
            except Unavailable as error:
                if not self._closing:
                    target = self._engine.connections.target
                    OUTAGES.noticed(
                        self, target, _log, "%d messages cannot be settled yet: %s", len(self._given), error
                    )
                    time.sleep(_RETRY)
                self._bell.put(None)
            else:
                if target is not None:
                    OUTAGES.over(self, target)
                    target = None
        if target is not None:
            OUTAGES.left(self, target)

    def _retry(self, *, everything: bool = False) -> None:
        """Take up again what was kept for queues whose time has come."""
        with self._writing:
            for number in list(self._kept):
                if everything or not self._backoff.waits(number):
                    self._given.extendleft(reversed(self._kept.pop(number)))
                    if everything:
                        self._backoff.succeeded(number)

    def _take(self) -> list[Verdict]:
        taken: list[Verdict] = []
        while self._given and len(taken) < _MOST:
            taken.append(self._given.popleft())
        return taken

    def _write(self, verdicts: list[Verdict]) -> None:
        groups: dict[tuple[str, int], list[Verdict]] = {}
        for verdict in verdicts:
            groups.setdefault((verdict.kind, verdict.queue.id), []).append(verdict)
        left = list(groups.values())
        try:
            while left:
                group = left[-1]
                if self._backoff.waits(group[0].queue.id):
                    self._kept.setdefault(group[0].queue.id, []).extend(group)
                    left.pop()
                    continue
                fates = self._write_group(group, left)
                left.pop()
                if fates is not None:
                    self._done(group[0].kind, group, fates)
        finally:
            # Of those that are left nothing is known to be written.
            self._given.extendleft(verdict for group in reversed(left) for verdict in reversed(group))

    def _write_group(self, group: list[Verdict], left: list[list[Verdict]]) -> list[Any] | None:
        """Write one group; None if that failed. What is to be written apart is added to ``left``."""
        queue = group[0].queue
        self._keeper.settling(verdict.delivery.lease for verdict in group)
        try:
            fates = self._engine.run(_settle, group, self._engine.doorbell)
        except Unavailable as error:
            if not isinstance(error, TimedOut):
                raise
            self._refused(group, error)
        except BaseException as error:
            if not is_failure(error):
                raise
            if is_of_one_row(error) and (parts := self._apart(group)):
                left[:0] = parts
            elif is_refusal_that_passes(error):
                self._refused(group, error)
            elif len(group) > 1 and is_perhaps_of_one(error):
                middle = len(group) // 2
                left[:0] = [group[:middle], group[middle:]]
            else:
                # It must not keep this thread from settling others.
                known = isinstance(error, PgqrsError)
                count, first, trace = len(group), group[0].delivery.id, None if known else error
                text = "%d messages of queue %r could not be settled (%s; the first: %d) and are delivered again: %s"
                _log.error(text, count, queue.name, group[0].kind, first, error_text(error), exc_info=trace)
                self._keeper.drop(verdict.delivery.lease for verdict in group)
        else:
            if self._backoff.succeeded(queue.id):
                _log.info("messages of queue %r can be settled again", queue.name)
            return fates
        return None

    def _apart(self, group: list[Verdict]) -> list[list[Verdict]]:
        """Return the verdicts on rows that others have locked, and the other ones; nothing if all or none are."""
        try:
            free = self._engine.run(unlocked, group[0].queue, [verdict.delivery.lease for verdict in group])
        except PgqrsError:
            return []
        if not 0 < sum(free) < len(free):
            return []
        return [[verdict for verdict, is_free in zip(group, free) if is_free is wanted] for wanted in (False, True)]

    def _refused(self, group: list[Verdict], error: BaseException) -> None:
        queue = group[0].queue
        if not self._backoff.has_failed(queue.id):
            _log.warning("messages of queue %r cannot be settled yet, and are kept: %s", queue.name, error)
        self._backoff.failed(queue.id)
        self._kept.setdefault(queue.id, []).extend(group)

    def _done(self, kind: str, group: list[Verdict], fates: list[Any]) -> None:
        self._keeper.drop(verdict.delivery.lease for verdict in group)
        queue = group[0].queue
        for verdict, fate in zip(group, fates):
            if fate is False or fate == "lost":
                _log.warning(
                    "message %d of queue %r: its lease had passed to another consumer before this one could %s it",
                    verdict.delivery.id,
                    queue.name,
                    kind,
                )
        hooks = self._engine.plugins.hooks
        if hooks.observes_consume:
            kinds = [_kind(verdict, fate) for verdict, fate in zip(group, fates)]
            spent = [verdict.seconds for verdict in group]
            event = Consumed(queue.name, self._adapter, kinds, spent, lambda: list(map(_outcome, group, kinds)))
            hooks.after_consume(event)


def _settle(group: list[Verdict], doorbell: Any) -> Op[list[Any]]:
    kind, queue = group[0].kind, group[0].queue
    leases = [verdict.delivery.lease for verdict in group]
    if kind == "ack":
        return (yield from ack(queue, leases))
    if kind == "reject":
        burials = [
            Failure(one.delivery.lease, error=one.error or _REJECTED, bury=True, attempt=one.delivery.attempt)
            for one in group
        ]
        return list((yield from nack(queue, burials)))
    if kind == "postpone":
        return (yield from postpone(queue, leases, [one.error or _REJECTED for one in group]))
    # What is requeued keeps its place too, but has been tried.
    return (yield from release(queue, leases, doorbell, counts=kind == "requeue"))


def _kind(verdict: Verdict, fate: Any) -> OutcomeKind:
    # An ack answers with whether the lease held, a rejection with the fate by its name.
    return fate if isinstance(fate, str) else _KINDS[verdict.kind] if fate else "lost"  # type: ignore[return-value]


def _outcome(verdict: Verdict, kind: OutcomeKind) -> Outcome:
    delivery = verdict.delivery
    error = (verdict.error or _REJECTED)["message"] if verdict.kind in ("requeue", "reject") else None
    waited = max(verdict.claimed_at - delivery.enqueued_at.timestamp(), 0.0)
    return Outcome(delivery.id, kind, delivery.attempt, waited, verdict.seconds, error)
