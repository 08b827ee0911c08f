"""The catalogue of statements, read once from the ``.sql`` files beside this module.

A statement begins with ``-- name: <name>`` and the comment that follows says what it promises. Placeholders in
braces are identifiers, composed by the driver and never formatted: ``{schema}``, ``{queue}``, ``{archive}``, ``{view}``,
``{sequence}``, ``{enqueue}`` (a function), ``{queue_name}``, ``{archive_name}`` and ``{sequence_name}`` (as texts, for
functions that take one), ``{queue_id}`` (a number) and ``{queue_label}`` (a text). Values are always parameters. Others, of
roles for instance, are filled in from `Execute.names`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from types import MappingProxyType
from typing import Final

__all__ = [
    "DUTIES",
    "GRANTS",
    "MIGRATIONS",
    "Migration",
    "Query",
    "queries",
    "read_grants",
    "read_migrations",
    "read_queries",
]

#: What a program may be for; each has a role of its own where `pgqrs install --roles` was run.
DUTIES: Final = ("producer", "consumer", "observer", "admin")

#: Flags of statements that need the session set differently.
_UNUSUAL: Final = frozenset({"patient", "bitmap", "lock_timeout", "login"})

#: Scripts take as long as they need, but do not let others wait behind them.
_SCRIPT: Final = frozenset({"patient", "lock_timeout"})

_BLOCK = re.compile(r"^-- name: (?P<name>\w+)(?P<flags>(?: \w+)*)\s*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One named statement, or a script of several that takes no parameters.

    Flags stand behind the name. ``relaxed``: its commit may be lost in a crash of the server without harm, so it need
    not wait for the disk. ``patient``: it may take longer than the query timeout. ``lock_timeout``: it waits for the lock
    of a table for a moment only, because others wait behind it, see drivers/locks.py; scripts of migrations and grants
    have both of these. ``brief``: it has one turn of waiting for its locks, and whoever runs it tries again later; others
    wait as long as the query timeout allows. ``bitmap``: it wants the bitmap scans that are switched off for everything
    else. ``alone``: it refuses to run inside a transaction. ``glance``: it changes nothing and is over at once, so any
    connection will do. ``login``: it runs with the rights that the session began with where this acts as the owner of the
    tables, see drivers/acting.py; it uses no table of ours, or changes whom one belongs to. ``producer``, ``consumer``,
    ``observer``, ``anyone``: who must be allowed to run it; without one of these it is an administrator's. See
    operations/roles.py.

    A query is equal to itself alone: those of the catalogue are looked up by it at each call.
    """

    name: str
    text: str
    flags: frozenset[str] = frozenset()
    #: Which connection it wants: a relaxed one, one whose commits are durable, or None for either.
    wants: bool | None = field(init=False)
    #: Its flags that want the session set differently.
    unusual: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wants", None if "glance" in self.flags else self.relaxed)
        object.__setattr__(self, "unusual", self.flags & _UNUSUAL)

    @property
    def duty(self) -> str:
        """Who must be allowed to run it: one of `DUTIES`, or ``anyone`` who has one of them."""
        return next((flag for flag in ("anyone", *DUTIES) if flag in self.flags), "admin")

    @property
    def relaxed(self) -> bool:
        """Whether its commit need not wait for the disk."""
        return "relaxed" in self.flags


@dataclass(frozen=True, slots=True)
class Migration:
    """One forward step of the schema: for the shared tables, and for the tables of every queue."""

    version: int
    name: str
    checksum: str
    #: Whether code that does not know this step keeps running after it.
    safe: bool
    blocks: Mapping[str, Query]


def _blocks(text: str, flags: frozenset[str] = frozenset()) -> Iterator[Query]:
    starts = list(_BLOCK.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    for match, end in zip(starts, ends):
        body = text[match.end() : end].strip()
        yield Query(match["name"], body.removesuffix(";"), flags.union(match["flags"].split()))


def read_queries(package: str) -> Mapping[str, Query]:
    """Read the statements of the ``.sql`` files that lie in ``package``, an adapter's own for example.

    Raises:
        ValueError: two of them have the same name.
    """
    found: dict[str, Query] = {}
    for path in sorted(files(package).iterdir(), key=lambda item: item.name):
        if path.name.endswith(".sql"):
            for query in _blocks(path.read_text(encoding="utf-8")):
                if query.name in found:
                    raise ValueError(f"two statements are named {query.name!r}")
                found[query.name] = query
    return MappingProxyType(found)


def read_migrations(package: str) -> Iterator[Migration]:
    """Read the numbered scripts, ``NNNN_title.sql``, that lie in ``package``."""
    for path in sorted(files(package).iterdir(), key=lambda item: item.name):
        number, _, rest = path.name.partition("_")
        if path.name.endswith(".sql") and number.isdigit():
            text = path.read_text(encoding="utf-8")
            yield Migration(
                version=int(number),
                name=rest.removesuffix(".sql"),
                checksum=hashlib.sha256(text.encode()).hexdigest(),
                safe="-- safe: yes" in text,
                blocks=MappingProxyType({block.name: block for block in _blocks(text, _SCRIPT)}),
            )


def read_grants(package: str) -> Mapping[str, Query]:
    """Read what the roles may do with the tables of the scripts in ``package``: its ``grants.sql``, if there is one."""
    path = files(package) / "grants.sql"
    if not path.is_file():
        return MappingProxyType({})
    return MappingProxyType({block.name: block for block in _blocks(path.read_text(encoding="utf-8"), _SCRIPT)})


queries: Final = read_queries(__name__)
MIGRATIONS: Final = tuple(read_migrations(f"{__name__}.migrations"))
GRANTS: Final = read_grants(f"{__name__}.migrations")
