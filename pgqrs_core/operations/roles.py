"""Group roles, so that each program may do what it is for and nothing else.

==========  =============================================================================================
role        may
==========  =============================================================================================
producer    enqueue; read nothing back but the ids that it was given
consumer    claim, settle, dead-letter, and keep house as workers do; not enqueue
observer    read the names, figures and circumstances of queues; no body, header or error
admin       everything: the tables belong to this role
==========  =============================================================================================

They cannot log in: they are granted to the roles that do. What each is granted stands in the file ``grants.sql`` beside
the scripts of the tables, the core's and those of plugins; a queue's tables get theirs when the queue is created.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import InvalidArgument, NotPermitted, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.sql import DUTIES, GRANTS, Query, queries, read_grants

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = [
    "Roles",
    "RolesPlan",
    "check_roles",
    "drop_roles",
    "grant_all",
    "grant_new",
    "grant_queue",
    "install_roles",
    "known_roles",
    "plan_roles",
    "role_names",
]

_log = get_logger("pgqrs.schema")

#: The name of the role for each duty.
Roles = Mapping[str, str]

_CORE: Final = frozenset(["migrations", "queues", "waiters", "leaders", "idempotency_keys", "roles"])
#: PostgreSQL cuts longer names short without a word.
_LONGEST: Final = 63
_MAINTAIN_SINCE: Final = 170_000
#: From here on a membership says itself whether it is inherited.
_INHERIT_SINCE: Final = 160_000
_UNDEFINED_TABLE: Final = "42P01"


def role_names(schema: str, prefix: str | None = None) -> dict[str, str]:
    """Return what the roles are called: the prefix, by default the schema's name, and the duty.

    Raises:
        InvalidArgument: PostgreSQL takes no such names.
    """
    prefix = schema if prefix is None else prefix
    names = {duty: f"{prefix}_{duty}" for duty in DUTIES}
    if not isinstance(prefix, str) or not prefix or "\0" in prefix or prefix.startswith("pg_"):
        raise InvalidArgument("role_prefix", prefix, "a text that does not begin with 'pg_'")
    try:
        longest = max(len(name.encode()) for name in names.values())
    except UnicodeEncodeError:
        raise InvalidArgument("role_prefix", prefix, "valid Unicode, free of lone surrogates") from None
    if longest > _LONGEST:
        raise InvalidArgument("role_prefix", prefix, f"at most {_LONGEST - len('_producer')} bytes long")
    return names


def known_roles(schema: str) -> Op[dict[str, str]]:
    """Return the roles that were made for this schema, by duty; none where `install_roles` never ran."""
    exists = yield Execute(queries["roles_exist"], {"schema": schema})
    if not exists[0][0]:
        return {}
    rows = yield Execute(queries["list_roles"])
    return dict(rows)


class RolesPlan(msgspec.Struct, frozen=True):
    """What `install_roles` is going to change.

    Attributes:
        roles: The name of the role for each duty.
        create: Roles that do not exist yet.
        hand_over: Tables and views that are to belong to the administrators' role, by their present owner.
        members: Present owners that become members of the administrators' role, so that they keep all their rights.
    """

    roles: dict[str, str]
    create: list[str]
    hand_over: dict[str, list[str]]
    members: list[str]

    @property
    def takes_over(self) -> bool:
        """Whether tables of a role that uses them change hands."""
        return bool(self.members)


def plan_roles(schema: str, plugins: Plugins, prefix: str | None = None) -> Op[RolesPlan]:
    """Return what `install_roles` would change now. Changes nothing; the schema need not exist.

    Raises:
        InvalidArgument: a name cannot be used, or others were chosen before.
    """
    wanted, _ = yield from _names(schema, prefix)
    missing = yield from _missing(wanted)
    hand_over: dict[str, list[str]] = {}
    members: list[str] = []
    for table, owner, needs_membership in (yield from _not_theirs(schema, plugins, wanted)):
        hand_over.setdefault(owner, []).append(table)
        if needs_membership and owner not in members:
            members.append(owner)
    return RolesPlan(wanted, missing, hand_over, sorted(members))


def check_roles(schema: str, prefix: str | None = None) -> Op[None]:
    """Raise what `install_roles` would raise before it changed anything.

    Raises:
        InvalidArgument: a name cannot be used, or others were chosen before.
        NotPermitted: roles are to be made, and this role may not.
    """
    wanted, _ = yield from _names(schema, prefix)
    missing = yield from _missing(wanted)
    user, may_create = (yield Execute(queries["may_create_roles"]))[0]
    if missing and not may_create:
        raise _not_ours("permission denied to create role", user, schema, wanted)


def install_roles(schema: str, plugins: Plugins, prefix: str | None = None) -> Op[list[str]]:
    """Make what is missing of the roles, grant them what they need, and return what was changed.

    Everything must be installed. Existing roles of these names are used, as long as they are groups. Our tables come to
    belong to the administrators' role; first their owners become members of it, so that programs which log in as such a
    role work on. Table by table and queue by queue in transactions of their own: what was interrupted can be run again.

    Raises:
        InvalidArgument: a name cannot be used, or others were chosen before.
        NotPermitted: roles are to be made or granted, and this is not ours to do.
        TableLocked: a table stayed locked; run it again.
    """
    wanted, _ = yield from _names(schema, prefix)
    try:
        done: list[str] = yield Transact(partial(_make, schema, plugins, prefix))
        done += yield from grant_all(schema, plugins, wanted)
    except NotPermitted as error:
        raise _not_ours(error.reason, error.user, schema, wanted) from error
    return done


def grant_all(schema: str, plugins: Plugins, roles: Roles) -> Op[list[str]]:
    """Let the roles have what they need of all tables, and return what changed hands. Harmless to repeat."""
    from pgqrs_core.operations.queues import queue_of

    components = [source.component for source in plugins.migrations]
    handed = yield from _hand_over(schema, roles, _CORE, components)
    yield Transact(partial(_grant_shared, GRANTS, roles))
    for source in plugins.migrations:
        yield Transact(partial(_grant_shared, read_grants(source.package), roles))
    number = (yield Execute(queries["server_number"]))[0][0]
    waiting = yield from _not_theirs(schema, plugins, roles)
    theirs = {table for table, _, _ in waiting}
    for queue in map(queue_of, (yield Execute(queries["list_queues"]))):
        tables = theirs & _tables(queue)
        try:
            for table in sorted(tables):
                yield Transact(partial(_hand_over_table, roles, table))
            yield Transact(partial(_grant, queue, roles, number))
        except ServerError as error:
            if error.sqlstate != _UNDEFINED_TABLE:
                raise
            _log.warning("queue %r was not granted to the roles: %s", queue.name, error)
        else:
            handed += sorted(tables)
    return [f"owner of {schema}.{table}: {roles['admin']}" for table in handed]


def grant_new(schema: str, component: str, grants: Mapping[str, Query]) -> Op[None]:
    """Let the roles, where there are some, have what they need of the shared tables that a component just brought."""
    roles = yield from known_roles(schema)
    if roles:
        yield from _hand_over(schema, roles, _CORE if grants is GRANTS else (), [component])
        yield from _grant_shared(grants, roles)


def grant_queue(schema: str, queue: Queue) -> Op[None]:
    """Let the roles, where there are some, have what they need of a queue that was just created."""
    roles = yield from known_roles(schema)
    if roles:
        yield from _hand_over(schema, roles, _tables(queue), [])
        number = (yield Execute(queries["server_number"]))[0][0]
        yield from _grant(queue, roles, number)


def drop_roles(roles: Roles) -> Op[None]:
    """Drop the roles; the server refuses while they have rights anywhere else."""
    for name in roles.values():
        yield Execute(queries["drop_role"], names={"role": name})


def _not_ours(reason: str, user: str, schema: str, roles: Roles) -> NotPermitted:
    return NotPermitted(
        reason,
        user=user,
        schema=schema,
        duty="admin",
        remedy="Making roles takes CREATEROLE, and granting takes the owner of the schema and its tables. Run it as such a "
        f"role, or let an administrator first make the roles {', '.join(roles.values())} with NOLOGIN and "
        f"grant {roles['admin']} to {user}.",
    )


def _names(schema: str, prefix: str | None) -> Op[tuple[dict[str, str], bool]]:
    """Return what the roles are called or are to be called, and whether they were made before."""
    names: dict[str, str] = yield from known_roles(schema)
    wanted = role_names(schema, prefix) if prefix is not None or not names else names
    if names and wanted != names:
        chosen = names["admin"].removesuffix("_admin")
        raise InvalidArgument(
            "role_prefix", prefix, f"{chosen!r}, as it was when the roles of schema {schema!r} were made"
        )
    return wanted, bool(names)


def _missing(names: Roles) -> Op[list[str]]:
    """Return those of the roles that do not exist yet."""
    found = dict((yield Execute(queries["known_roles"], {"names": texts(list(names.values()))})))
    for name, is_more in found.items():
        if is_more:
            raise InvalidArgument(
                "role_prefix", name.rpartition("_")[0], f"another one: role {name!r} exists and is more than a group"
            )
    return [name for name in names.values() if name not in found]


def _make(schema: str, plugins: Plugins, prefix: str | None) -> Op[list[str]]:
    """Make the roles, and the owners of our tables members of the administrators'; return what was done."""
    yield Execute(queries["migration_lock"], {"schema": schema})
    names, known = yield from _names(schema, prefix)
    made = yield from _missing(names)
    for name in made:
        yield Execute(queries["create_role"], names={"role": name})
    ours = yield Execute(queries["has_role"], {"role": names["admin"]})
    if not ours[0][0]:
        yield Execute(queries["join_role"], names={"role": names["admin"]})
    if not known:
        yield Execute(queries["create_roles"])
        for duty, name in names.items():
            yield Execute(queries["record_role"], {"duty": duty, "name": name})
    # The administrators' role has to reach the tables before it owns them.
    yield Execute(queries["open_schema"], names=names)
    waiting = yield from _not_theirs(schema, plugins, names)
    members = sorted({owner for _, owner, needs_membership in waiting if needs_membership})
    for owner in members:
        yield from _join(names["admin"], owner)
    return [f"role {name}" for name in made] + [f"member of {names['admin']}: {owner}" for owner in members]


def _join(admin: str, owner: str) -> Op[None]:
    """Make an owner a member of the administrators' role, with all its rights at once."""
    inherits, number = (yield Execute(queries["inherits"], {"role": owner}))[0]
    if not inherits and number < _INHERIT_SINCE:
        raise InvalidArgument(
            "role_prefix",
            admin.removesuffix("_admin"),
            f"used when role {owner!r}, which owns the tables, inherits rights: run `alter role {owner} inherit` first",
        )
    name = "add_member" if inherits else "add_member_inherit"
    yield Execute(queries[name], names={"admin": admin, "owner": owner})


def _not_theirs(schema: str, plugins: Plugins, roles: Roles) -> Op[list[tuple[str, str, bool]]]:
    """Return our tables that are not the administrators' yet: name, owner, and whether that must become a member."""
    from pgqrs_core.operations.queues import queue_of

    exists = yield Execute(queries["schema_exists"], {"schema": schema})
    if not exists[0][0]:
        return []
    ours = set(_CORE)
    for row in (yield Execute(queries["list_queues"])):
        ours |= _tables(queue_of(row))
    components = tuple(f"{source.component}_" for source in plugins.migrations)
    rows = yield Execute(queries["not_theirs"], {"schema": schema, "role": roles["admin"]})
    return [row for row in rows if row[0] in ours or row[0].startswith(components)]


def _hand_over(schema: str, roles: Roles, tables: Collection[str], components: Sequence[str]) -> Op[list[str]]:
    """Let these tables, and those of these components, belong to the administrators; return those that did not yet."""
    rows = yield Execute(queries["not_theirs"], {"schema": schema, "role": roles["admin"]})
    starts = tuple(f"{component}_" for component in components)
    handed = [row[0] for row in rows if row[0] in tables or row[0].startswith(starts)]
    for table in handed:
        # By itself, for it takes a lock that stops everybody.
        yield Transact(partial(_hand_over_table, roles, table))
    return handed


def _hand_over_table(roles: Roles, table: str) -> Op[None]:
    yield Execute(queries["hand_over"], names={**roles, "table": table})


def _grant_shared(grants: Mapping[str, Query], roles: Roles) -> Op[None]:
    if "shared" in grants:
        yield Execute(grants["shared"], names=roles)


def _tables(queue: Queue) -> set[str]:
    return {f"{kind}_{queue.suffix}" for kind in "qav"}


def _grant(queue: Queue, roles: Roles, server: int) -> Op[None]:
    blocks: list[Query] = [GRANTS["queue"]]
    if queue.options.archive:
        blocks.append(GRANTS["archive"])
    if server >= _MAINTAIN_SINCE:
        blocks.append(GRANTS["maintain"])
    for block in blocks:
        yield Execute(block, queue=queue, names=roles)
