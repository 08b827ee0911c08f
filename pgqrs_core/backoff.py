"""For which queues something has failed, and when to try each of them again. Pure: no thread, no sleep."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["Backoff", "Retries"]

#: The waits are shortened by up to this part, so that many processes do not try at the same time.
_JITTER: Final = 0.2
#: Seconds before the second try of what a caller waits for, and at most between two.
_FIRST_RETRY: Final = 0.05
_LONGEST_RETRY: Final = 1.0


class Retries:
    """For how long, and how often, something that fails is tried again while its caller waits.

    Args:
        seconds: after so many there is no further try.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY, clock)
        self._clock = clock
        self._until = clock() + seconds

    def pause_after(self, error: BaseException, *, passes: bool) -> float:
        """Return the seconds to wait before the next try; raise ``error`` if it does not pass, or there was time enough."""
        pause = self._backoff.failed(None)
        if not passes or self._clock() + pause >= self._until:
            raise error
        return pause


class Backoff:
    """Waits that double while the same thing fails again and again. The caller serialises access.

    Args:
        first: seconds to wait after the first failure.
        longest: the longest wait, in seconds.
        clock: the time in seconds.
    """

    __slots__ = ("_clock", "_failed", "_first", "_longest")

    def __init__(self, first: float, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = first
        self._longest = longest
        self._clock = clock
        #: Until when each is left alone, and how long the next wait is.
        self._failed: dict[Hashable, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._failed)

    def failed(self, key: Hashable, *, first: float | None = None) -> float:
        """Note a failure; return for how many seconds to leave it alone."""
        _, pause = self._failed.get(key, (0.0, self._first if first is None else first))
        wait = pause * (1 - _JITTER * random.random())
        self._failed[key] = self._clock() + wait, min(pause * 2, self._longest)
        return wait

    def succeeded(self, key: Hashable) -> bool:
        """Note that it works; tell whether it had failed before."""
        return self._failed.pop(key, None) is not None

    def waits(self, key: Hashable) -> bool:
        """Tell whether it is to be left alone at present."""
        failed = self._failed.get(key)
        return failed is not None and failed[0] > self._clock()

    def has_failed(self, key: Hashable) -> bool:
        """Tell whether it failed the last time."""
        return key in self._failed

    def pause(self) -> float | None:
        """Return in how many seconds the first of those that wait is due; None if none waits."""
        now = self._clock()
        return min((until - now for until, _ in self._failed.values() if until > now), default=None)
