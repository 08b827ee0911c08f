"""How ``AsyncResult.get()`` waits: Celery's side of the :mod:`listener <pgqrs_celery.listener>`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from celery import states
from celery.backends.asynchronous import BaseResultConsumer

from pgqrs_celery.compat import drainer_timeout
from pgqrs_celery.encoding import id_of, meta_of
from pgqrs_core.forks import begin_anew_in_children

__all__ = ["ResultConsumer"]

#: Changes of what is waited for are sorted out when somebody waits, or when there are so many.
_MANY_CHANGES: Final = 1_000
_TURN: Final = 1.0


class ResultConsumer(BaseResultConsumer):
    """Waits for results on behalf of one backend.

    Celery names a result here as soon as an object for it exists; it is looked at only when somebody waits. Results are
    handed on in the waiting threads, never in the listener's, so callbacks run where Celery's users expect them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener = self.backend.listener
        self._begin()
        begin_anew_in_children(self)

    def _begin(self) -> None:
        self._looking = threading.Lock()
        self._local = threading.local()
        #: Appending is all that ``AsyncResult.__del__`` may do: it can run in any thread, with any lock held.
        self._changes: deque[tuple[bool, str]] = deque()
        self._rows: deque[Any] = deque()
        #: What is waited for, and in which epoch of the listener it was handed over.
        self._wanted: dict[str, int | None] = {}

    def begin_anew(self) -> None:
        """In a forked child: forget what the parent waits for."""
        self._begin()

    def on_after_fork(self) -> None:
        """Nothing is left to do: it was done in the child before anything else ran."""

    def consume_from(self, task_id: object) -> None:
        """Note that a result is waited for."""
        self._changes.append((True, id_of(task_id)))
        if len(self._changes) > _MANY_CHANGES and self._looking.acquire(blocking=False):
            try:
                self._sort_out()
            finally:
                self._looking.release()

    start = consume_from

    def cancel_for(self, task_id: object) -> None:
        """Note that a result is waited for no longer. Never blocks."""
        # Of one that may be no id nothing was waited for.
        with contextlib.suppress(ValueError):
            self._changes.append((False, id_of(task_id)))

    def stop(self) -> None:
        """Close the connection on which results are awaited."""
        self._listener.close()

    def receive(self, row: Any) -> None:
        """Take a row from the listener."""
        self._rows.append(row)

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Look whether what is waited for is there already.

        Raises:
            PgqrsError: the database cannot be reached, or has no tables: better now than to wait for nothing.
        """
        self._local.seen = self._listener.generation
        self._look()
        self._deliver()

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for a result, at most ``timeout`` seconds, and hand on what has come.

        Raises:
            TimeoutError: nothing came.
        """
        self._look()
        if self._deliver():
            return
        before = getattr(self._local, "seen", self._listener.generation)
        self._local.seen = self._listener.wait(before, _TURN if timeout is None else timeout)
        if not self._deliver() and self._local.seen == before:
            raise TimeoutError

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Iterator[Any]:
        """Wait until ``p`` is ready; as Celery does, but not beyond ``timeout``, and with a last read before giving up."""
        deadline = None if timeout is None else time.monotonic() + timeout

        def wait(timeout: float | None = None) -> None:
            left = _TURN if deadline is None else min(max(deadline - time.monotonic(), 0.0), _TURN)
            self.drain_events(left)

        interval = _TURN if timeout is None else min(max(timeout, 0.01), _TURN)
        drained: Iterator[Any] = self.drainer.drain_events_until(
            p, timeout=drainer_timeout(timeout), interval=interval, on_interval=on_interval, wait=wait
        )
        try:
            yield from drained
        except TimeoutError:
            # The connection that listens may hang.
            self._listener.read_once_more()
            self._deliver()
            if not p.ready:
                raise

    def _look(self) -> None:
        """Read all that is newly waited for, of all threads, in one statement; let the listener watch the rest."""
        with self._looking:
            self._sort_out()
            epoch = self._listener.epoch
            fresh = [task_id for task_id, known in self._wanted.items() if known != epoch]
            if not fresh:
                return
            rows = self.backend.read_rows(fresh)
            self._rows.extend(rows)
            done = {row[0] for row in rows if row[1] in states.READY_STATES}
            waiting = [task_id for task_id in fresh if task_id not in done]
            if waiting:
                self._listener.watch(waiting, self)
            for task_id in done:
                del self._wanted[task_id]
            self._wanted.update(dict.fromkeys(waiting, epoch))

    def _sort_out(self) -> None:
        """Apply the changes, in their order. The caller holds the lock."""
        gone = []
        while self._changes:
            wanted, task_id = self._changes.popleft()
            if wanted:
                self._wanted.setdefault(task_id, None)
            elif self._wanted.pop(task_id, None) is not None:
                gone.append(task_id)
        if gone:
            self._listener.unwatch(gone, self)

    def _deliver(self) -> bool:
        """Hand on what has come, for whichever thread it is; tell whether there was anything."""
        delivered = False
        while True:
            try:
                row = self._rows.popleft()
            except IndexError:
                break
            delivered = True
            if any(mapping.get(row[0]) for mapping in self._pending_results):
                self.on_state_change(self._meta(row), None)
        if delivered:
            self._listener.changed()
        return delivered

    def _meta(self, row: Any) -> dict[str, Any]:
        try:
            return meta_of(self.backend, row)
        except Exception as error:
            # It belongs to whoever waits for this task, not to the thread that happens to be here.
            return {"task_id": row[0], "status": states.FAILURE, "result": error, "traceback": None, "children": None}
