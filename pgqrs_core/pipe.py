"""A pipe by which a thread wakes another one, or an event loop, that waits for descriptors."""

from __future__ import annotations

import contextlib
import os

from pgqrs_core.readiness import Readiness

__all__ = ["Pipe"]


class Pipe:
    """Both ends never block. Writing from one thread while another closes is harmless."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def write(self) -> None:
        """Make the reading end readable."""
        writer = self._writer
        # A full pipe is readable already.
        with contextlib.suppress(OSError):
            if writer >= 0:
                os.write(writer, b"!")

    def drain(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(OSError):
            os.read(self.reader, 4096)

    def wait(self, seconds: float, *others: int) -> None:
        """Wait until somebody has written, one of the ``others`` can be read, or ``seconds`` are over; then drain it."""
        if self.reader in Readiness(*others, self.reader).wait(seconds):
            self.drain()

    def close(self) -> None:
        """Close both ends."""
        writer, self._writer = self._writer, -1
        if writer >= 0:
            os.close(writer)
            os.close(self.reader)
