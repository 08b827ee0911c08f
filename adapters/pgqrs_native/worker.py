"""A worker: handlers, run on threads for messages as they come.

One thread claims for all queues, several run handlers, one writes outcomes, one renews leases. The asyncio twin is
:mod:`pgqrs_native.async_worker`.
"""

from __future__ import annotations

import contextlib
import logging
import queue as queues
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Literal

from pgqrs_core.errors import PgqrsError, QueueNotFound, Unavailable
from pgqrs_core.operations.claim import is_last
from pgqrs_core.operations.maintenance import elect, maintain, resign
from pgqrs_core.operations.traffic import incoming
from pgqrs_native.client import Client
from pgqrs_native.roster import CLAIM, LATE, PAUSE, TICK, Roster
from pgqrs_native.routing import Outcome, Task, note_failed, note_refused, note_returned, outcomes_of, sort_out
from pgqrs_native.settler import portions
from pgqrs_native.shared import check_archives, marker
from pgqrs_native.traffic import ADAPTER, surrounding

__all__ = ["Worker"]

_log = logging.getLogger("pgqrs.worker")


class Worker(Roster):
    """Runs handlers for the messages of some queues until it is stopped.

    Args:
        client: where the queues are; it stays the caller's to close.
        concurrency: how many handlers run at once (1 to 1,000), each on a thread.
        prefetch: how many messages to hold ready beyond those being handled (0 to 10,000); they are kept from other
            workers. By default what the configuration says.
        shutdown_timeout: seconds that running handlers get to finish once the worker is stopped.
        on_success: ``"ack"`` removes handled messages, ``"archive"`` moves them to the queue's archive.
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
        housekeeping: bool = True,
    ) -> None:
        super().__init__(
            client.config,
            client.engine.plugins,
            _log,
            concurrency=concurrency,
            most=1_000,
            prefetch=prefetch,
            shutdown_timeout=shutdown_timeout,
            on_success=on_success,
            housekeeping=housekeeping,
        )
        self._client = client
        self._stopping = threading.Event()
        self._tasks: queues.SimpleQueue[Task | None] = queues.SimpleQueue()
        self._pending: list[Outcome] = []
        self._changed = threading.Condition()
        #: Messages claimed and not yet settled, and those whose handlers run.
        self._held = 0
        #: Whether a message on its last attempt is among them: whoever dies with it must not take others along.
        self._alone = False
        self._running: dict[int, Task] = {}
        self._claiming = True
        self._signalled = False
        #: Whether nobody waits for outcomes to be written any more.
        self._abandoned = False

    def run(self, *, signals: bool = True) -> None:
        """Work until `stop` is called or a signal comes.

        With ``signals`` (in the main thread only) SIGTERM and SIGINT stop gracefully: nothing more is claimed, what was
        not begun goes back at once, and running handlers get ``shutdown_timeout`` seconds; what then still runs goes
        back too. A second signal raises KeyboardInterrupt at once; leases end by themselves.

        Raises:
            QueueNotFound: a queue with a handler does not exist.
            ConfigurationError: there are no handlers.
        """
        known = [self._client.engine.queue(name) for name in self._served()]
        check_archives(known, self._success)
        threads = [
            threading.Thread(target=self._handle, name=f"pgqrs-handler-{n}", daemon=True)
            for n in range(self._concurrency)
        ]
        settler = threading.Thread(target=self._settle, name="pgqrs-settler", daemon=True)
        housekeeper = threading.Thread(target=self._keep_house, name="pgqrs-housekeeper", daemon=True)
        with self._signals() if signals else contextlib.nullcontext():
            for thread in threads:
                thread.start()
            settler.start()
            if self._housekeeping:
                housekeeper.start()
            graceful = True
            try:
                self._claim([queue.name for queue in known])
            except KeyboardInterrupt:
                graceful = not self._signalled
                raise
            finally:
                self._claiming = False
                try:
                    if graceful:
                        self._wind_up(threads, settler)
                        if self._housekeeping:
                            housekeeper.join(TICK)
                finally:
                    self._abandoned = True

    def stop(self) -> None:
        """Stop gracefully, from any thread; `run` returns when all is settled."""
        self._stopping.set()
        self._client.engine.wakeups.interrupt()
        with self._changed:
            self._changed.notify_all()

    # Claiming, in the thread that called run()

    def _claim(self, names: list[str]) -> None:
        pause = 0.1
        hungry = list(names)
        while not self._stopping.is_set():
            room = self._room()
            if not room:
                continue
            try:
                hungry = [name for name in hungry if self._look_into(name)]
                pause = 0.1
                if not hungry:
                    hungry = self._wait(names)
            except PgqrsError as error:
                _log.warning("cannot claim, next try in %.1f s: %s", pause, error)
                self._stopping.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, TICK)
                hungry = list(names)

    def _look_into(self, name: str) -> bool:
        """Claim from a queue; one that has gone is none of the others' business."""
        try:
            return self._claim_from(name)
        except Unavailable:
            raise
        except PgqrsError as error:
            self._aside.put(name, error, TICK if isinstance(error, QueueNotFound) else PAUSE)
            return False

    def _room(self) -> int:
        """Wait for room; return for how many messages there is, 0 when stopped."""
        most = self._concurrency + self._prefetch
        with self._changed:
            # A full worker refills when a good part is done, so that claims stay fat.
            self._changed.wait_for(lambda: self._stopping.is_set() or self._held <= self._bearable(most), TICK)
            self._alone = self._alone and self._held > 0
            return 0 if self._stopping.is_set() or self._alone else max(most - self._held, 0)

    def _bearable(self, most: int) -> int:
        """Return with how many messages in hand to claim more: with none while one of them is on its last attempt."""
        return 0 if self._alone else most - max(most // 4, 1)

    def _claim_from(self, name: str) -> bool:
        """Claim what there is room for; tell whether the queue may hold more."""
        room = self._room()
        if not room:
            return True
        engine = self._client.engine
        limit = min(room, CLAIM)
        queue = engine.queue(name)
        lease = queue.options.lease_seconds
        marks = self._marks.take(queue.id)
        try:
            found = engine.on(
                name,
                incoming,
                marks,
                limit=limit,
                lease=lease,
                patience=0.0,
                plugins=engine.plugins,
                adapter=ADAPTER,
                managed=True,
            )
        finally:
            self._marks.give(queue.id, marks)
        if not found:
            return False
        tasks, refused = sort_out(
            self._routes, queue, found, plugins=engine.plugins, claimed_at=time.time(), lease_seconds=lease
        )
        with self._changed:
            self._held += len(found)
            self._alone = self._alone or is_last(queue, found)
        messages = [message for task in tasks for message in task.messages]
        self._client.keeper.hold(queue, [message.lease for message in messages], lease, marker(messages))
        for task in tasks:
            self._tasks.put(task)
        if refused:
            note_refused(refused, _log)
            self._report(refused)
        return len(found) == limit or self._alone

    def _wait(self, names: list[str]) -> list[str]:
        queues_now = []
        for name in self._aside.others(names):
            try:
                # What was last known will do: a claim looks anew, and an idle worker asks nothing.
                queues_now.append(self._client.engine.known(name) or self._client.engine.queue(name))
            except QueueNotFound as error:
                self._aside.put(name, error, TICK)
        wakeups = self._client.engine.wakeups
        _, where = wakeups.wait_any(queues_now, self._aside.patience(TICK), self._stopping.is_set)
        if not where and wakeups.watch.is_stale():
            # The wake-up connection is silent: nobody will say where there is something.
            where = queues_now
        return [*(queue.name for queue in where), *self._aside.due()]

    # Handling, on the handlers' threads

    def _handle(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._stopping.is_set():
                self._report([Outcome(message, "release") for message in task.messages])
                continue
            key = id(task)
            with self._changed:
                self._running[key] = task
            result: Any = None
            failure: BaseException | None = None
            try:
                function = task.route.function
                with surrounding(self._client.engine.plugins, task.messages) as handling:
                    result = function(task.messages if task.route.batch is not None else task.messages[0])
                    note_returned(handling, task, result)
            except BaseException as error:
                failure = error
                note_failed(task, error, _log)
            outcomes = outcomes_of(task, result, failure, success=self._success)
            with self._changed:
                self._running.pop(key, None)
            self._report(outcomes)

    def _report(self, outcomes: list[Outcome]) -> None:
        with self._changed:
            self._pending.extend(outcomes)
            self._changed.notify_all()

    # Settling, on a thread of its own

    def _settle(self) -> None:
        pause = 0.05
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or not (self._claiming or self._held))
                outcomes, self._pending = self._pending, []
                if not outcomes:
                    return
            failed = self._write(outcomes)
            if failed and self._abandoned:
                # Without an outcome they come back when their leases end.
                self._client.keeper.drop(outcome.message.lease for outcome in failed)
                return
            if failed:
                with self._changed:
                    self._pending = failed + self._pending
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            else:
                pause = 0.05

    def _write(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Write outcomes; return those that could not be written yet."""
        engine = self._client.engine
        done = sum(outcome.action == "none" for outcome in outcomes)
        self._client.keeper.drop(outcome.message.lease for outcome in outcomes if outcome.action == "none")
        failed: list[Outcome] = []
        for portion in portions(outcomes):
            try:
                engine.run(portion.write, engine.plugins, engine.doorbell)
            except Unavailable as error:
                _log.warning("%d outcomes could not be written yet: %s", len(portion.outcomes), error)
                failed += portion.outcomes
                continue
            except Exception:
                # Trying again would not help; without an outcome the messages come back when their leases end.
                _log.exception("%d outcomes (%s) cannot be written", len(portion.outcomes), portion.action)
            else:
                portion.note_lost(_log)
            self._client.keeper.drop(outcome.message.lease for outcome in portion.outcomes)
            done += len(portion.outcomes)
        with self._changed:
            self._held -= done
            self._changed.notify_all()
        return failed

    # Stopping

    def _wind_up(self, threads: list[threading.Thread], settler: threading.Thread) -> None:
        self._stopping.set()
        with contextlib.suppress(queues.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    self._report([Outcome(message, "release") for message in task.messages])
        for _ in threads:
            self._tasks.put(None)
        deadline = time.monotonic() + self._shutdown_timeout
        with self._changed:
            self._changed.notify_all()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if any(thread.is_alive() for thread in threads):
            with self._changed:
                late = [message for task in self._running.values() for message in task.messages if message.open]
            _log.warning("%d messages go back: their handlers did not finish in time", len(late))
            self._report([Outcome(message, "nack", LATE, 0.0) for message in late])
        settler.join(TICK)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before: dict[signal.Signals, Any] = {}

        # The thread that a signal interrupts may hold any lock, those of logging and of events included. Only this
        # queue may be used there; everything else is done by a thread that listens to it.
        caught: queues.SimpleQueue[int | None] = queues.SimpleQueue()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True
            caught.put(number)

        def listen() -> None:
            number = caught.get()
            if number is not None:
                _log.info("signal %d: finishing what runs", number)
                self.stop()

        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=listen, name="pgqrs-signals", daemon=True).start()
            for one in (signal.SIGTERM, signal.SIGINT):
                before[one] = signal.signal(one, on_signal)
        try:
            yield
        finally:
            for one, old in before.items():
                signal.signal(one, old)
            caught.put(None)

    # Housekeeping, on a thread of its own

    def _keep_house(self) -> None:
        engine = self._client.engine
        me = secrets.randbits(62)
        interval = self._client.config.queue.cleanup_interval_seconds
        elected = False
        while not self._stopping.wait(interval * random.uniform(0.8, 1.0)):
            try:
                elected = engine.run(elect, me, 3 * interval)
                if elected:
                    engine.run(maintain, engine.schema)
            except PgqrsError as error:
                _log.warning("housekeeping is put off: %s", error)
        if elected:
            with contextlib.suppress(PgqrsError):
                engine.run(resign, me)
