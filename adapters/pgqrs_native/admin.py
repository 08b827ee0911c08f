"""The blocking client's part for administrators. Its twin is :mod:`pgqrs_native.async_admin`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pgqrs_core.engine import Engine
from pgqrs_core.messages import ArchivedMessage, DeadMessage, InspectedMessage, Metrics, Queue, Snapshot
from pgqrs_core.operations import archives, by_id, dead, maintenance, metrics, queues, repair, roles, schema, uninstall
from pgqrs_core.operations.by_id import Deleted
from pgqrs_core.operations.maintenance import Housekeeping
from pgqrs_core.operations.repair import Repair
from pgqrs_core.operations.roles import RolesPlan
from pgqrs_native.shared import queue_options

__all__ = ["Admin"]


class Admin:
    """The schema, the queues, their figures, dead letters and archives."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def install(self, *, roles: bool = False, role_prefix: str | None = None) -> list[str]:
        """Create or upgrade the tables; return the steps that were taken, none when all was there.

        Args:
            roles: also make group roles for producers, consumers, observers and administrators, and grant them what each
                needs, now and whenever a queue is created. The tables come to belong to the administrators' role; who
                owned them becomes a member of it, and keeps all its rights. See `plan_roles`.
            role_prefix: what the roles' names begin with; by default the name of the schema.

        Raises:
            NotPermitted: this role may not make tables or roles; the error says what it takes.
            TableLocked: a table stayed locked for half a minute; the error names the session. Run it again.
            QueuesFailed: the tables of some queues could not be upgraded; those of the others are.
        """
        return self._engine.run(
            schema.install_all, self._engine.schema, self._engine.plugins, roles=roles, role_prefix=role_prefix
        )

    def plan_roles(self, role_prefix: str | None = None) -> RolesPlan:
        """Return what `install` with ``roles`` would change now: roles, owners of tables, memberships. Changes nothing.

        Raises:
            InvalidArgument: the prefix cannot be used, or another one was chosen before.
        """
        return self._engine.run(roles.plan_roles, self._engine.schema, self._engine.plugins, role_prefix)

    def repair(self, *, dry_run: bool = False) -> Repair:
        """Mend what a restore has left incomplete, and install what is missing. Run it while no program uses the schema.

        Tables of queues whose rows are missing are adopted, missing tables are made, empty, and a copy of the schema
        without its data becomes an installation again. Nothing that holds a row is dropped.

        Args:
            dry_run: change nothing.

        Returns:
            What was done, or would be, and what cannot be mended: a sentence for each.
        """
        engine = self._engine
        return engine.run(repair.repair, engine.schema, engine.plugins, dry_run=dry_run)

    def uninstall(self, *, roles: bool = False) -> list[str]:
        """Drop all queues with their messages, and all tables; return the names of the queues.

        Each queue is dropped by itself: what was interrupted can be run again.

        Args:
            roles: also drop the group roles that `install` made. Else they stay, without rights on anything here.
        """
        dropped = self._engine.run(uninstall.uninstall, self._engine.schema, self._engine.plugins, roles=roles)
        # What was removed on purpose is no outage.
        self._engine.installation.forget()
        return dropped

    def roles(self) -> dict[str, str]:
        """Return the group roles that `install` made, by what they are for; none unless it was asked to."""
        return self._engine.run(roles.known_roles, self._engine.schema)

    def schema_version(self) -> int:
        """Return the version of the installed tables, 0 for none."""
        return self._engine.run(schema.version, self._engine.schema)

    def create_queue(self, name: str, **options: Any) -> Queue:
        """Create a queue; see `QueueOptions` for what can be set. Harmless to repeat with the same options.

        Raises:
            InvalidQueueName, InvalidArgument: nothing was changed.
            QueueExists: it exists with other options.
        """
        return self._engine.transact(
            self._engine.checked, queues.create_queue, name, queue_options(self._engine.config, options)
        )

    def alter_queue(self, name: str, **changes: Any) -> Queue:
        """Change some options of a queue. Running clients follow within seconds."""
        self._engine.forget(name)
        return self._engine.transact(self._engine.checked, queues.alter_queue, name, changes)

    def list_queues(self) -> list[Queue]:
        """Return all queues, by name."""
        return self._engine.run(self._engine.checked, queues.list_queues)

    def delete_queue(self, name: str) -> None:
        """Drop a queue with everything in it, archive and dead letters included."""
        self._engine.transact(self._engine.checked, queues.delete_queue, name)
        self._engine.forget(name)

    def purge_queue(self, name: str) -> int:
        """Remove the ready and delayed messages; return how many. Those held by consumers and the dead stay."""
        return self._engine.on(name, queues.purge_queue)

    def pause_queue(self, name: str) -> None:
        """Let nothing be claimed from a queue until `resume_queue`."""
        self._engine.run(self._engine.checked, queues.pause_queue, name)

    def resume_queue(self, name: str) -> None:
        """End a pause."""
        self._engine.run(self._engine.checked, queues.resume_queue, name)

    def queue_metrics(self, name: str) -> Metrics:
        """Return the figures of one queue. Cheap, whatever the backlog; large counts are estimates."""
        self._engine.forget(name)
        return self._engine.on(name, metrics.measure_one)

    def all_queues_metrics(self) -> list[Metrics]:
        """Return the figures of all queues, by name. One that cannot be read has an ``error`` that says why."""
        return self._engine.run(metrics.measure, self.list_queues())

    def peek(self, name: str, count: int = 10) -> list[Snapshot]:
        """Return the next messages of a queue without claiming them, those in flight included."""
        return self._engine.on(name, queues.peek, count)

    def show_message(self, name: str, message_id: int) -> InspectedMessage | None:
        """Return one message in any state without claiming it, or None."""
        return self._engine.on(name, by_id.show_message, message_id)

    def delete_messages(self, name: str, ids: Sequence[int], *, in_flight: bool = False) -> Deleted:
        """Remove up to 1,000 messages in any state for good; those that a consumer holds only with ``in_flight``."""
        return self._engine.on(name, by_id.delete_messages, ids, in_flight=in_flight)

    def list_dead(self, name: str, limit: int = 50, before: datetime | None = None) -> list[DeadMessage]:
        """Return dead messages, the latest first; ``before`` (a ``died_at``) continues a list."""
        return self._engine.on(name, dead.list_dead, limit, before)

    def show_dead(self, name: str, message_id: int) -> DeadMessage | None:
        """Return one dead message, or None."""
        return self._engine.on(name, dead.show_dead, message_id)

    def replay_dead(self, name: str, ids: Sequence[int] | None = None) -> int:
        """Put dead messages back into the queue as if new, all of them when ``ids`` is None; return how many."""
        return self._engine.on(name, dead.replay_dead, ids, self._engine.doorbell)

    def purge_dead(self, name: str, ids: Sequence[int] | None = None) -> int:
        """Remove dead messages for good, all of them when ``ids`` is None; return how many."""
        return self._engine.on(name, dead.purge_dead, ids)

    def list_archive(self, name: str, limit: int = 50, before: int | None = None) -> list[ArchivedMessage]:
        """Return archived messages, the newest id first; ``before`` (an id) continues a list."""
        return self._engine.on(name, archives.list_archive, limit, before)

    def replay_archive(self, name: str, ids: Sequence[int]) -> int:
        """Move archived messages back into the queue, with new ids; return how many."""
        return self._engine.on(name, archives.replay_archive, ids, self._engine.doorbell)

    def prune_archive(self, name: str, older_than: float) -> int:
        """Remove what was archived more than ``older_than`` seconds ago; return how many."""
        return self._engine.on(name, archives.prune_archive, older_than)

    def maintain(self) -> Housekeeping:
        """Do the housekeeping of all queues once, now: expiry, retention, vacuum. Workers do it by themselves."""
        return self._engine.run(self._engine.checked, maintenance.maintain, self._engine.schema)
