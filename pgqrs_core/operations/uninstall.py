"""Removing an installation, a damaged one included: see `pgqrs_core.operations.damage`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import QueueNotFound, SchemaMissing, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.damage import Schema, read_schema, shared_tables
from pgqrs_core.operations.queues import delete_queue
from pgqrs_core.operations.roles import drop_roles, known_roles
from pgqrs_core.operations.schema import SUPPORTED
from pgqrs_core.operations.upgrade import raise_if_any
from pgqrs_core.sql import MIGRATIONS, Migration, queries, read_migrations

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = ["uninstall"]

#: By which the tables of queues and of archives are known.
_COLUMNS: Final = {
    "q": frozenset({"lane", "message_id", "lease_until", "lease_token", "body"}),
    "a": frozenset({"message_id", "archived_at", "body"}),
}

_log = get_logger("pgqrs.schema")


def uninstall(schema: str, plugins: Plugins | None = None, *, roles: bool = False) -> Op[list[str]]:
    """Drop every queue and all that `install_all` made; return the names of the queues that were dropped.

    Each queue is dropped in a transaction of its own. What was interrupted can be run again; it drops what is left.

    A plugin's tables are dropped by the block ``drop`` of its scripts, the latest script first. The schema itself goes
    too unless it is somebody else's, or somebody else keeps tables in it. Roles stay, without any rights here, unless
    ``roles`` says otherwise: they belong to the whole server, and to those who were granted them.

    Raises:
        SchemaMissing: nothing is installed.
        QueuesFailed: some queues could not be dropped, because other objects depend on them, say. The others were.
    """
    found = yield from read_schema(schema)
    if not found.there(["migrations", *shared_tables(MIGRATIONS)]):
        raise SchemaMissing(schema, SUPPORTED)
    dropped: list[str] = []
    while True:
        failed: dict[str, ServerError] = {}
        for name in [queue.name for queue in found.queues]:
            try:
                yield Transact(partial(delete_queue, name))
                dropped.append(name)
            except QueueNotFound:
                pass
            except ServerError as error:
                _log.warning("queue %r could not be dropped, the others are: %s", name, error)
                failed[name] = error
        raise_if_any(failed, schema, "dropped")
        left = yield from read_schema(schema)
        if not left.queues:
            yield from _drop_strays(schema, left)
        # A program that still runs may have made one meanwhile.
        if (yield Transact(lambda: _uninstall_shared(schema, plugins, roles=roles))):
            return sorted(dropped)
        found = yield from read_schema(schema)


def _uninstall_shared(schema: str, plugins: Plugins | None, *, roles: bool) -> Op[bool]:
    """Drop everything but the queues; answer whether there were none, and it was done."""
    yield Execute(queries["migration_lock"], {"schema": schema})
    found = yield from read_schema(schema)
    if found.queues:
        return False
    known = yield from known_roles(schema)
    for source in plugins.migrations if plugins is not None else ():
        yield from _drop_component(found, source.component, list(read_migrations(source.package)))
    yield Execute(queries["drop_shared"])
    droppable = yield Execute(queries["schema_is_droppable"], {"schema": schema})
    if droppable[0][0]:
        yield Execute(queries["drop_schema"])
    elif known:
        yield Execute(queries["close_schema"], names=known)
    if roles:
        yield from drop_roles(known)
    return True


def _drop_component(found: Schema, component: str, steps: Sequence[Migration]) -> Op[None]:
    """Drop the tables of a plugin by its own blocks; one by one where these would fail, because some are missing."""
    applied = [step for step in steps if step.version in found.steps.get(component, ())]
    tables = shared_tables(applied or steps)
    there = found.there(tables)
    if applied and len(there) == len(tables):
        for step in reversed(applied):
            if "drop" in step.blocks:
                yield Execute(step.blocks["drop"])
    else:
        for table in reversed(there):
            yield Execute(queries["drop_view" if found.is_view(table) else "drop_table"], names={"table": table})


def _drop_strays(schema: str, found: Schema) -> Op[None]:
    """Drop what is left of queues without a row, each by itself: tables that have the columns of ours, and functions."""
    for name, (kind, _) in found.relations.items():
        if kind == "f":
            yield Execute(queries["drop_function"], names={"table": name})
    tables = [name for name, (kind, _) in found.relations.items() if name.startswith(("q_", "a_")) and kind == "r"]
    if not tables:
        return
    for table, facts in (yield Execute(queries["table_facts"], {"schema": schema, "tables": texts(tables)})):
        columns = {fact.split()[1] for fact in facts if fact.startswith("column ")}
        if columns >= _COLUMNS[table[0]]:
            yield Transact(partial(_drop_stray, table))


def _drop_stray(table: str) -> Op[None]:
    yield Execute(queries["drop_view"], names={"table": f"v_{table[2:]}"})
    yield Execute(queries["drop_table"], names={"table": table})
