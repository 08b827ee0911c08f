"""Prepared statements by libpq's own calls.

A psycopg cursor serves every query and every kind of waiting; of the 60 µs of Python that it takes a statement, two thirds
are spent on generality that the catalogue's fixed statements do not need. This is the short way for them: the same
connection, parameters in the simplest wire format, rows by psycopg's own loaders. Under gevent, behind a pooler and for
rare kinds of parameters the cursor is used instead. See docs/adr/0005-short-way-for-prepared-statements.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors
from psycopg.pq import ExecStatus, Format

from pgqrs_core.arrays import ByteaArray, WithNulls
from pgqrs_core.drivers.patience import answers
from pgqrs_core.drivers.rows import RowLoader
from pgqrs_core.drivers.session import PREPARED_MAX
from pgqrs_core.readiness import Readiness

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from pgqrs_core.drivers.patience import Connection
    from pgqrs_core.drivers.statements import Statement

__all__ = ["Prepared", "is_usable", "wire"]

_GOOD: Final = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK})
# As plain numbers: psycopg converts members of an enumeration at each call.
_AS_TEXT: Final = int(Format.TEXT)
_AS_BINARY: Final = int(Format.BINARY)

_TEXT: Final[Mapping[type, Callable[[Any], bytes]]] = {
    int: lambda value: b"%d" % value,
    float: lambda value: repr(value).encode(),
    bool: lambda value: b"t" if value else b"f",
    datetime: lambda value: value.isoformat().encode(),
}


def is_usable() -> bool:
    """Tell whether blocking by ourselves is right here: not where gevent has made blocking cooperative."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is None or not monkey.is_module_patched("select")


def wire(names: Sequence[str], params: Mapping[str, object]) -> tuple[list[bytes | None], list[int]] | None:
    """Return parameters in the order of ``names`` and their formats; None if only psycopg can convert one of them."""
    data: list[bytes | None] = []
    formats: list[int] = []
    for name in names:
        value = params[name]
        kind = type(value)
        as_binary = False
        if value is None:
            data.append(None)
        elif kind is bytes:
            data.append(value)  # type: ignore[arg-type]
            as_binary = True
        elif kind is ByteaArray:
            data.append(value.data)  # type: ignore[attr-defined]
            as_binary = True
        elif kind is str or kind is WithNulls:
            text = value.encode()  # type: ignore[attr-defined]
            if b"\0" in text:
                # libpq would take it for the end; psycopg says that it cannot be stored.
                return None
            data.append(text)
        elif kind in _TEXT:
            data.append(_TEXT[kind](value))
        else:
            return None
        formats.append(_AS_BINARY if as_binary else _AS_TEXT)
    return data, formats


class Prepared:
    """The statements prepared on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._readiness = Readiness(connection.pgconn.socket)
        self._rows = RowLoader(connection)
        self._names: dict[bytes, bytes] = {}
        self._count = 0
        #: The results of the statement that is under way, as far as they have come; None while there is none.
        self._results: list[PGresult] | None = None

    def execute(self, statement: Statement, data: list[bytes | None], formats: list[int]) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows.

        Raises:
            psycopg.Error: as the server says.
        """
        pgconn = self._connection.pgconn
        self._results = None
        name = self._names.get(statement.positional) or self._prepare(statement)
        self._results = []
        pgconn.send_query_prepared(name, data, formats, _AS_BINARY)
        rows = self._rows.load(self._answer())
        self._results = None
        return rows

    def finish(self, seconds: float) -> list[tuple[Any, ...]]:
        """Return the rows of a statement whose `execute` was interrupted; none if it was not sent yet.

        Raises:
            psycopg.Error: it did not succeed, or not within ``seconds``.
        """
        return [] if self._results is None else self._rows.load(self._answer(seconds))

    def _prepare(self, statement: Statement) -> bytes:
        pgconn = self._connection.pgconn
        if len(self._names) >= PREPARED_MAX:
            self._names.clear()
            self._connection.execute("deallocate all")
        self._count += 1
        name = b"pgqrs_%d" % self._count
        pgconn.send_prepare(name, statement.positional)
        self._answer()
        self._names[statement.positional] = name
        return name

    def _answer(self, limit: float | None = None) -> PGresult:
        """Return the last result, for what goes wrong in the commit comes after the rows."""
        connection = self._connection
        results = [] if self._results is None else self._results
        result = answers(connection.pgconn, self._readiness, limit or connection.limit, results)[-1]
        if result.status not in _GOOD:
            raise errors.error_from_result(result, encoding="utf-8")
        return result
