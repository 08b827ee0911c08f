"""A table that is missing: is it that of a queue, which was deleted, or are the tables of the whole schema gone?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pgqrs_core.effects import Execute
from pgqrs_core.installations import Installation
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from pgqrs_core.effects import Rows
    from pgqrs_core.errors import PgqrsError, ServerError

__all__ = ["explained", "is_missing", "which_are_missing"]

#: No such table, no such function, no such schema.
_MISSING: Final = frozenset({"42P01", "42883", "3F000"})


def is_missing(error: ServerError) -> bool:
    """Tell whether a statement was refused because a table, a queue's function or the schema is not there."""
    return error.sqlstate in _MISSING


def which_are_missing(schema: str) -> Execute:
    """Return the statement that asks which of the core's tables are missing."""
    return Execute(queries["missing_core_tables"], {"schema": schema})


def explained(error: ServerError, rows: Rows, installation: Installation) -> PgqrsError:
    """Return `SchemaUnavailable` where tables are gone that this process has used and all queues share, else the error.

    Args:
        error: what became of a statement.
        rows: the answer to `which_are_missing`.
        installation: what this process knows of the schema.
    """
    if not installation.was_used():
        return error
    if rows:
        return installation.unavailable(f"{', '.join(row[0] for row in rows)} missing")
    # In any language the server's text names the table as the statement did.
    named = re.search(rf'{re.escape(installation.schema)}"?\."?(\w+)', str(error))
    if named is None or named[1].startswith(("q_", "a_", "v_", "e_")):
        return error
    return installation.unavailable(f"{named[1]} is missing")
