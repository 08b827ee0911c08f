"""What workers do beside their tasks: removing expired results, and taking over chords. One of them at a time."""

from __future__ import annotations

import secrets
import threading
from typing import Any, Final

from celery import signals

from pgqrs_celery import chord_operations, operations
from pgqrs_celery.sql import COMPONENT, MIGRATIONS
from pgqrs_core.engine import Engine
from pgqrs_core.errors import PgqrsError, SchemaMissing
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.maintenance import elect, resign
from pgqrs_core.operations.schema import check_component
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import join, start_thread
from pgqrs_core.this_process import this_process

__all__ = ["Housekeeper"]

_log = get_logger("pgqrs.celery")

_ROLE: Final = "celery results"


class Housekeeper:
    """Keeps house for one worker process, on a thread of its own, while no other worker does.

    It connects for each round and disconnects after it: between two rounds an idle worker holds no connection for this.

    Args:
        backend: whose results.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._interval: float = backend.config.queue.cleanup_interval_seconds
        self._holder = secrets.randbits(62)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, with a round at once."""
        self._thread = start_thread(self._run, name="pgqrs-celery-housekeeping")

    def stop(self) -> None:
        """End, and let another worker take over at once."""
        self._stopped.set()
        join(self._thread)

    def round(self) -> bool:
        """Do one round if no other worker does; tell whether it was ours to do."""
        with Engine(self._backend.config) as engine:
            try:
                engine.run(check_component, engine.schema, COMPONENT, MIGRATIONS)
            except SchemaMissing:
                # Whoever stores the first result installs it, or says that it is missing.
                return False
            if not engine.transact(elect, self._holder, self._interval * 2.5, this_process(), role=_ROLE):
                return False
            engine.run(operations.prune)
            abandoned = engine.run(chord_operations.abandoned)
        if abandoned:
            self._backend.take_over_chords()
        return True

    def _run(self) -> None:
        try:
            while True:
                try:
                    self.round()
                # A chord's body may raise anything when it is published; the next round tries again.
                except Exception as error:
                    text = "the clean-up of results failed, next try in %g s: %s"
                    OUTAGES.warn(self._backend.config.target, error, _log, text, self._interval)
                if self._stopped.wait(self._interval):
                    break
        finally:
            self._resign()

    def _resign(self) -> None:
        try:
            with Engine(self._backend.config) as engine:
                engine.transact(resign, self._holder, role=_ROLE)
        except PgqrsError as error:
            _log.debug("could not hand the clean-up over: %s", error)


_running: dict[int, Housekeeper] = {}


@signals.worker_ready.connect
def _start(sender: Any = None, **_: Any) -> None:
    """Begin when a worker with this backend is ready."""
    # Imported late: the backend imports this module to have it listen.
    from pgqrs_celery.backend import PgqrsBackend

    backend = sender.app.backend
    if isinstance(backend, PgqrsBackend):
        housekeeper = _running[id(sender.app)] = Housekeeper(backend)
        housekeeper.start()


@signals.worker_shutdown.connect
def _stop(sender: Any = None, **_: Any) -> None:
    housekeeper = _running.pop(id(sender.app), None)
    if housekeeper is not None:
        housekeeper.stop()
