"""What a worker has in hand, and what follows from it. Pure: no I/O, no clock and no locks; its owner has those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pgqrs_core.messages import Delivery, Queue
from pgqrs_core.operations.claim import is_last
from pgqrs_native.routing import Outcome, Task

__all__ = ["Load"]


class Load:
    """The messages that a worker has claimed and not yet settled, and how far it is on its way to its end.

    A worker claims while `is_light`, works, is told to stop (`stopping`), claims no more (`claiming` is False), settles
    what it holds until it `is_done`, and is `abandoned` when nobody waits for that any longer.

    Args:
        most: how many messages to hold.
    """

    __slots__ = ("_alone", "_batch", "_most", "abandoned", "claiming", "held", "pending", "stopping")

    def __init__(self, most: int) -> None:
        self._most = most
        #: For how many messages there should be room before more are claimed: those of a batch, for instance.
        self._batch = 1
        #: Messages claimed and not yet settled.
        self.held = 0
        #: Whether a message on its last attempt is among them: whoever dies with it must not take others along.
        self._alone = False
        #: What is to be written of handled messages.
        self.pending: list[Outcome] = []
        self.stopping = False
        self.claiming = True
        #: Whether nobody waits for outcomes to be written any more.
        self.abandoned = False

    @property
    def is_light(self) -> bool:
        """Whether to claim more. A full worker refills when a good part is done, so that claims stay fat."""
        return self.held <= (0 if self._alone else self._most - max(self._most // 4, self._batch))

    @property
    def room(self) -> int:
        """For how many messages there is room: for none while one of those in hand is on its last attempt."""
        alone = self._alone and self.held > 0
        return 0 if self.stopping or alone else max(self._most - self.held, 0)

    def expect_batches(self, count: int) -> None:
        """Have room for batches of ``count`` messages: for one that is handled, and for another one if there are hands."""
        self._batch = count
        self._most = max(self._most, count * min(self._most, 2))

    def take(self, queue: Queue, found: Sequence[Delivery], limit: int) -> bool:
        """Note what a claim for ``limit`` messages has brought; tell whether the queue may hold more."""
        self._alone = (self._alone and self.held > 0) or is_last(queue, found)
        self.held += len(found)
        return len(found) == limit or self._alone

    def report(self, outcomes: Iterable[Outcome]) -> None:
        """Note outcomes that are to be written."""
        self.pending.extend(outcomes)

    def give_back(self, task: Task) -> None:
        """Note that a task will not be begun."""
        self.report([Outcome(message, "release") for message in task.messages])

    def take_pending(self, waits: Callable[[Outcome], bool] | None = None) -> list[Outcome]:
        """Return what is to be written, but for what ``waits``; the caller writes it, or reports it again."""
        outcomes: list[Outcome] = []
        kept: list[Outcome] = []
        for outcome in self.pending:
            (kept if waits is not None and waits(outcome) else outcomes).append(outcome)
        self.pending = kept
        return outcomes

    def settle(self, count: int, failed: list[Outcome]) -> None:
        """Note that ``count`` messages are out of hand, and that some outcomes are still to be written."""
        self.held -= count
        self.pending = failed + self.pending

    @property
    def is_done(self) -> bool:
        """Whether no message is in hand, and none will come."""
        return not (self.claiming or self.held)
