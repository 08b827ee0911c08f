"""From a result of libpq to rows of Python's values.

PostgreSQL's times reach from 4713 BC to the year 294276, and to both infinities; Python's ``datetime`` from the year 1 to
9999. psycopg raises for the others, and one such row would hide all rows of its result: those that a claim has taken
already, for example. Here they become the nearest time that Python has. So do characters that are not UTF-8, which a
database in ``SQL_ASCII`` may hold: they become U+FFFD.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import Format
from psycopg.types.datetime import TimestamptzBinaryLoader, TimestamptzLoader
from psycopg.types.string import TextLoader

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, Buffer
    from psycopg.pq.abc import PGresult

__all__ = ["EARLIEST", "LATEST", "RowLoader", "fetched", "fetched_async", "load_rows"]

#: What a time before and after those of Python becomes.
EARLIEST: Final = datetime.min.replace(tzinfo=timezone.utc)
LATEST: Final = datetime.max.replace(tzinfo=timezone.utc)

_UNREADABLE: Final = (psycopg.DataError, UnicodeDecodeError)
_TEXTS: Final = ("text", "varchar", "name")


class RowLoader:
    """Loads the rows of the results of one connection, one after another.

    It looks up how to load a type when it meets it for the first time; for a single row that takes longer than the rest.
    """

    __slots__ = ("_context", "_transformer")

    def __init__(self, context: AdaptContext) -> None:
        self._context = context
        self._transformer = Transformer(context)

    def load(self, result: PGresult) -> list[tuple[Any, ...]]:
        """Return the rows of a result, as `load_rows` does."""
        if not result.ntuples:
            return []
        transformer = self._transformer
        try:
            transformer.set_pgresult(result)
            return transformer.load_rows(0, result.ntuples, tuple)
        except _UNREADABLE:
            return _load(_Tolerant(self._context), result)
        finally:
            # It is not to keep the result.
            transformer.set_pgresult(None)


def load_rows(context: AdaptContext, result: PGresult) -> list[tuple[Any, ...]]:
    """Return the rows of a result, read as its connection or cursor reads values."""
    try:
        return _load(context, result)
    except _UNREADABLE:
        return _load(_Tolerant(context), result)


def fetched(cursor: psycopg.Cursor[Any]) -> list[tuple[Any, ...]]:
    """Return the rows that a cursor has; in the caller's pipeline mode after waiting for them.

    Raises:
        psycopg.ProgrammingError: it has none, as it ran a statement that returns none.
    """
    try:
        return cursor.fetchall()
    except _UNREADABLE as error:
        return _load(_Tolerant(cursor), _unreadable_result(cursor, error))


async def fetched_async(cursor: psycopg.AsyncCursor[Any]) -> list[tuple[Any, ...]]:
    """Return the same of an asynchronous cursor."""
    try:
        return await cursor.fetchall()
    except _UNREADABLE as error:
        return _load(_Tolerant(cursor), _unreadable_result(cursor, error))


def _unreadable_result(
    cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any], error: psycopg.DataError | UnicodeDecodeError
) -> PGresult:
    """Return the result that could not be read; in a pipeline the error may be the server's, and then it is raised."""
    if cursor.pgresult is None or getattr(error, "sqlstate", None) is not None:
        raise error
    return cursor.pgresult


def _load(context: AdaptContext, result: PGresult) -> list[tuple[Any, ...]]:
    transformer = Transformer(context)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


class _Tolerant:
    """The adapters of a connection or cursor, with loaders that take every value."""

    def __init__(self, context: AdaptContext) -> None:
        self.connection = context.connection
        self.adapters = AdaptersMap(context.adapters)
        self.adapters.register_loader("timestamptz", _NearestTime)
        self.adapters.register_loader("timestamptz", _NearestTimeBinary)
        for name in _TEXTS:
            self.adapters.register_loader(name, _ReadableText)
            self.adapters.register_loader(name, _ReadableTextBinary)


class _NearestTime(TimestamptzLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            return EARLIEST if text.startswith(b"-") or text.endswith(b"BC") else LATEST


class _NearestTimeBinary(TimestamptzBinaryLoader):
    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            # Microseconds since the year 2000, and the ends of the range for the infinities.
            return EARLIEST if bytes(data)[0] & 0x80 else LATEST


class _ReadableText(TextLoader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


class _ReadableTextBinary(_ReadableText):
    format = Format.BINARY
