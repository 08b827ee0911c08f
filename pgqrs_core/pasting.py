"""What errors and findings offer to be pasted into a shell or into psql: one line each, whatever names hold."""

from __future__ import annotations

import shlex

__all__ = ["command", "identifier", "literal", "shell_quoted"]


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
