"""How outcomes reach the database: gathered, and written a batch at a time. Shared by both workers.

While one batch is being written the next gathers, so a busy worker writes large ones and an idle one writes at once.
What could not be written is kept: an ack that never arrives only means that the message is delivered again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from pgqrs_core.effects import Op
from pgqrs_core.logs import Logger
from pgqrs_core.messages import Queue
from pgqrs_native.routing import Action, Outcome
from pgqrs_native.traffic import failing, settling

if TYPE_CHECKING:
    from pgqrs_core.doorbell import Doorbell
    from pgqrs_core.plugins import Plugins

__all__ = ["Portion", "portions"]

#: Outcomes written by one statement.
_MOST: Final = 1_000


class Portion:
    """Outcomes of one kind for one queue, written by one operation."""

    __slots__ = ("action", "delay", "outcomes", "queue")

    def __init__(self, queue: Queue, action: Action, delay: float | None) -> None:
        self.queue = queue
        self.action = action
        self.delay = delay
        self.outcomes: list[Outcome] = []

    def write(self, plugins: Plugins, doorbell: Doorbell) -> Op[Any]:
        """Return the operation that writes them."""
        messages = [outcome.message for outcome in self.outcomes]
        if self.action in ("nack", "bury"):
            return failing(
                self.queue,
                messages,
                delay=self.delay,
                errors=[outcome.error for outcome in self.outcomes],
                bury=self.action == "bury",
                plugins=plugins,
                doorbell=doorbell,
            )
        errors = [outcome.error for outcome in self.outcomes]
        return settling(self.queue, self.action, messages, errors=errors, plugins=plugins, doorbell=doorbell)  # type: ignore[arg-type]

    def halves(self) -> list[Portion]:
        """Return two portions with half of the outcomes each."""
        middle = len(self.outcomes) // 2
        parts = [Portion(self.queue, self.action, self.delay) for _ in range(2)]
        parts[0].outcomes, parts[1].outcomes = self.outcomes[:middle], self.outcomes[middle:]
        return parts

    def parts(self, chosen: Sequence[bool]) -> list[Portion]:
        """Return two portions: the outcomes that are not chosen, and those that are."""
        parts = [Portion(self.queue, self.action, self.delay) for _ in range(2)]
        for outcome, is_chosen in zip(self.outcomes, chosen):
            parts[is_chosen].outcomes.append(outcome)
        return parts

    def note_lost(self, log: Logger) -> None:
        """Report the outcomes that came too late."""
        for outcome in self.outcomes:
            if outcome.message.lease_lost and not outcome.message.provisional:
                text = "%r was lost before its outcome (%s) was written"
                log.warning(text, outcome.message, outcome.action, extra=outcome.message.log_fields)


def portions(outcomes: Iterable[Outcome]) -> list[Portion]:
    """Group outcomes into portions; those that need nothing are left out."""
    groups: defaultdict[tuple[int, Action, float | None], list[Portion]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.action == "none":
            continue
        queue = outcome.message._queue
        group = groups[queue.id, outcome.action, outcome.delay]
        if not group or len(group[-1].outcomes) >= _MOST:
            group.append(Portion(queue, outcome.action, outcome.delay))
        group[-1].outcomes.append(outcome)
    return [portion for group in groups.values() for portion in group]
