"""What to grant, where a right is missing: by the names that the roles of this schema have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pgqrs_core.effects import Execute
from pgqrs_core.errors import NotPermitted
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.effects import Rows

__all__ = ["named", "who_may"]

_ADMIN: Final = "_admin"


def who_may(schema: str) -> Execute:
    """Return the statement that asks whom the tables belong to, and which roles there are for duties."""
    return Execute(queries["tables_owner"], {"schema": schema})


def named(error: NotPermitted, rows: Rows) -> NotPermitted:
    """Return an error that names the role to grant, by what `who_may` was answered."""
    if not rows or error.explained:
        return error
    owner, roles, monitors = rows[0]
    prefix = owner.removesuffix(_ADMIN)
    duties: tuple[str, ...] = (error.duty,)
    if error.duty == "anyone":
        # A member of pg_monitor is there to look.
        duties = ("observer",) if monitors else ("producer", "consumer", "observer")
    known = [f"{prefix}_{duty}" for duty in duties if f"{prefix}_{duty}" in roles]
    if known:
        grants = " or ".join(f"`grant {_identifier(role)} to {_identifier(error.user)}`" for role in known)
        work = "for its work" if error.duty == "anyone" else f"of {'an' if error.duty[0] in 'ao' else 'a'} {error.duty}"
        remedy = f"Grant it the role {work}: {grants}."
    else:
        remedy = (
            f"The tables belong to {owner!r}, and there are no roles for duties: "
            f"`grant {_identifier(owner)} to {_identifier(error.user)}`, or make some with `pgqrs install --roles`."
        )
    return NotPermitted(error.reason, user=error.user, schema=error.schema, duty=error.duty, remedy=remedy)


def _identifier(name: str) -> str:
    """Return a name as it can be pasted into a statement."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
