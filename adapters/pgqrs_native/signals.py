"""What SIGTERM and SIGINT mean while a worker runs: the first stops it gracefully, a further one at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from typing_extensions import Self

__all__ = ["HardStop", "Signals"]

_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT)
#: Seconds within which the same signal again is the same request: ``timeout`` and shells send one to the process, and
#: another one to its group.
_SAME: Final = 1.0


class HardStop(SystemExit):
    """A worker was told by a second signal to stop at once. The exit status is 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """Handles the signals in a ``with`` block, and gives them back to their previous handlers at its end.

    Without effect outside of the main thread, which is the only one that may handle signals.

    Args:
        stop: called at the first signal. It interrupts the main thread, which may hold any lock, those of logging and of
            events included.
        hurry: called at a further one; so is this.
    """

    def __init__(self, stop: Callable[[int], object], hurry: Callable[[int], object]) -> None:
        self._stop = stop
        self._hurry = hurry
        self._before: dict[int, Any] = {}
        self._first: tuple[int, float] | None = None
        #: Whether a further signal came.
        self.hurried = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                # A host may forbid it, as embedded interpreters do.
                with contextlib.suppress(ValueError):
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            # One that was not set from Python is not known.
            if before is not None and signal.getsignal(number) == self._on_signal:
                signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            self._stop(number)
        elif number != self._first[0] or now - self._first[1] >= _SAME:
            self.hurried = True
            self._hurry(number)
