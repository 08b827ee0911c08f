"""Granting the tables to the roles, and handing them over to the administrators', a table or a queue at a time.

Which roles there are, and who makes them, is said at `pgqrs_core.operations.roles`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import RoleMissing, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.sql import GRANTS, Query, queries, read_grants

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = ["Roles", "grant_all", "grant_new", "grant_queue", "known_roles", "not_theirs"]

#: The name of the role for each duty.
Roles = Mapping[str, str]

_log = get_logger("pgqrs.schema")

_CORE: Final = frozenset(["migrations", "queues", "waiters", "leaders", "idempotency_keys", "roles"])
_MAINTAIN_SINCE: Final = 170_000
_UNDEFINED_TABLE: Final = "42P01"


def known_roles(schema: str) -> Op[dict[str, str]]:
    """Return the roles that were made for this schema, by duty; none where `install_roles` never ran."""
    exists = yield Execute(queries["roles_exist"], {"schema": schema})
    if not exists[0][0]:
        return {}
    rows = yield Execute(queries["list_roles"])
    return dict(rows)


def _existing_roles(schema: str) -> Op[dict[str, str]]:
    """Return the roles that were made for this schema, as `known_roles` does.

    Raises:
        RoleMissing: one of them was renamed or dropped.
    """
    roles: dict[str, str] = yield from known_roles(schema)
    if not roles:
        return {}
    rows = yield Execute(queries["known_roles"], {"names": texts(list(roles.values()))})
    found = {row[0] for row in rows}
    for duty, role in roles.items():
        if role not in found:
            raise RoleMissing(schema, duty, role)
    return roles


def grant_all(schema: str, plugins: Plugins, roles: Roles) -> Op[list[str]]:
    """Let the roles have what they need of all tables, and return what changed hands. Harmless to repeat."""
    from pgqrs_core.operations.queues import queue_of

    components = [source.component for source in plugins.migrations]
    handed = yield from _hand_over(schema, roles, _CORE, components)
    yield Transact(partial(_grant_shared, GRANTS, roles))
    for source in plugins.migrations:
        yield Transact(partial(_grant_shared, read_grants(source.package), roles))
    number = (yield Execute(queries["server_number"]))[0][0]
    waiting = yield from not_theirs(schema, plugins, roles)
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
    roles = yield from _existing_roles(schema)
    if roles:
        yield from _hand_over(schema, roles, _CORE if grants is GRANTS else (), [component])
        yield from _grant_shared(grants, roles)


def grant_queue(schema: str, queue: Queue) -> Op[None]:
    """Let the roles, where there are some, have what they need of a queue that was just created."""
    roles = yield from _existing_roles(schema)
    if roles:
        yield from _hand_over(schema, roles, _tables(queue), [])
        number = (yield Execute(queries["server_number"]))[0][0]
        yield from _grant(queue, roles, number)


def not_theirs(schema: str, plugins: Plugins, roles: Roles) -> Op[list[tuple[str, str, bool]]]:
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
    yield Execute(queries["hand_over_function"], queue=queue, names=roles)
    for block in blocks:
        yield Execute(block, queue=queue, names=roles)
