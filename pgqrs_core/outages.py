"""One line in the log when a server goes away, and one when it is back, however many parts of a process notice it."""

from __future__ import annotations

import threading
import time
from typing import Final
from weakref import WeakSet

from pgqrs_core.errors import TimedOut, Unavailable
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.logs import Logger, error_text, get_logger

__all__ = ["OUTAGES", "Outages"]

_log = get_logger("pgqrs.connections")


class _Outage:
    def __init__(self) -> None:
        self.began_at = time.monotonic()
        #: The parts that try to reach the server and have not succeeded yet.
        self.parts: WeakSet[object] = WeakSet()


class Outages:
    """The servers that parts of this process cannot reach at present. Thread-safe; forgotten by a forked child."""

    def __init__(self) -> None:
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: the parts that wait are the parent's."""
        self._lock = threading.Lock()
        self._outages: dict[str, _Outage] = {}

    def noticed(self, part: object, target: str, log: Logger, text: str, *args: object) -> None:
        """Note that a server cannot be reached. The first part that says so logs a warning, the others log at DEBUG.

        Args:
            part: what noticed it. It tries again, and calls `over` when it succeeds, or `left` when it is closed.
            target: which server, as errors name it.
            log: the logger of the part.
            text: what the line says.
            args: what fills its places.
        """
        with self._lock:
            outage = self._outages.get(target)
            is_first = outage is None or not outage.parts
            if outage is None or is_first:
                outage = self._outages[target] = _Outage()
            outage.parts.add(part)
        (log.warning if is_first else log.debug)(text, *args)

    def over(self, part: object, target: str) -> None:
        """Note that a part has reached a server. The last one of those that could not logs a line."""
        began_at = self._discard(part, target)
        if began_at is not None:
            _log.warning("%s can be reached again, after %.1f s", target, time.monotonic() - began_at)

    def left(self, part: object, target: str) -> None:
        """Note that a part does not try any more."""
        self._discard(part, target)

    def warn(self, target: str, error: BaseException, log: Logger, text: str, *args: object) -> None:
        """Log a warning; at DEBUG if the error says no more than that a server is away which is known to be."""
        (log.debug if self.explains(error, target) else log.warning)(text, *args, error_text(error))

    def explains(self, error: BaseException, target: str) -> bool:
        """Tell whether an error says no more than that a server is away, which the log says already."""
        if not isinstance(error, Unavailable) or isinstance(error, TimedOut):
            return False
        outage = self._outages.get(target)
        return outage is not None and len(outage.parts) > 0

    def _discard(self, part: object, target: str) -> float | None:
        """Take a part out; return when the outage began if it was the last one."""
        if target not in self._outages:
            return None
        with self._lock:
            outage = self._outages.get(target)
            if outage is None or part not in outage.parts:
                return None
            outage.parts.discard(part)
            if outage.parts:
                return None
            del self._outages[target]
            return outage.began_at


#: Those of this process.
OUTAGES: Final = Outages()
