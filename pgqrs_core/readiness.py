"""Waiting until a descriptor can be read, by what the platform of the moment offers.

``poll`` has no upper bound on descriptors, so it is preferred. Eventlet removes it when it makes blocking cooperative;
there ``select``, which it replaces by its own, is used.
"""

from __future__ import annotations

import select

__all__ = ["Readiness"]


class Readiness:
    """Waits for any of some descriptors.

    Args:
        descriptors: file descriptors, open for as long as this is used.
    """

    __slots__ = ("_descriptors", "_poll")

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = descriptors
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            for descriptor in descriptors:
                self._poll.register(descriptor, select.POLLIN)

    def within(self, seconds: float) -> bool:
        """Tell whether any of them can be read, or has ended, after at most ``seconds``; 0 only looks."""
        if self._poll is not None:
            return bool(self._poll.poll(seconds * 1000))
        return bool(select.select(self._descriptors, (), (), seconds)[0])

    def wait(self, seconds: float) -> list[int]:
        """Return the descriptors that can be read, or have ended, after at most ``seconds``; 0 only looks."""
        if self._poll is not None:
            return [descriptor for descriptor, _ in self._poll.poll(max(seconds, 0.0) * 1000)]
        return select.select(self._descriptors, (), (), max(seconds, 0.0))[0]
