"""The schema: installing, upgrading and removing it, and checking that it fits this code.

Migrations go forward only. They are numbered files with a block for the shared tables and blocks for the tables of every
queue; all pending ones run in one transaction, under an advisory lock, so they are applied once or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import InvalidArgument, SchemaError, SchemaMissing, SchemaTooNew, SchemaTooOld
from pgqrs_core.messages import Queue
from pgqrs_core.operations.roles import drop_roles, grant_all, install_roles, known_roles
from pgqrs_core.sql import MIGRATIONS, Migration, Query, queries, read_migrations

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = [
    "SUPPORTED",
    "build_queue",
    "check_component",
    "check_schema",
    "install",
    "install_all",
    "install_if_empty",
    "pause_migrations",
    "uninstall",
    "version",
]

#: The version of the schema that this code brings.
SUPPORTED: Final = MIGRATIONS[-1].version

COMPONENT: Final = "pgqrs"


def install(schema: str, *, component: str = COMPONENT, migrations: Sequence[Migration] = MIGRATIONS) -> Op[list[str]]:
    """Apply what is missing, and return the names of the steps that were applied.

    Raises:
        SchemaTooNew: a newer version is installed than this code knows.
        SchemaError: a step was applied with other contents than it has now.
    """
    yield Execute(queries["migration_lock"], {"schema": schema})
    exists = yield Execute(queries["namespace_exists"], {"schema": schema})
    if not exists[0][0]:
        yield Execute(queries["create_schema"])
    yield Execute(queries["create_migrations"])
    rows = yield Execute(queries["applied_migrations"], {"component": component})
    applied = {version: (checksum, safe) for version, checksum, safe in rows}
    newest = migrations[-1].version
    if applied and max(applied) > newest:
        raise SchemaTooNew(schema, max(applied), newest)
    done: list[str] = []
    for step in migrations:
        if step.version in applied:
            if applied[step.version][0] != step.checksum:
                raise SchemaError(
                    f"migration {step.version} of {component} was changed after it was applied to schema {schema!r}",
                    schema=schema,
                    installed=max(applied),
                    supported=newest,
                )
            continue
        yield from _apply(component, step)
        done.append(f"{component} {step.version:04} {step.name}")
    return done


def install_all(schema: str, plugins: Plugins, *, roles: bool = False, role_prefix: str | None = None) -> Op[list[str]]:
    """Install the core's tables, then those that plugins bring; with ``roles`` also the roles, see `roles`.

    Roles that were made before are granted what is new in any case.
    """
    if role_prefix is not None and not roles:
        raise InvalidArgument("role_prefix", role_prefix, "left out unless roles are to be made")
    done = yield from install(schema)
    for source in plugins.migrations:
        steps = tuple(read_migrations(source.package))
        if steps:
            done += yield from install(schema, component=source.component, migrations=steps)
    if roles:
        return done + [f"role {name}" for name in (yield from install_roles(schema, plugins, role_prefix))]
    known = yield from known_roles(schema)
    if known and done:
        yield from grant_all(schema, plugins, known)
    return done


def install_if_empty(schema: str, plugins: Plugins) -> Op[list[str]]:
    """Install everything where nothing of pgqrs is yet; leave alone what is there, even if it does not fit.

    Run it in one transaction. Several processes may do so at once: one installs, the others wait for it and find it done.
    """
    yield Execute(queries["migration_lock"], {"schema": schema})
    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if exists[0][0]:
        return []
    return (yield from install_all(schema, plugins))


def _apply(component: str, step: Migration) -> Op[None]:
    if "shared" in step.blocks:
        yield Execute(step.blocks["shared"])
    if component == COMPONENT:
        # Imported late: queues are built by this module.
        from pgqrs_core.operations.queues import queue_of

        rows = yield Execute(queries["list_queues"])
        for queue in map(queue_of, rows):
            yield from _apply_to_queue(step, queue)
    yield Execute(
        queries["record_migration"],
        {
            "component": component,
            "version": step.version,
            "name": step.name,
            "checksum": step.checksum,
            "safe": step.safe,
        },
    )


def pause_migrations() -> Op[str]:
    """Let no migration run until this transaction ends, so that a queue made in it gets every step. Return the schema."""
    rows = yield Execute(queries["migration_pause"])
    schema: str = rows[0][0]
    return schema


def build_queue(queue: Queue, schema: str) -> Op[None]:
    """Create the tables of a queue, as all migrations so far have left them.

    Raises:
        SchemaTooNew: steps were applied that this code does not know, and so cannot apply to these tables.
    """
    applied = yield Execute(queries["applied_migrations"], {"component": COMPONENT})
    installed = max((row[0] for row in applied), default=0)
    if installed > SUPPORTED:
        raise SchemaTooNew(schema, installed, SUPPORTED)
    for step in MIGRATIONS:
        yield from _apply_to_queue(step, queue)


def _apply_to_queue(step: Migration, queue: Queue) -> Op[None]:
    blocks: list[Query | None] = [step.blocks.get("queue")]
    if queue.options.archive:
        blocks.append(step.blocks.get("archive"))
    for block in blocks:
        if block is not None:
            yield Execute(block, {}, queue)


def uninstall(schema: str, plugins: Plugins | None = None, *, roles: bool = False) -> Op[list[str]]:
    """Drop every queue and all that `install_all` made; return the names of the queues that were dropped.

    A plugin's tables are dropped by the block ``drop`` of its scripts, the latest script first. The schema itself goes
    too unless it is somebody else's, or somebody else keeps tables in it. Roles stay, without any rights here, unless
    ``roles`` says otherwise: they belong to the whole server, and to those who were granted them.
    """
    from pgqrs_core.operations.queues import delete_queue, list_queues

    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if not exists[0][0]:
        raise SchemaMissing(schema, SUPPORTED)
    yield Execute(queries["migration_lock"], {"schema": schema})
    known = yield from known_roles(schema)
    names = [queue.name for queue in (yield from list_queues())]
    for name in names:
        yield from delete_queue(name)
    for source in plugins.migrations if plugins is not None else ():
        rows = yield Execute(queries["applied_migrations"], {"component": source.component})
        applied = {row[0] for row in rows}
        for step in reversed([step for step in read_migrations(source.package) if step.version in applied]):
            if "drop" in step.blocks:
                yield Execute(step.blocks["drop"])
    yield Execute(queries["drop_shared"])
    droppable = yield Execute(queries["schema_is_droppable"], {"schema": schema})
    if droppable[0][0]:
        yield Execute(queries["drop_schema"])
    elif known:
        yield Execute(queries["close_schema"], names=known)
    if roles:
        yield from drop_roles(known)
    return names


def version(schema: str) -> Op[int]:
    """Return the installed version, 0 when nothing is installed."""
    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if not exists[0][0]:
        return 0
    rows = yield Execute(queries["applied_migrations"], {"component": COMPONENT})
    return max((row[0] for row in rows), default=0)


def check_schema(schema: str) -> Op[None]:
    """Raise unless the installed schema fits this code.

    A newer schema is fine as long as every step that this code does not know is marked safe for old code.

    Raises:
        SchemaMissing, SchemaTooOld, SchemaTooNew: naming both versions and what to run.
    """
    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if not exists[0][0]:
        raise SchemaMissing(schema, SUPPORTED)
    rows = yield Execute(queries["applied_migrations"], {"component": COMPONENT})
    installed = max((row[0] for row in rows), default=0)
    if installed < SUPPORTED:
        raise SchemaTooOld(schema, installed, SUPPORTED)
    if not all(safe for number, _, safe in rows if number > SUPPORTED):
        raise SchemaTooNew(schema, installed, SUPPORTED)


def check_component(
    schema: str, component: str, migrations: Sequence[Migration], *, remedy: str = "Run `pgqrs install`."
) -> Op[None]:
    """Raise unless a plugin's own tables are installed, as `check_schema` does for the core's.

    ``remedy`` is the sentence that tells what to do where they are missing or too old.

    Raises:
        SchemaError: the core's tables are missing or do not fit, or the component's do not.
    """
    yield from check_schema(schema)
    needed = migrations[-1].version
    rows = yield Execute(queries["applied_migrations"], {"component": component})
    installed = max((row[0] for row in rows), default=0)
    if installed < needed:
        raise SchemaError(
            f"schema {schema!r} has version {installed} of the tables of {component}, this code needs {needed}. {remedy}",
            schema=schema,
            installed=installed,
            supported=needed,
        )
    if not all(safe for number, _, safe in rows if number > needed):
        raise SchemaTooNew(schema, installed, needed)
