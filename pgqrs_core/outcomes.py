"""What became of messages, for two kinds of readers: those that look at each, and those that only count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pgqrs_core.events import Outcome, OutcomeKind

__all__ = ["Outcomes"]


class Outcomes(Sequence[Outcome]):
    """Outcomes that are put together when somebody looks at one. Whoever only counts is served by two columns.

    For a batch of a hundred acks it is the outcomes that would cost most of what an observing plugin costs.

    Args:
        kinds: What became of each message.
        seconds_in_handler: How long its handler ran, as in `Outcome`.
        make: Returns the outcomes, in the same order.
    """

    __slots__ = ("_made", "_make", "kinds", "seconds_in_handler")

    def __init__(
        self,
        kinds: Sequence[OutcomeKind],
        seconds_in_handler: Sequence[float | None],
        make: Callable[[], Sequence[Outcome]],
    ) -> None:
        self.kinds = kinds
        self.seconds_in_handler = seconds_in_handler
        self._make = make
        self._made: Sequence[Outcome] | None = None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Outcomes:
        """Return the columns of any outcomes."""
        if isinstance(outcomes, cls):
            return outcomes
        return cls([one.kind for one in outcomes], [one.seconds_in_handler for one in outcomes], lambda: outcomes)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, place: Any) -> Any:
        return self._all()[place]

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._all())

    def __repr__(self) -> str:
        return repr(list(self))

    def _all(self) -> Sequence[Outcome]:
        if self._made is None:
            self._made = self._make()
        return self._made
