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

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op
from pgqrs_core.errors import InvalidArgument, NotPermitted
from pgqrs_core.messages import Queue
from pgqrs_core.sql import DUTIES, GRANTS, Query, queries, read_grants

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = ["Roles", "drop_roles", "grant_all", "grant_queue", "install_roles", "known_roles", "role_names"]

#: The name of the role for each duty.
Roles = Mapping[str, str]

_CORE: Final = frozenset(["migrations", "queues", "waiters", "leaders", "idempotency_keys", "roles"])
#: PostgreSQL cuts longer names short without a word.
_LONGEST: Final = 63
_MAINTAIN_SINCE: Final = 170_000


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


def install_roles(schema: str, plugins: Plugins, prefix: str | None = None) -> Op[list[str]]:
    """Make what is missing of the roles, grant them what they need, and return the names of those made now.

    Everything must be installed. Existing roles of these names are used, as long as they are groups.

    Raises:
        InvalidArgument: a name cannot be used, or others were chosen before.
        NotPermitted: roles are to be made or granted, and this is not ours to do.
    """
    names: dict[str, str] = yield from known_roles(schema)
    wanted = role_names(schema, prefix) if prefix is not None or not names else names
    if names and wanted != names:
        chosen = names["admin"].removesuffix("_admin")
        raise InvalidArgument(
            "role_prefix", prefix, f"{chosen!r}, as it was when the roles of schema {schema!r} were made"
        )
    try:
        made = yield from _make(wanted)
        if not names:
            yield Execute(queries["create_roles"])
            for duty, name in wanted.items():
                yield Execute(queries["record_role"], {"duty": duty, "name": name})
        yield from grant_all(schema, plugins, wanted)
    except NotPermitted as error:
        raise NotPermitted(
            str(error.__cause__ or error).split("\n")[0],
            user=error.user,
            schema=schema,
            duty="admin",
            remedy="Making roles takes CREATEROLE, and granting takes the owner of the schema and its tables. Run it as "
            f"such a role, or let an administrator first make the roles {', '.join(wanted.values())} with NOLOGIN and "
            f"grant {wanted['admin']} to {error.user}.",
        ) from error
    return made


def grant_all(schema: str, plugins: Plugins, roles: Roles) -> Op[None]:
    """Let the roles have what they need of all tables. Harmless to repeat."""
    from pgqrs_core.operations.queues import queue_of

    queues = [queue_of(row) for row in (yield Execute(queries["list_queues"]))]
    components = [source.component for source in plugins.migrations]
    yield Execute(GRANTS["shared"], names=roles)
    yield from _hand_over(schema, roles, queues, components)
    for source in plugins.migrations:
        block = read_grants(source.package).get("shared")
        if block is not None:
            yield Execute(block, names=roles)
    number = (yield Execute(queries["server_number"]))[0][0]
    for queue in queues:
        yield from _grant(queue, roles, number)


def grant_queue(schema: str, queue: Queue) -> Op[None]:
    """Let the roles, where there are some, have what they need of a queue that was just created."""
    roles = yield from known_roles(schema)
    if roles:
        yield from _hand_over(schema, roles, [queue], [])
        number = (yield Execute(queries["server_number"]))[0][0]
        yield from _grant(queue, roles, number)


def drop_roles(roles: Roles) -> Op[None]:
    """Drop the roles; the server refuses while they have rights anywhere else."""
    for name in roles.values():
        yield Execute(queries["drop_role"], names={"role": name})


def _make(names: Roles) -> Op[list[str]]:
    found = dict((yield Execute(queries["known_roles"], {"names": texts(list(names.values()))})))
    for name, is_more in found.items():
        if is_more:
            raise InvalidArgument(
                "role_prefix", name.rpartition("_")[0], f"another one: role {name!r} exists and is more than a group"
            )
    made = [name for name in names.values() if name not in found]
    for name in made:
        yield Execute(queries["create_role"], names={"role": name})
    ours = yield Execute(queries["has_role"], {"role": names["admin"]})
    if not ours[0][0]:
        yield Execute(queries["join_role"], names={"role": names["admin"]})
    return made


def _hand_over(schema: str, roles: Roles, queues: Sequence[Queue], components: Sequence[str]) -> Op[None]:
    """Let our tables belong to the administrators' role; only those that do not yet, for it takes a lock."""
    ours = {f"{kind}_{queue.suffix}" for queue in queues for kind in "qav"} | _CORE
    rows = yield Execute(queries["not_theirs"], {"schema": schema, "role": roles["admin"]})
    for (table,) in rows:
        if table in ours or table.startswith(tuple(f"{component}_" for component in components)):
            yield Execute(queries["hand_over"], names={**roles, "table": table})


def _grant(queue: Queue, roles: Roles, server: int) -> Op[None]:
    blocks: list[Query] = [GRANTS["queue"]]
    if queue.options.archive:
        blocks.append(GRANTS["archive"])
    if server >= _MAINTAIN_SINCE:
        blocks.append(GRANTS["maintain"])
    for block in blocks:
        yield Execute(block, queue=queue, names=roles)
