"""From psycopg's errors to ours, in one place."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgqrs_core.drivers.locks import LOCKED, locked_tables
from pgqrs_core.errors import (
    InvalidArgument,
    MessageIdsCollide,
    NotPermitted,
    PgqrsError,
    ReadOnly,
    ServerError,
    TableLocked,
    TimedOut,
    Unavailable,
)
from pgqrs_core.pasting import advance_sequence
from pgqrs_core.weights import MOST_BYTES, size_of

if TYPE_CHECKING:
    from pgqrs_core.drivers.statements import Statements
    from pgqrs_core.effects import Execute

__all__ = ["MOST_CONFLICTS", "RETRY", "STALE", "cannot_connect", "refused", "translate"]

#: Conflicts between transactions: the statement was rolled back and may simply be run again.
RETRY: Final = frozenset({"40001", "40P01"})
#: How often a transaction is run again after one.
MOST_CONFLICTS: Final = 2
#: The prepared statement no longer fits its table: run it again on a connection without it.
STALE: Final = frozenset({"0A000", "26000"})

#: Bytes of a message beside large parameters.
_REST: Final = 2**16

_PLACE: Final = re.compile(r"\(\d+,\d+\)")

_DENIED: Final = "42501"
_DUPLICATE: Final = "23505"

#: A standby where the primary was, or a session that is read-only by its settings.
_READ_ONLY: Final = "25006"

#: Where a standby refuses a table that is not written to the log, as ``waiters``. The SQLSTATE is that of a changed plan.
_UNLOGGED_ON_STANDBY: Final = ("0A000", "get_relation_info")

# Administrator commands, crash, start-up, shutdown, a dropped database; too many connections.
_GONE: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "53300"})

#: The session, or the whole server, ends with such an error: what was on its way may be committed all the same.
_ENDING: Final = frozenset({"FATAL", "PANIC"})


def translate(error: psycopg.Error, *, target: str, broken: bool) -> PgqrsError:
    """Return our error for one of psycopg's; the caller raises it from the original.

    The text is the server's primary message only: its details may quote values.
    """
    state = error.sqlstate
    reason = error.diag.message_primary or str(error).strip().split("\n")[0] or type(error).__name__
    if state == "57014":
        return TimedOut(f"{target}: {reason}", target=target)
    if state == _READ_ONLY or (state, error.diag.source_function) == _UNLOGGED_ON_STANDBY:
        return ReadOnly(reason, target=target)
    ends = error.diag.severity_nonlocalized in _ENDING
    if broken or ends or state in _GONE or (state or "").startswith("08"):
        return Unavailable(f"lost the connection to {target}: {reason}", target=target, in_flight=True)
    return ServerError(f"{reason} (SQLSTATE {state})" if state else reason, sqlstate=state)


def refused(
    error: psycopg.Error | UnicodeEncodeError,
    effect: Execute,
    statements: Statements,
    connection: psycopg.BaseConnection[Any],
    *,
    target: str,
) -> PgqrsError:
    """Return our error for what became of a statement of the catalogue; a missing right is said with its remedy."""
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        reason = f"the connection's encoding, {error.encoding}, does not have all characters of a text"
        return ServerError(f"{reason}: execute `set client_encoding = 'UTF8'` on it", sqlstate="22P05")
    if isinstance(error, UnicodeEncodeError):
        return ServerError("a text holds lone surrogates, which PostgreSQL cannot store", sqlstate="22021")
    size = size_of(effect.params)
    if size >= MOST_BYTES - _REST:
        # The server ends the session for it, and has not run it.
        return InvalidArgument("statement", f"{size:,} bytes", f"below {MOST_BYTES - _REST:,} bytes")
    if error.sqlstate == _DENIED:
        reason = error.diag.message_primary or "permission denied"
        return NotPermitted(reason, user=connection.info.user, schema=statements.schema, duty=effect.query.duty)
    if (
        error.sqlstate == _DUPLICATE
        and effect.queue is not None
        and error.diag.table_name == f"q_{effect.queue.suffix}"
    ):
        return MessageIdsCollide(effect.queue.name, advance_sequence(statements.schema, effect.queue))
    if error.sqlstate == LOCKED:
        # In any language it names the place of the row.
        is_row = _PLACE.search(error.diag.context or "") is not None
        return TableLocked(statements.schema, locked_tables(effect), is_row=is_row)
    return translate(error, target=target, broken=connection.broken)


def cannot_connect(error: psycopg.Error, *, target: str) -> PgqrsError:
    """Return our error for a connection that could not be opened. libpq's text never holds the password."""
    reason = " ".join(str(error).split())
    return Unavailable(f"cannot connect to {target}: {reason}", target=target)
