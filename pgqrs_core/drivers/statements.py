"""From a statement in the catalogue to the bytes that go to the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.string import TextLoader

from pgqrs_core.arrays import ByteaArray
from pgqrs_core.effects import Execute
from pgqrs_core.messages import Queue
from pgqrs_core.sql import Query

__all__ = [
    "NO_ROWS",
    "ByteaArrayDumper",
    "Statement",
    "Statements",
    "has_rows",
    "in_encoding_of",
    "prepare_adapters",
    "prepare_borrowed",
]

_UNION: Final = sql.SQL("\nunion all\n")
#: A parameter, or a percent sign within an identifier, which stands doubled beside parameters.
_PARAMETER: Final = re.compile(r"%\((\w+)\)s|%%")


class ByteaArrayDumper(Dumper):
    """Passes a `ByteaArray` on as it is."""

    format = Format.BINARY
    oid = ByteaArray.oid

    def dump(self, obj: ByteaArray) -> bytes:
        """Return the parameter's wire format."""
        return obj.data


class Statement(NamedTuple):
    """One statement as the server gets it, in both styles of parameters: ``%(name)s``, and ``$1`` with names in order."""

    named: bytes
    positional: bytes
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Statement:
        """Number the parameters of ``text``."""
        names = tuple(dict.fromkeys(filter(None, _PARAMETER.findall(text))))
        numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}" if match[1] else "%", text)
        return cls(text.encode(), numbered.encode(), names)


class Statements:
    """Composes and remembers statements for one schema. Names become identifiers here and nowhere else."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._known: dict[tuple[Query, Any], Statement] = {}

    def render(self, effect: Execute) -> Statement:
        """Return the statement with its identifiers filled in; values stay parameters."""
        key: tuple[Query, Any]
        if effect.queues:
            key = effect.query, tuple((queue.id, queue.suffix) for queue in effect.queues)
        else:
            queue = effect.queue
            place = (queue.id, queue.suffix) if queue is not None else None
            key = effect.query, (place, *effect.names.items()) if effect.names else place
        known = self._known.get(key)
        if known is None:
            # Deleted queues would pile up here otherwise.
            if len(self._known) > 5_000:
                self._known.clear()
            text = self._compose(effect).as_string(None)
            plain = Statement(text.encode(), text.encode(), ())
            known = self._known[key] = Statement.of(text) if _has_parameters(effect.query) else plain
        return known

    def _compose(self, effect: Execute) -> sql.Composable:
        if effect.queues:
            parts = ((effect.special.get(queue.id, effect.query), queue) for queue in effect.queues)
            return _UNION.join(self._fill(query, queue, effect.names) for query, queue in parts)
        return self._fill(effect.query, effect.queue, effect.names)

    def _fill(self, query: Query, queue: Queue | None, more: Mapping[str, str]) -> sql.Composable:
        names: dict[str, sql.Composable] = {"schema": sql.Identifier(self.schema)}
        names.update((key, sql.Identifier(name)) for key, name in more.items())
        if queue is not None:
            for key, prefix in (("queue", "q_"), ("archive", "a_"), ("view", "v_")):
                names[key] = sql.Identifier(self.schema, prefix + queue.suffix)
            names["queue_id"] = sql.Literal(queue.id)
            names["enqueue"] = sql.Identifier(self.schema, f"e_{queue.suffix}")
            names["queue_label"] = sql.Literal(queue.label)
            names["sequence"] = sql.Identifier(self.schema, f"q_{queue.suffix}_message_id_seq")
            for key in ("queue", "archive", "sequence"):
                names[f"{key}_name"] = sql.Literal(names[key].as_string(None))
        if _has_parameters(query):
            names = {key: sql.SQL(name.as_string(None).replace("%", "%%")) for key, name in names.items()}
        return sql.SQL(query.text).format(**names)


def _has_parameters(query: Query) -> bool:
    return "%(" in query.text


def prepare_adapters(context: AdaptContext) -> None:
    """Teach a connection or cursor the parameters that only pgqrs uses."""
    context.adapters.register_dumper(ByteaArray, ByteaArrayDumper)


class _Utf8Loader(TextLoader):
    """Reads texts of a connection in ``SQL_ASCII``, of which psycopg makes bytes: ours are UTF-8 in any database."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._encoding = "utf-8"


class _Utf8BinaryLoader(_Utf8Loader):
    format = Format.BINARY


def prepare_borrowed(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    """Teach a cursor on the caller's connection what pgqrs needs, whatever the connection has been taught."""
    prepare_adapters(cursor)
    if cursor.connection.info.encoding == "ascii":
        for loader in (_Utf8Loader, _Utf8BinaryLoader):
            for name in ("text", "varchar", "name"):
                cursor.adapters.register_loader(name, loader)


def in_encoding_of(connection: psycopg.BaseConnection[Any], statement: bytes) -> bytes | str:
    """Return a statement as the caller's connection needs it: psycopg encodes texts, and sends bytes as they are."""
    return statement if connection.info.encoding in ("utf-8", "ascii") else statement.decode()


def has_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    """Tell whether a statement answered with rows. Asking for a cursor's description builds one, at 5 µs a column."""
    result = cursor.pgresult
    return result is not None and result.nfields > 0


#: What a script or a statement without rows answers.
NO_ROWS: Final[list[tuple[Any, ...]]] = []
