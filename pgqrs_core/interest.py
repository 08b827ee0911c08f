"""What a process knows of one queue that it waits for. Only `pgqrs_core.watch` changes it."""

from __future__ import annotations

from typing import Final

from pgqrs_core.messages import Queue

__all__ = ["CALM", "NEVER", "QUICK", "SPELL", "STORM", "Interest"]

NEVER: Final = float("inf")
#: Seconds from a mark or a notification to the first poll; longer than the quiet time of a producer's doorbell.
QUICK: Final = 0.006
#: So many notifications of one queue within `SPELL` seconds are a storm: more than a lone producer can cause, which keeps
#: quiet for `pgqrs_core.doorbell.QUIET` after each. Its messages are better picked up at once.
STORM: Final = 15
SPELL: Final = 0.05
#: So many polls in a row that find nothing end it.
CALM: Final = 16


class Interest:
    """One queue, and what is known of it."""

    __slots__ = (
        "due_at",
        "first",
        "fresh",
        "generation",
        "left_at",
        "marked_at",
        "others",
        "passed",
        "place",
        "probe_at",
        "queue",
        "renew",
        "rings",
        "spell_began",
        "step",
        "storm",
        "surplus",
        "waiting",
    )

    def __init__(self, queue: Queue, now: float) -> None:
        self.queue = queue
        self.waiting = 0
        self.generation = 0
        self.marked_at: float | None = None
        #: Whether the mark is to be renewed now.
        self.renew = False
        #: How many other processes sleep on it, and how many of them have lower numbers, when that was last asked.
        self.others = 0
        self.place = 0
        #: When to poll, and how long to wait after that.
        self.probe_at = now + QUICK
        self.step = QUICK
        #: When the next delayed message is due, if this process is to serve it.
        self.due_at = NEVER
        self.left_at = now
        #: Something happened while nobody waited: the next consumer that comes should look before it sleeps.
        self.fresh = False
        #: The first message that the last poll found.
        self.first: int | None = None
        #: How many other processes are to be notified, and whether one was since somebody waited.
        self.surplus = 0
        self.passed = False
        #: The notifications since the spell began.
        self.rings = 0
        self.spell_began = now
        #: How many polls that find nothing are still to come before the storm is over; 0 outside one.
        self.storm = 0

    def renew_at(self, every: float) -> float:
        """Return when to mark the queue, or to renew its mark."""
        return -NEVER if self.marked_at is None or self.renew else self.marked_at + every

    def wake(self) -> None:
        """Let those who wait look, or the next one that comes."""
        self.generation += 1
        self.fresh = not self.waiting

    def look_soon(self, now: float) -> None:
        """Poll soon, and then again at growing intervals."""
        self.step = QUICK
        self.probe_at = min(self.probe_at, now + QUICK) if self.probe_at > now else now + QUICK

    def count_notification(self, now: float) -> None:
        """Notice a storm."""
        if now - self.spell_began > SPELL:
            self.spell_began, self.rings = now, 0
        self.rings += 1
        if self.rings >= STORM:
            self.storm = CALM
            self.step = QUICK
