"""Threads that enqueue at the same time share a statement, and a write to disk.

Whoever comes while another one writes leaves his message, and waits; whoever is done writes what was left meanwhile, all of
it at once. A thread that is alone waits for nobody. While several come again and again, each write waits a moment for them:
those that were just served are the next to come.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pgqrs_core.errors import PgqrsError, Unavailable
from pgqrs_core.events import Draft
from pgqrs_core.weights import COALESCED_BYTES

__all__ = ["Combiner"]

#: Messages written together, at most.
_MOST: Final = 500
#: Seconds for which a write waits for others, where the last one had others: a part of what a write takes.
_GATHER: Final = 0.000_1


class _Entry:
    __slots__ = ("_done", "alone", "draft", "error")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        #: Whether its own thread is to write it: together with others it failed, perhaps because of them.
        self.alone = False
        self.error: Unavailable | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def wait(self) -> None:
        self._done.acquire()

    def finish(self) -> None:
        self._done.release()


class Combiner:
    """Writes the messages of one queue.

    Args:
        write: stores some, all or none.
    """

    def __init__(self, write: Callable[[list[Draft]], object]) -> None:
        self._write = write
        self._writing = threading.Lock()
        self._left: deque[_Entry] = deque()
        #: How many were written together the last time.
        self._crowd = 0

    def send(self, draft: Draft) -> None:
        """Store a message; return when it is stored. Raises what ``write`` raises."""
        if self._crowd < 2 and not self._left and self._writing.acquire(blocking=False):
            try:
                self._write([draft])
            finally:
                self._writing.release()
                self._write_what_was_left()
            return
        entry = _Entry(draft)
        self._left.append(entry)
        self._write_what_was_left()
        entry.wait()
        if entry.alone:
            self._write([draft])
        elif entry.error is not None:
            # A copy for each: one error that several threads raise gathers the frames of all.
            raise copy.copy(entry.error) from entry.error

    def _write_what_was_left(self) -> None:
        # Asked again after each turn: what was left when this one had looked, its own thread could not write.
        while self._left and self._writing.acquire(blocking=False):
            try:
                self._write_together()
            finally:
                self._writing.release()

    def _write_together(self) -> None:
        if len(self._left) < self._crowd:
            time.sleep(_GATHER)
        entries: list[_Entry] = []
        size = 0
        while self._left and len(entries) < _MOST:
            size += len(self._left[0].draft.body)
            if entries and size > COALESCED_BYTES:
                break
            entries.append(self._left.popleft())
        self._crowd = len(entries)
        if not entries:
            return
        try:
            self._write([entry.draft for entry in entries])
        except Unavailable as error:
            self._fail(entries, error)
        except PgqrsError:
            for entry in entries:
                entry.alone = True
        except BaseException:
            interrupted = "the thread that was storing it with others was interrupted: it may be stored or not"
            self._fail(entries, Unavailable(interrupted, in_flight=True))
            raise
        finally:
            for entry in entries:
                entry.finish()

    @staticmethod
    def _fail(entries: list[_Entry], error: Unavailable) -> None:
        for entry in entries:
            entry.error = error
