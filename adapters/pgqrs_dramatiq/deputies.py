"""Threads that talk to the database in the place of Dramatiq's worker threads.

Dramatiq ends an actor by raising `TimeLimitExceeded` or `Shutdown` in its thread, at whatever instruction that is. In the
middle of a statement, or of the bookkeeping of a pool, that would leave a connection or a lock behind for good. So what a
worker thread wants done is done by a thread that nobody interrupts. The worker waits for it by a lock of C, which an
exception does not end: it is raised when the answer is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from dramatiq.worker import _WorkerThread

from pgqrs_core.interrupts import FAILURES
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.supervision import join, start_thread

__all__ = ["Deputies"]

_log = get_logger("pgqrs.dramatiq")

T = TypeVar("T")

#: As many as there are connections for them beside the one that claims.
COUNT: Final = 2


class _Job(Generic[T]):
    __slots__ = ("_task", "done", "error", "result")

    def __init__(self, task: Callable[[], T]) -> None:
        self._task = task
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._task()
        except BaseException as error:
            self.error = error
        finally:
            self.done.release()


class Deputies:
    """Does what worker threads want done. The threads start when there is something to do."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def start(self) -> None:
        """Start the threads, unless they run."""
        with self._starting:
            if self._threads or self._closed:
                return
            for number in range(COUNT):
                self._threads.append(start_thread(self._run, name=f"pgqrs-dramatiq-{number}"))

    def call(self, task: Callable[[], T]) -> T:
        """Return what ``task`` returns, or raise what it raises; it runs elsewhere if this is a worker thread."""
        if self._closed or not isinstance(threading.current_thread(), _WorkerThread):
            return task()
        job = _Job(task)
        self.submit_job(job)
        job.done.acquire()
        if job.error is not None:
            # Raised in two threads, it would gather the frames of both.
            raise job.error.with_traceback(None)
        return job.result  # type: ignore[return-value]

    def submit(self, task: Callable[[], object]) -> None:
        """Have something done soon, and do not wait for it. What it raises is logged."""

        def contained() -> None:
            try:
                task()
            except FAILURES as error:
                _log.error(
                    "something that was to be done in the background failed: %s", error_text(error), exc_info=error
                )

        self.submit_job(_Job(contained))

    def submit_job(self, job: _Job[Any]) -> None:
        """Put a job into the queue."""
        self._jobs.put(job)
        if not self._threads:
            self.start()

    def close(self) -> None:
        """Do what is left to do, and end the threads."""
        with self._starting:
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            join(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            # Its result may be large, and the next job may be long in coming.
            del job
