"""The schema: installing, upgrading and removing it, and checking that it fits this code.

Migrations go forward only. They are numbered files with a block for the shared tables and blocks for the tables of every
queue. The shared blocks of all pending ones run in one transaction, under an advisory lock, so they are applied once or not
at all. Then the tables of each queue are brought up to date in a transaction of their own, which holds few locks, and
holds them briefly; how far a queue is stands in its row. What was interrupted goes on where it ended when it is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import (
    InvalidArgument,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    SchemaUnrecorded,
)
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.operations.damage import shared_tables
from pgqrs_core.operations.grants import grant_new
from pgqrs_core.operations.roles import check_roles, install_roles
from pgqrs_core.operations.upgrade import apply_to_queue, upgrade_queues
from pgqrs_core.pasting import command, shell_quoted
from pgqrs_core.sql import GRANTS, MIGRATIONS, Migration, Query, queries, read_grants, read_migrations

if TYPE_CHECKING:
    from pgqrs_core.installations import Installation
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
    "prepare",
    "version",
]

#: The version of the schema that this code brings.
SUPPORTED: Final = MIGRATIONS[-1].version

COMPONENT: Final = "pgqrs"

_log = get_logger("pgqrs.schema")


def install(
    schema: str,
    *,
    component: str = COMPONENT,
    migrations: Sequence[Migration] = MIGRATIONS,
    grants: Mapping[str, Query] = GRANTS,
) -> Op[list[str]]:
    """Apply what is missing, and return the names of the steps that were applied.

    Nothing is applied where a newer version is installed that this code works with. An upgrade with which running programs
    of an older version cannot go on is logged as a warning.

    Raises:
        SchemaTooNew: a newer version is installed, by a step that this code does not work with.
        SchemaUnrecorded: the tables are there, but not which steps they have had.
        SchemaError: a step was applied with other contents than it has now.
        TableLocked: a table stayed locked. Run it again; what was done is done.
    """
    done: list[str] = yield Transact(lambda: _install_shared(schema, component, migrations, grants))
    if component == COMPONENT:
        yield from upgrade_queues(schema, migrations)
    return done


def _install_shared(
    schema: str, component: str, migrations: Sequence[Migration], grants: Mapping[str, Query]
) -> Op[list[str]]:
    """Apply the shared blocks of the missing steps, record these, and grant what is new to the roles."""
    yield Execute(queries["migration_lock"], {"schema": schema})
    exists = yield Execute(queries["namespace_exists"], {"schema": schema})
    if not exists[0][0]:
        yield Execute(queries["create_schema"])
    yield Execute(queries["create_migrations"])
    rows = yield Execute(queries["applied_migrations"], {"component": component})
    applied = {version: (checksum, safe) for version, checksum, safe in rows}
    newest = migrations[-1].version
    if any(number > newest and not safe for number, (_, safe) in applied.items()):
        raise SchemaTooNew(schema, max(applied), newest)
    if not applied:
        yield from _refuse_unrecorded(schema, component, migrations)
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
        if "shared" in step.blocks:
            yield Execute(step.blocks["shared"])
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
        done.append(f"{component} {step.version:04} {step.name}")
        if applied and not step.safe:
            text = "step %d of %s ends the work of older code in schema %r: start programs of older versions anew"
            _log.warning(text, step.version, component, schema)
    if done:
        yield from grant_new(schema, component, grants)
    return done


def _refuse_unrecorded(schema: str, component: str, migrations: Sequence[Migration]) -> Op[None]:
    """Raise where the tables of a component are there, but not which steps they have had."""
    tables = shared_tables(migrations)
    if tables:
        rows = yield Execute(queries["existing_tables"], {"schema": schema, "tables": texts(tables)})
        if rows:
            raise SchemaUnrecorded(schema, migrations[-1].version, component)


def install_all(schema: str, plugins: Plugins, *, roles: bool = False, role_prefix: str | None = None) -> Op[list[str]]:
    """Install the core's tables, then those that plugins bring; with ``roles`` also the roles, see `roles`.

    Roles that were made before are granted what is new in any case.
    """
    if role_prefix is not None and not roles:
        raise InvalidArgument("role_prefix", role_prefix, "left out unless roles are to be made")
    if roles:
        yield from check_roles(schema, role_prefix)
    done = yield from install(schema)
    for source in plugins.migrations:
        steps = tuple(read_migrations(source.package))
        if steps:
            grants = read_grants(source.package)
            done += yield from install(schema, component=source.component, migrations=steps, grants=grants)
    if roles:
        done += yield from install_roles(schema, plugins, role_prefix)
    return done


def install_if_empty(schema: str, plugins: Plugins) -> Op[list[str]]:
    """Install everything into a schema that does not exist or is empty, and say so in the log; the rule of all adapters.

    What is there is left alone, even if it does not fit. All in one transaction. Several processes may do so at once: one
    installs, the others wait for it and find it done.

    Raises:
        SchemaMissing: the schema holds none of our tables, but those of something else.
    """
    done, database = yield Transact(lambda: _install_if_empty(schema, plugins))
    if done:
        _log.warning(
            "there were no tables of pgqrs: they were made in schema %r of database %r (%s); create_schema=False refuses "
            "that, and `%s` makes them beforehand",
            schema,
            database,
            ", ".join(done),
            command("install", "--schema", shell_quoted(schema)),
        )
    installed: list[str] = done
    return installed


def _install_if_empty(schema: str, plugins: Plugins) -> Op[tuple[list[str], str]]:
    yield Execute(queries["migration_lock"], {"schema": schema})
    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if exists[0][0]:
        return [], ""
    others, database = (yield Execute(queries["schema_holds_others"], {"schema": schema}))[0]
    if others:
        raise SchemaMissing(schema, SUPPORTED, others=True)
    return (yield from install_all(schema, plugins)), database


def prepare(
    installation: Installation,
    plugins: Plugins,
    *,
    create: bool,
    component: str = "",
    migrations: Sequence[Migration] = (),
    remedy: str = "Run `pgqrs install`.",
) -> Op[None]:
    """Check the tables before their first use, and install them where nothing is there and that is wanted.

    Args:
        installation: what this process knows of them.
        plugins: whose tables are installed, too.
        create: whether to install everything where the schema holds nothing.
        component: a plugin whose own tables are checked with the core's.
        migrations: its scripts.
        remedy: the sentence that tells what to do where its tables are missing.

    Raises:
        SchemaUnavailable: tables that this process has used are gone. They are never made anew.
        SchemaError: tables are missing and are not to be created, or do not fit.
    """

    def check() -> Op[None]:
        if component:
            yield from check_component(installation.schema, component, migrations, remedy=remedy)
        else:
            yield from check_schema(installation.schema)

    try:
        yield from check()
        if installation.is_awaited:
            missing = yield Execute(queries["missing_core_tables"], {"schema": installation.schema})
            if missing:
                raise installation.unavailable(f"{', '.join(row[0] for row in missing)} not complete")
    except SchemaTooNew:
        raise
    except (SchemaMissing, SchemaTooOld, SchemaUnrecorded) as error:
        if installation.was_used():
            raise installation.unavailable(str(error).partition(". Run `")[0]) from error
        if not (create and isinstance(error, SchemaMissing)):
            raise
        yield from install_if_empty(installation.schema, plugins)
        # Where another process has installed it meanwhile, it may be without the component's tables.
        yield from check()
    except SchemaError as error:
        if component and installation.was_used(component):
            raise installation.unavailable(str(error).partition(". Run `")[0]) from error
        raise
    installation.note_used()
    installation.note_used(component)


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
        yield from apply_to_queue(step, queue)


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
        SchemaUnrecorded: the tables are there, but not which steps they have had.
    """
    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if not exists[0][0]:
        raise SchemaMissing(schema, SUPPORTED)
    rows = yield Execute(queries["applied_migrations"], {"component": COMPONENT})
    installed = max((row[0] for row in rows), default=0)
    if not rows:
        raise SchemaUnrecorded(schema, SUPPORTED, COMPONENT)
    if installed < SUPPORTED:
        raise SchemaTooOld(schema, installed, SUPPORTED)
    if not all(safe for number, _, safe in rows if number > SUPPORTED):
        raise SchemaTooNew(schema, installed, SUPPORTED)
    behind = yield Execute(queries["outdated_queues"], {"version": SUPPORTED, "after": 0, "limit": 1})
    if behind:
        raise SchemaTooOld(schema, installed, SUPPORTED, queue=behind[0][1])


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
