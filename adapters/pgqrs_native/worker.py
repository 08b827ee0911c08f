"""A worker: handlers, run on threads for messages as they come.

One thread claims for all queues, several run handlers, one writes outcomes, one renews leases. What they do is in
:mod:`pgqrs_native.duties`; the asyncio twin is :mod:`pgqrs_native.async_worker`.
"""

from __future__ import annotations

import contextlib
import queue as queues
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pgqrs_core.conditions import Condition
from pgqrs_core.logs import get_logger
from pgqrs_core.supervision import start_thread
from pgqrs_native.client import Client
from pgqrs_native.courses import follow
from pgqrs_native.duties import LATE, TICK, Duties
from pgqrs_native.load import Load
from pgqrs_native.routing import Outcome, Task, conclude, note_returned
from pgqrs_native.signals import HardStop, Signals
from pgqrs_native.traffic import surrounding

__all__ = ["Worker"]

_log = get_logger("pgqrs.worker")


class Worker(Duties):
    """Runs handlers for the messages of some queues until it is stopped.

    Args:
        client: where the queues are; it stays the caller's to close.
        concurrency: how many handlers run at once (1 to 1,000), each on a thread.
        prefetch: how many messages to hold ready beyond those being handled (0 to 10,000); they are kept from other
            workers. By default what the configuration says.
        shutdown_timeout: seconds that running handlers get to finish once the worker is stopped.
        on_success: ``"ack"`` removes handled messages, ``"archive"`` moves them to the queue's archive.
        on_unknown: what becomes of a message whose ``message_type``, content type, codec or key this worker does not know,
            as happens while a new version is rolled out: ``"retry"`` gives it back for a worker that knows it; it comes
            again after half its age, within 1 to 60 seconds, and its attempts do not count. ``"bury"`` dead-letters it.
        housekeeping: whether this process may be elected to do the housekeeping of the schema.
    """

    def __init__(
        self,
        client: Client,
        *,
        concurrency: int = 8,
        prefetch: int | None = None,
        shutdown_timeout: float = 30.0,
        on_success: Literal["ack", "archive"] = "ack",
        on_unknown: Literal["retry", "bury"] = "retry",
        housekeeping: bool = True,
    ) -> None:
        super().__init__(
            client,
            concurrency=concurrency,
            most=1_000,
            prefetch=prefetch,
            shutdown_timeout=shutdown_timeout,
            on_success=on_success,
            on_unknown=on_unknown,
            housekeeping=housekeeping,
        )
        self._changed = Condition()
        self._tasks: queues.SimpleQueue[Task | None] = queues.SimpleQueue()
        self._running: dict[int, Task] = {}

    def run(self, *, signals: bool = True) -> None:
        """Work until `stop` is called or a signal comes.

        With ``signals`` (in the main thread only) SIGTERM and SIGINT stop gracefully: nothing more is claimed, what was
        not begun goes back at once, and running handlers get ``shutdown_timeout`` seconds; what then still runs goes
        back too. A second signal ends the process at once, by `SystemExit` with 128 and the number of the signal as its
        status; leases end by themselves. The same signal again within a second does not count. When `run` returns, the
        signals have their previous handlers.

        Raises:
            WorkerStopped: the worker was stopped, or runs already; each runs once.
            QueueNotFound: a queue with a handler does not exist.
            ConfigurationError: there are no handlers.
        """
        self._start_running()
        names = follow(self._opening())
        threads: list[threading.Thread] = []
        settler = housekeeper = None
        with self._signals() if signals else contextlib.nullcontext() as handled:
            try:
                for number in range(self._concurrency):
                    # One by one: those that were started must be ended if there can be no more.
                    threads += [start_thread(self._handle, name=f"pgqrs-handler-{number}")]
                settler = start_thread(lambda: follow(self._settling()), name="pgqrs-settler")
                if self._housekeeping:
                    housekeeper = start_thread(lambda: follow(self._keeping_house()), name="pgqrs-housekeeper")
                follow(self._claiming(names))
            finally:
                self._load.claiming = False
                try:
                    if handled is None or not handled.hurried:
                        self._wind_up(threads, settler)
                        if housekeeper is not None:
                            housekeeper.join(TICK)
                finally:
                    with self._changing() as load:
                        load.abandoned = True

    def stop(self) -> None:
        """Stop gracefully, from any thread; `run` returns when all is settled."""
        with self._changing() as load:
            load.stopping = True
        self._engine.wakeups.interrupt()

    # The load is guarded by a condition

    def _until(self, so: Callable[[], bool], seconds: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(so, seconds)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Load]:
        with self._changed:
            yield self._load
            self._changed.notify_all()

    # Handling, on the handlers' threads

    def _begin(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._tasks.put(task)

    def _handle(self) -> None:
        while (task := self._tasks.get()) is not None:
            with self._changing() as load:
                if load.stopping:
                    load.give_back(task)
                    continue
                self._running[id(task)] = task
            outcomes = self._call(task)
            with self._changing() as load:
                del self._running[id(task)]
                load.report(outcomes)

    def _call(self, task: Task) -> list[Outcome]:
        result: Any = None
        failure: BaseException | None = None
        try:
            function = task.route.function
            with surrounding(self._engine.plugins, task.messages) as handling:
                result = function(task.messages if task.route.batch is not None else task.messages[0])
                note_returned(handling, task, result)
        except BaseException as error:
            failure = error
        return conclude(task, result, failure, success=self._success, log=_log)

    # Stopping

    def _wind_up(self, threads: list[threading.Thread], settler: threading.Thread | None) -> None:
        with self._changing() as load:
            load.stopping = True
            with contextlib.suppress(queues.Empty):
                while (task := self._tasks.get_nowait()) is not None:
                    load.give_back(task)
        for _ in threads:
            self._tasks.put(None)
        deadline = time.monotonic() + self._shutdown_timeout
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if any(thread.is_alive() for thread in threads):
            with self._changing() as load:
                late = [message for task in self._running.values() for message in task.messages if message.open]
                load.report([Outcome(message, "nack", LATE, 0.0) for message in late])
            _log.warning("%d messages go back: their handlers did not finish in time", len(late))
        if settler is not None:
            # What the server refuses for a while is tried again as long as handlers would have been waited for.
            settler.join(max(deadline - time.monotonic(), TICK))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[Signals]:
        # In a signal's handler only this queue may be used; everything else is done by a thread that listens to it.
        caught: queues.SimpleQueue[int | None] = queues.SimpleQueue()

        def listen() -> None:
            number = caught.get()
            if number is not None:
                _log.info("signal %d: finishing what runs", number)
                self.stop()

        def hurry(number: int) -> None:
            raise HardStop(number)

        try:
            with Signals(caught.put, hurry) as handled:
                start_thread(listen, name="pgqrs-signals", restart=False)
                yield handled
        finally:
            caught.put(None)
