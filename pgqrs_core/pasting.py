"""What errors and findings offer to be pasted into a shell or into psql: one line each, whatever names hold."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pgqrs_core.messages import Queue

__all__ = ["advance_sequence", "command", "identifier", "literal", "shell_quoted"]

#: Ids from here on were not given by a sequence: they are no reason to set one beyond them.
ABSURD_ID: Final = 2**62


def command(*words: str, names: tuple[str, ...] = ()) -> str:
    """Return a call of ``pgqrs`` to be pasted into a shell.

    Args:
        *words: the command and its options.
        names: its arguments, quoted where a shell or the command would take them for something else.
    """
    ended = ("--",) if any(name.startswith("-") for name in names) else ()
    return " ".join(["pgqrs", *words, *ended, *map(shell_quoted, names)])


def shell_quoted(text: str) -> str:
    """Quote one word for bash and zsh, in one line whatever it holds."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(f"\\x{byte:02x}" for byte in text.encode(errors="surrogateescape")) + "'"


def identifier(*parts: str) -> str:
    """Quote the name of a database object for psql."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text: str) -> str:
    """Quote a text for psql, in one line whatever it holds."""
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return "E'" + "".join(f"\\x{byte:02x}" for byte in text.encode()) + "'"


def advance_sequence(schema: str, queue: Queue) -> str:
    """Return the statement that sets the sequence of a queue's ids beyond every id that it has given."""
    table = identifier(schema, f"q_{queue.suffix}")
    places = [(table, "")]
    if queue.options.archive:
        places.append((identifier(schema, f"a_{queue.suffix}"), ""))
    places.append((identifier(schema, "idempotency_keys"), f" and queue_id = {queue.id}"))
    highest = ", ".join(
        f"(select max(message_id) from {place} where message_id < {ABSURD_ID}{more})"  # noqa: S608 - shown, not run
        for place, more in places
    )
    sequence = f"pg_get_serial_sequence({literal(table)}, 'message_id')"
    return f"select setval({sequence}, greatest({highest}, nextval({sequence})));"
