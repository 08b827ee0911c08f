"""What all consumers of a process share: the thread that claims, the one that settles, the one that renews leases."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

from pgqrs_core.errors import PgqrsError, SchemaError, Unavailable
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.logs import get_logger
from pgqrs_core.operations import maintenance
from pgqrs_core.outages import OUTAGES
from pgqrs_core.settling import Settler
from pgqrs_core.this_process import this_process
from pgqrs_dramatiq import operations
from pgqrs_dramatiq.intake import Intake
from pgqrs_dramatiq.plugin import ADAPTER

if TYPE_CHECKING:
    from pgqrs_dramatiq.database import Database

__all__ = ["Runtime", "runtime_of"]

_log = get_logger("pgqrs.dramatiq")

_ROLE: Final = "dramatiq results"


class Runtime:
    """Made at the first consumer, closed with the connections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine = database.engine
        self._interval: float = database.config.queue.cleanup_interval_seconds
        self._holder = secrets.randbits(62)
        self._round_at = time.monotonic() + self._interval
        self.keeper = LeaseKeeper(self._engine)
        self.settler = Settler(self._engine, self.keeper, ADAPTER)
        self.intake = Intake(self._engine, self.keeper, self.settler, self._on_round)
        # Now, by a thread that Dramatiq does not interrupt.
        self.settler.start()
        database.deputies.start()

    def flush(self) -> None:
        """Write now what was settled; what cannot be written is kept and tried again."""
        try:
            self.settler.flush()
        except Unavailable as error:
            text = "%d messages could not be settled yet: %s"
            OUTAGES.warn(self._engine.connections.target, error, _log, text, self.settler.pending)

    def close(self) -> None:
        """Give back what was not delivered, write what was settled, and stop renewing leases."""
        self.intake.close()
        self.settler.close()
        self.keeper.close()

    def _on_round(self) -> None:
        if time.monotonic() >= self._round_at:
            self._round_at = time.monotonic() + self._interval
            self._database.deputies.submit(self._keep_house)

    def _keep_house(self) -> None:
        """Remove what has expired, if no other process does."""
        # Neither stops the other.
        for clean in (self._clean_queues, self._clean_results):
            try:
                clean()
            except SchemaError as error:
                # A database without the tables of results: no program uses them, or it is told so itself.
                _log.debug("there are no results to clean up: %s", error)
            except PgqrsError as error:
                text = "the clean-up failed, next try in %g s: %s"
                OUTAGES.warn(self._engine.connections.target, error, _log, text, self._interval)

    def _clean_queues(self) -> None:
        engine = self._engine
        if engine.run(maintenance.elect, self._holder, 2.5 * self._interval, this_process()):
            engine.run(maintenance.maintain, engine.schema)

    def _clean_results(self) -> None:
        engine = self._engine
        if engine.run(maintenance.elect, self._holder, 2.5 * self._interval, this_process(), role=_ROLE):
            self._database.prepare(own_tables=True)
            engine.run(operations.prune)


def runtime_of(database: Database) -> Runtime:
    """Return this process's runtime for a database."""
    return database.belonging("runtime", lambda: Runtime(database))
