"""Listens to Celery's workers: their events, and once in some seconds what they answer to an inspection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from celery import Celery
from psycopg.conninfo import conninfo_to_dict

from pgqrs_core.depths import Depths
from pgqrs_core.logs import error_text, get_logger
from pgqrs_core.supervision import join, start_thread
from pgqrs_prometheus.celery_metrics import CeleryMetrics

if TYPE_CHECKING:
    from pgqrs_core.config import Config
    from pgqrs_core.engine import Engine

__all__ = ["CeleryListener"]

_log = get_logger("pgqrs.prometheus")

#: Seconds that workers have for an answer, and until the next try when the server is away.
_ANSWER: Final = 1.0
_RETRY: Final = 1.0


class CeleryListener:
    """Feeds `metrics`, which is to be registered, by two threads until it is closed.

    Args:
        engine: where the broker's tables are; it stays the caller's to close.
        seconds: the time between two inspections, and for how long lengths of queues are used again.
    """

    def __init__(self, engine: Engine, *, seconds: float) -> None:
        self._depths = Depths(engine, seconds=seconds)
        self._seconds = max(seconds, _ANSWER)
        self.metrics = CeleryMetrics(self._lengths)
        self._app = Celery("pgqrs-metrics", broker=broker_url(engine.config), set_as_current=False)
        self._app.conf.broker_transport_options = {"schema": engine.schema, "create_schema": False}
        self._stopped = threading.Event()
        self._said = ""
        self._receiver: Any = None
        self._threads = [
            start_thread(self._receive, name="pgqrs-celery-events"),
            start_thread(self._inspect, name="pgqrs-celery-inspect"),
        ]

    def close(self) -> None:
        """Stop listening."""
        self._stopped.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        for thread in self._threads:
            join(thread)
        self._app.close()

    def _lengths(self) -> dict[str, int] | None:
        found = self._depths.look()
        return None if found is None else {one.queue: one.ready for one in found}

    def _receive(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._app.connection_for_read() as connection:
                    self._capture(connection)
            # Whatever it is, events that come later are counted.
            except Exception as error:
                self._say(error)
                self._stopped.wait(_RETRY)

    def _capture(self, connection: Any) -> None:
        receiver = self._app.events.Receiver(connection, handlers={"*": self._on_event})
        self._receiver = receiver
        # It asks once a second whether it should stop.
        receiver.should_stop = self._stopped.is_set()
        receiver.capture(limit=None, timeout=None, wakeup=True)

    def _on_event(self, event: dict[str, Any]) -> None:
        self._said = ""
        try:
            self.metrics.event(event)
        # Any program may send events; one that is none must not keep the others from being counted.
        except Exception as error:
            _log.debug("an event of Celery cannot be counted: %s", error_text(error))

    def _inspect(self) -> None:
        while not self._stopped.is_set():
            try:
                inspect = self._app.control.inspect(timeout=_ANSWER)
                stats = inspect.stats()
                self.metrics.answers(inspect.active_queues() if stats else None, stats)
            except Exception as error:
                self._say(error)
            self._stopped.wait(self._seconds)

    def _say(self, error: Exception) -> None:
        text = error_text(error)
        if text != self._said:
            self._said = text
            _log.warning("Celery's workers cannot be listened to, which is tried again: %s", text)


def broker_url(config: Config) -> str:
    """Return the address of the broker that has its tables where ``config`` says; it holds the password."""
    parameters = conninfo_to_dict(config.conninfo())
    name = quote(str(parameters.pop("dbname", "")), safe="")
    return f"pgqrs:///{name}?{urlencode(parameters, quote_via=quote)}"
