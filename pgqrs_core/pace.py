"""How quickly a consumer handles messages, and what follows from it for the next claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["GATHER", "Pace"]

#: For how many seconds of work a claim reaches ahead of what there is room for, and the pace from which on it does.
_AHEAD: Final = 0.04
_SWIFT: Final = 50.0
#: From this pace on, and where messages come in numbers already, a queue that is empty for the moment is looked at again
#: after so many seconds, without a bell: what comes meanwhile comes together. Those that come singly may be steps of a
#: chain, each waiting for the one before, and are not kept waiting.
_BRISK: Final = 100.0
_SEVERAL: Final = 2
GATHER: Final = 0.01


class Pace:
    """Messages per second between two claims."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._rate = 0.0
        #: How many were handed on since then.
        self.handed = 0

    def measure(self) -> None:
        """A claim is about to be made: note the pace since the last one."""
        now = self._clock()
        self._rate = self.handed / max(now - self._since, 1e-6)
        self.handed, self._since = 0, now

    @property
    def ahead(self) -> int:
        """How many messages to claim beyond what there is room for."""
        return round(self._rate * _AHEAD) if self._rate > _SWIFT else 0

    def gathers(self, found: int) -> bool:
        """Tell whether to let messages gather after a claim of ``found``."""
        return found >= _SEVERAL and self._rate > _BRISK
