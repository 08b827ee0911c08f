"""Closes connections that have been idle for a while, so that a process that has nothing to do holds few.

One thread serves all blocking pools of the process. It starts with the first idle connection, and ends when none is open
any more: a pool whose connections are all in use at a moment is served on, or busy programs would start a thread for each
statement. The asynchronous pools have a timer of their event loop each.
"""

from __future__ import annotations

import os
import threading
from typing import Final, Protocol
from weakref import WeakSet

from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.supervision import is_interpreter_ending, start_thread

__all__ = ["CLOSER", "IdleCloser"]

#: Seconds between two looks at the least.
_SHORTEST: Final = 0.05
#: Seconds for which a fork waits for the thread to end.
_FORK: Final = 1.0
_NAME: Final = "pgqrs-idle-connections"


class Pool(Protocol):
    """A pool that has idle connections."""

    #: Whether it is served.
    is_watched: bool

    def close_idle(self) -> float | None:
        """Close what has been idle for long; return in how many seconds to come again, None if nothing is open."""


class IdleCloser:
    """Serves the pools of this process. Thread-safe; a forked child begins anew."""

    def __init__(self) -> None:
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: the connections and the thread are the parent's."""
        self._lock = threading.Lock()
        self._pools: WeakSet[Pool] = WeakSet()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._called = threading.Event()

    def stop_before_fork(self) -> None:
        """End the thread: a process that has no other one is to fork without any, which Python 3.12 and later warn of."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._stopped = True
            # Its own, so that it ends even if that takes until after the fork.
            called, self._called = self._called, threading.Event()
            called.set()
            thread.join(_FORK)

    def go_on_after_fork(self) -> None:
        """In the parent: start the thread again if there is something for it to do."""
        if self._stopped:
            with self._lock:
                self._stopped = False
                if self._pools:
                    self._thread = start_thread(self._run, name=_NAME)

    def watch(self, pool: Pool) -> None:
        """Serve a pool until nothing in it is open."""
        with self._lock:
            self._pools.add(pool)
            if self._thread is None or not self._thread.is_alive():
                try:
                    self._thread = start_thread(self._run, name=_NAME)
                except RuntimeError as error:
                    # Connections end with the interpreter.
                    if not is_interpreter_ending(error):
                        raise
                    self._thread = None
            else:
                # What is idle in this pool may be closed sooner than what the thread waits for.
                self._called.set()
            # Last, under the lock: who is struck by an exception before this asks again.
            pool.is_watched = True

    def _run(self) -> None:
        called = self._called
        while called is self._called and (pause := self._round()) is not None:
            called.wait(max(pause, _SHORTEST))
            called.clear()

    def _round(self) -> float | None:
        """Serve each pool; return in how many seconds to do so again, None if there is none left."""
        pauses = []
        for pool in list(self._pools):
            # Under the lock, so that a pool which has something idle again meanwhile is added after this.
            with self._lock:
                pause = pool.close_idle()
                if pause is None:
                    pool.is_watched = False
                    self._pools.discard(pool)
                else:
                    pauses.append(pause)
        with self._lock:
            if not self._pools:
                self._thread = None
                return None
        return min(pauses, default=_SHORTEST)


#: Of this process.
CLOSER: Final = IdleCloser()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=CLOSER.stop_before_fork, after_in_parent=CLOSER.go_on_after_fork)
