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

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import InvalidArgument, NotPermitted
from pgqrs_core.logs import get_logger
from pgqrs_core.operations.grants import Roles, grant_all, known_roles, not_theirs
from pgqrs_core.sql import DUTIES, queries

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = [
    "Roles",
    "RolesPlan",
    "check_roles",
    "drop_roles",
    "install_roles",
    "known_roles",
    "plan_roles",
    "role_names",
]

_log = get_logger("pgqrs.schema")

#: PostgreSQL cuts longer names short without a word.
_LONGEST: Final = 63
#: From here on a membership says itself whether it is inherited.
_INHERIT_SINCE: Final = 160_000


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
    for table, owner, needs_membership in (yield from not_theirs(schema, plugins, wanted)):
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
    waiting = yield from not_theirs(schema, plugins, names)
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
