"""Ending the threads that this package starts."""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["join"]

#: Seconds for which whoever closes something waits for its thread; the threads are daemons, so none keeps a process.
_PATIENCE: Final = 5.0


def join(thread: threading.Thread | None) -> None:
    """Wait a few seconds until a thread that was told to end has ended; not where it is the caller itself."""
    if thread is not None and thread is not threading.current_thread():
        thread.join(timeout=_PATIENCE)
