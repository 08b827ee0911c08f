"""``install``, ``uninstall``, ``maintain``, ``config show``, ``plugins``: the database as a whole, and the set-up."""

from typing import Annotated, Any

import msgspec
import typer

from pgqrs_core.operations.maintenance import Housekeeping
from pgqrs_core.operations.roles import RolesPlan
from pgqrs_core.operations.schema import SUPPORTED
from pgqrs_core.plugins import Plugins, default_plugins
from pgqrs_native.client import Client
from pgqrs_native.command.consent import Yes, ask
from pgqrs_native.command.inputs import InvalidInput
from pgqrs_native.command.output import Column, plural
from pgqrs_native.command.session import Session, command

__all__ = ["register"]

_PANEL = "Database and set-up"

config = typer.Typer(help="The settings in use.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (
        ("install", install),
        ("uninstall", uninstall),
        ("maintain", maintain),
        ("plugins", plugins),
    ):
        command(app, name, panel=_PANEL)(function)
    app.add_typer(config, name="config", rich_help_panel=_PANEL)


def install(
    session: Session,
    *,
    roles: Annotated[
        bool, typer.Option("--roles", help="Also make roles for producers, consumers, observers and administrators.")
    ] = False,
    role_prefix: Annotated[
        str | None, typer.Option("--role-prefix", help="What the roles' names begin with; by default the schema.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Also mend what a restore left incomplete, while no program runs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --roles or --repair: only say what would change.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Create or upgrade the tables. Harmless to repeat, and to run again after it was interrupted."""
    admin, schema = session.client.admin, session.client.engine.schema
    roles = roles or role_prefix is not None
    if repair and roles:
        raise InvalidInput("--repair and --roles are done one after the other")
    if repair:
        _repair(session, dry_run=dry_run)
        return
    if dry_run and not roles:
        raise InvalidInput("--dry-run is for --roles and --repair: say what they would change")
    plan = admin.plan_roles(role_prefix) if roles else None
    if plan is not None and (dry_run or plan.takes_over):
        if dry_run:
            _show_plan(session, plan)
            return
        ask(" ".join(_plan(plan)), yes=yes)
    applied = admin.install(roles=roles, role_prefix=role_prefix)
    version = admin.schema_version()
    if session.out.json:
        made = {"roles": admin.roles()} if roles else {}
        session.out.document({"schema": schema, "version": version, "applied": applied, **made})
        return
    if applied:
        session.out.say(f"installed in schema {schema!r}, now version {version}: {', '.join(_summary(applied))}")
    elif version == SUPPORTED:
        session.out.say(f"schema {schema!r} is up to date (version {version})")
    if version > SUPPORTED:
        session.out.say(
            f"schema {schema!r} has version {version}, newer than this code ({SUPPORTED}), which works with it: "
            "nothing is installed or taken back"
        )


def _repair(session: Session, *, dry_run: bool) -> None:
    mended = session.client.admin.repair(dry_run=dry_run)
    schema = session.client.engine.schema
    if session.out.json:
        session.out.document({"schema": schema, "dry_run": dry_run, "done": mended.done, "left": mended.left})
    else:
        for sentence in mended.done:
            session.out.say(f"{'would ' if dry_run else 'done: '}{sentence}")
        if not mended.done and not mended.left:
            session.out.say(f"schema {schema!r} is complete")
    for sentence in mended.left:
        session.out.note(f"not mended: {sentence}")
    if mended.left:
        raise typer.Exit(1)


def _show_plan(session: Session, plan: RolesPlan) -> None:
    if session.out.json:
        session.out.document({"plan": msgspec.to_builtins(plan)})
        return
    for sentence in _plan(plan) or ["Nothing changes hands."]:
        session.out.say(sentence)


def _plan(plan: RolesPlan) -> list[str]:
    """Say what is going to change, in sentences."""
    said = [f"This makes the roles {', '.join(plan.create)}."] if plan.create else []
    admin = plan.roles["admin"]
    for owner, tables in plan.hand_over.items():
        keeps = f", which becomes a member of {admin} and so keeps all its rights" if owner in plan.members else ""
        said.append(f"It hands {plural(len(tables), 'table')} to {admin}: they belong to {owner} now{keeps}.")
    if plan.hand_over:
        said.append("Rights that PUBLIC has on them are revoked.")
    return said


def _summary(applied: list[str]) -> list[str]:
    """Count the tables that have another owner now, and leave the other steps as they are."""
    others = [step for step in applied if not step.startswith("owner of ")]
    handed = len(applied) - len(others)
    return [*others, f"{plural(handed, 'table')} with another owner"] if handed else others


def uninstall(
    session: Session,
    *,
    roles: Annotated[bool, typer.Option("--roles", help="Also drop the roles that `install --roles` made.")] = False,
    yes: Yes = False,
) -> None:
    """Drop all queues with their messages, and all tables."""
    if not yes:
        ask(_impact(session.client), yes=yes)
    dropped = session.client.admin.uninstall(roles=roles)
    schema = session.client.engine.schema
    if session.out.json:
        session.out.document({"schema": schema, "dropped": dropped})
    else:
        session.out.say(f"uninstalled from schema {schema!r}: {plural(len(dropped), 'queue')} dropped")


def _impact(client: Client) -> str:
    figures = client.admin.all_queues_metrics()
    messages = sum(one.ready + one.delayed + one.in_flight + one.expired + one.dead + one.archived for one in figures)
    unreadable = sum(one.error is not None for one in figures)
    about = "about " if any(one.estimated for one in figures) else ""
    return (
        f"This drops schema {client.engine.schema!r} of {client.config.target} with {plural(len(figures), 'queue')} "
        f"and {about}{plural(messages, 'message')}"
        + (f", not counting {plural(unreadable, 'queue')} that cannot be read." if unreadable else ".")
    )


def maintain(session: Session) -> None:
    """Do the housekeeping once, now: expiry, retention, vacuum. Workers do it by themselves."""
    done = session.client.admin.maintain()
    if session.out.json:
        session.out.document(msgspec.to_builtins(done))
        _report(session, done)
        return
    session.out.say(
        f"removed {plural(done.expired, 'expired message')}, {plural(done.dead_pruned, 'dead message')}, "
        f"{plural(done.archive_pruned, 'archived message')}, {plural(done.keys_pruned, 'idempotency key')}; "
        f"vacuumed {plural(done.vacuumed, 'table')}"
    )
    _report(session, done)


def _report(session: Session, done: Housekeeping) -> None:
    """Say on standard error which queues could not be cleaned, and fail if there are some."""
    for queue, reason in done.failed.items():
        session.out.note(f"queue {queue!r} could not be cleaned: {reason}")
    if done.failed:
        raise typer.Exit(1)


@command(config, "show")
def show(session: Session) -> None:
    """Show all settings, secrets masked, and the server that they lead to."""
    described = session.settings.describe()
    if session.out.json:
        session.out.document(described)
        return
    session.out.facts(
        [
            ("target", str(described.pop("target"))),
            *(
                (f"{section}.{key}", _value(value))
                for section, keys in described.items()
                for key, value in keys.items()
            ),
        ]
    )


def _value(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def plugins(session: Session) -> None:
    """Show the plugins: loaded, broken, blocked."""
    chosen = session.settings.plugins
    found = default_plugins(frozenset(chosen.blocked), chosen.settings, chosen.content_types)
    if session.out.json:
        session.out.document(_document(found))
        return
    rows = [
        *((one.name, "loaded", _origin(one), ", ".join(one.hooks) or "no hooks") for one in found.loaded),
        *((one.name, "BROKEN", _origin(one), one.error) for one in found.broken),
        *((one.name, "blocked", _origin(one), "by the configuration") for one in found.blocked),
    ]
    columns = [Column("plugin", "name"), Column("state"), Column("from", "fold"), Column("hooks, or why", "fold")]
    session.out.table(columns, rows, empty="no plugins")


def _document(found: Plugins) -> dict[str, Any]:
    return {
        "loaded": [msgspec.to_builtins(one) for one in found.loaded],
        "broken": [msgspec.to_builtins(one) for one in found.broken],
        "blocked": [msgspec.to_builtins(one) for one in found.blocked],
        "adapters": [{"name": one.name, "version": one.version, "summary": one.summary} for one in found.adapters],
    }


def _origin(plugin: Any) -> str:
    return f"{plugin.distribution} {plugin.version}" if plugin.distribution else "–"
