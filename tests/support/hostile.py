"""Rows as no honest program writes them, in every table of an installation, made of what the catalogue says.

So a table or a column that is added later is covered by itself.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

__all__ = ["HostileRows", "without_constraints"]

_DROP: Final = """
do $$
declare statement text;
begin
  for statement in
    select format('alter table %s drop constraint %I', conrelid::regclass, conname)
    from pg_constraint where contype = 'c' and connamespace = 'pgqrs'::regnamespace
  loop execute statement; end loop;
end $$
"""

_COLUMNS: Final = """
select c.relname, a.attname, t.typname, a.attidentity <> '', a.attidentity <> '' or a.atthasdef or not a.attnotnull
from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_type t on t.oid = a.atttypid
where c.relnamespace = 'pgqrs'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
  and a.attgenerated = '' and has_column_privilege(%s, c.oid, a.attnum, 'insert')
order by c.relname, a.attnum
"""

#: Tables in which a row of an administrator's says what pgqrs is to do, if it looks like one: which version is installed,
#: to which role to grant.
_ORDERS: Final = frozenset({"migrations", "roles"})
#: So does how far the tables of a queue are upgraded: one that is not keeps all programs waiting for the upgrade.
_FIXED: Final = {("queues", "schema_version"): 1_000}

_TEXTS: Final = (
    "",
    " ",
    "0",
    "-1",
    "null",
    "'; drop table x; --",
    '"',
    "%s",
    "%(a)s",
    "{}",
    "$1",
    "\\",
    "\\x00",
    "((((",
    "*",
    "#.#",
    "[a-",
    "(a+)+$",
    "\x01\x1b[2J\x7f",
    "\x9b31m",
    "\u202eabc",
    "\u2028",
    "é" * 300,
    "x" * 300,
    "x" * 70_000,
    "😀",
    "\ufffe",
    "infinity",
    "pgqrs:0",
    "application/json",
    "application/data",
    "application/x-python-serialize",
    "text/plain",
    "application/x-yaml",
    "direct",
    "topic",
    "fanout",
    "SUCCESS",
    "FAILURE",
    "PENDING",
    "housekeeper",
    "celery results",
)
_JSON: Final = (
    "null",
    "1",
    "-0",
    "1e999",
    "[]",
    "{}",
    '"text"',
    '"\\u0000"',
    '{"\\u0000": "\\u0000"}',
    '{"a": 1e999}',
    "[" * 3_000 + "]" * 3_000,
    '{"a": ' * 200 + "1" + "}" * 200,
    "9" * 5_000,
    '{"a": 1, "a": 2}',
    '{"": ""}',
    '"\\ud800"',
    '{"type": [], "message": {}}',
    '{"max_attempts": -1, "lease_seconds": "x"}',
    '{"x-dead-letter-exchange": 5}',
    '{"x-max-length": 1e999}',
    '{"content_encoding": 5, "properties": [], "headers": []}',
    '{"properties": {"delivery_info": 5, "priority": "x"}}',
    '{"headers": {"task": 5, "id": [], "retries": "x", "timelimit": 3}, "properties": {"correlation_id": {}}}',
    '{"message_type": 5, "traceparent": [1]}',
    '{"pgqrs": 5, "encryption": true, "codec": ["zstd"], "content-encoding": "zstd"}',
)
_BODIES: Final = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[[],{},{}]",
    b"[1, 2, 3]",
    b"[[], {}, null]",
    b'"x"',
    b"1e999",
    b"[" * 5_000,
    b"cos\nsystem\n(S'exit 1'\ntR.",
    b"\x80\x05K\x01.",
    b"x" * 100_000,
    b'{"queue_name": 5, "actor_name": [], "args": 1}',
    b'{"queue_name": "default", "actor_name": "nowhere", "args": [], "kwargs": {}, "options": {}, "message_id": 1}',
    b'{"method": "shutdown", "arguments": 5, "destination": 5}',
    b'{"method": "ping", "arguments": {}, "reply_to": 5}',
    b"28b52ffd",
    b"\x1f\x8b\x08\x00",
    b"x\x9c\x03\x00",
)
_TIMES: Final = (
    "infinity",
    "-infinity",
    "294276-12-31 23:59:59",
    "20000-01-01",
    "10000-01-01",
    "9999-12-31 23:59:59.999999",
    "0001-01-01",
    "0001-12-31 BC",
    "4713-01-01 BC",
    "epoch",
    "now",
    "2020-01-01",
)


def _whole(bits: int) -> tuple[int, ...]:
    end = 2 ** (bits - 1)
    return (-end, 1 - end, -101, -100, -11, -10, -1, 0, 1, 5, 9, 10, 99, end - 2, end - 1)


_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "int2": _whole(16),
    "int4": _whole(32),
    "int8": _whole(64),
    "float8": ("NaN", "Infinity", "-Infinity", "1e308", "-1e308", "5e-324", "0", "-1", "1"),
    "bool": (True, False),
    "timestamptz": _TIMES,
    "text": _TEXTS,
    "varchar": _TEXTS,
    "json": _JSON,
    "jsonb": _JSON,
    "bytea": _BODIES,
}


#: A sequence may come to numbers up to this in a test: with a row that has one of them, an honest message's number
#: collides, which is an error that says so.
_REACHED: Final = 10_000

_PLAIN: Final[dict[str, Any]] = {
    "int2": 1,
    "float8": 60.0,
    "bool": False,
    "timestamptz": "now",
    "json": "{}",
    "jsonb": "{}",
    "bytea": b"[]",
}


def without_constraints(dsn: str) -> None:
    """Drop every CHECK constraint of the tables in schema ``pgqrs``, as where an installation is older than they are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_DROP)


class _Column(NamedTuple):
    name: str
    type: str
    #: Whether it is drawn from a sequence, and whether it has a default of some kind, or may be null.
    is_identity: bool
    may_be_left_out: bool


class HostileRows:
    """Writes such rows as one role, and counts by table how many were taken.

    Args:
        dsn: the database, as a role that may become ``role``.
        role: who writes.
        seed: the same rows for the same number, as far as what others write is the same.
    """

    def __init__(self, dsn: str, role: str, seed: int) -> None:
        self._random = random.Random(f"{seed} {role.rpartition('_')[2]}")
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._tables: dict[str, list[_Column]] = {}
        for table, *column in self._connection.execute(_COLUMNS, [role]):
            self._tables.setdefault(table, []).append(_Column(*column))
        unknown = {column.type for columns in self._tables.values() for column in columns} - _VALUES.keys()
        assert not unknown, f"say which values of these types are hostile: {unknown}"
        self._connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        self.written: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()

    @property
    def tables(self) -> set[str]:
        """The tables in which this role may insert."""
        return set(self._tables)

    def write(self, rows: int) -> None:
        """Try to write so many rows into each table."""
        for _ in range(rows):
            for table in self._tables:
                self.tried[table] += 1
                with contextlib.suppress(psycopg.Error):
                    self.written[table] += self._write_one(table)
        assert not self._connection.closed

    def _write_one(self, table: str) -> int:
        columns = self._tables[table]
        # A row in which everything is hostile is mostly refused because of one value.
        hostile = self._random.sample(columns, min(self._random.choice((1, 1, 2, 3, 20)), len(columns)))
        row = {column.name: self._hostile(table, column) for column in hostile}
        for column in columns:
            is_left_out = column.may_be_left_out and (column.is_identity or self._random.random() < 0.5)
            if column not in hostile and not is_left_out:
                row[column.name] = self._plain(table, column)
        row.update({column: value for (owner, column), value in _FIXED.items() if owner == table})
        if not row:
            return 0
        statement = sql.SQL(
            "insert into pgqrs.{} ({}) overriding system value values ({}) on conflict do nothing"
        ).format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        )
        return self._connection.execute(statement, list(row.values())).rowcount

    def _plain(self, table: str, column: _Column) -> Any:
        """Return a value that is in order, as often one that another row has as a new one."""
        if self._random.random() < 0.5:
            found = self._existing(table, column)
            if found is not None:
                return found
        number = self._random.randrange(1, 2**15)
        if column.type in ("text", "varchar"):
            return f"hostile {number}"
        return number * 2**20 if column.type == "int8" else _PLAIN.get(column.type, number)

    def _hostile(self, table: str, column: _Column) -> Any:
        if self._random.random() < 0.1:
            return None
        if column.is_identity:
            return self._random.choice([value for value in _VALUES[column.type] if not 0 < value <= _REACHED])
        if self._random.random() < 0.3:
            found = self._existing(table, column)
            if found is not None:
                return found
        return self._random.choice(_VALUES[column.type])

    def _existing(self, table: str, column: _Column) -> Any:
        """Return a value that another row has, if the role may see one. Not a body: an honest one is to be honest."""
        if table in _ORDERS or column.is_identity or column.type == "bytea":
            return None
        query = sql.SQL("select {0}::text from pgqrs.{1} where {0} is not null order by random() limit 1")
        try:
            row = self._connection.execute(query.format(sql.Identifier(column.name), sql.Identifier(table))).fetchone()
        except psycopg.Error:
            return None
        return row[0] if row else None

    def close(self) -> None:
        """Write no more."""
        self._connection.close()
