"""Queues worked with nothing but psycopg: this design's statements, PGMQ's shape in plain SQL, and a floor.

All three are driven alike: prepared statements, binary results, arrays built whole, no API around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.payloads import JSON
from pgqrs_core.arrays import ByteaArray, numbers
from pgqrs_core.drivers.statements import Statements, prepare_adapters
from pgqrs_core.drivers.sync import open_link
from pgqrs_core.effects import Execute
from pgqrs_core.marks import Marks, Seen
from pgqrs_core.messages import CLAIM_LANES, Queue
from pgqrs_core.operations.claim import new_token
from pgqrs_core.sql import queries
from pgqrs_native import Client

__all__ = ["Floor", "Ours", "PgmqShape", "Row", "Table"]

Row = tuple[Any, ...]

#: Seconds of every lease.
LEASE: Final = 30.0

_LANES: Final = numbers(CLAIM_LANES)


class Table(Protocol):
    """A queue on some table."""

    @property
    def pids(self) -> list[int]:
        """The backends that serve it."""

    def send(self, count: int) -> None:
        """Store ``count`` messages, all in one statement."""

    def claim(self, limit: int) -> list[Row]:
        """Take up to ``limit`` messages."""

    def ack(self, rows: Sequence[Row]) -> int:
        """Remove what was taken; return how many."""

    def archive(self, rows: Sequence[Row]) -> int:
        """Move what was taken to the archive; return how many."""

    def close(self) -> None:
        """Close the connections."""


class Ours:
    """The catalogue's statements, on sessions set up as the engine sets them up: claims on a relaxed one."""

    def __init__(self, dsn: str, name: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        with Client(dsn) as client:
            queue: Queue = client.engine.queue(name)
            statements = Statements(client.engine.schema)
        self._body = body
        self._content_type = content_type
        self.durable = open_link(dsn, target="bench", query_timeout=0, relaxed=False).connection
        self.relaxed = open_link(dsn, target="bench", query_timeout=0, relaxed=True).connection
        self._marks = Marks()

        def text(statement: str) -> bytes:
            return statements.render(Execute(queries[statement], {}, queue))

        self._send, self._claim = text("enqueue_alike"), text("claim")
        self._ack, self._archive = text("ack"), text("archive")

    @property
    def pids(self) -> list[int]:
        """The backends that serve it."""
        return [self.durable.info.backend_pid, self.relaxed.info.backend_pid]

    def send(self, count: int) -> None:
        """Store ``count`` messages, all in one statement."""
        params = {
            "lane": 0,
            "priority": 0,
            "at": None,
            "delay": None,
            "ttl": None,
            "content_type": self._content_type,
            "headers": None,
            "bodies": ByteaArray([self._body] * count),
        }
        self.durable.execute(self._send, params, prepare=True, binary=True).fetchall()

    def claim(self, limit: int) -> list[Row]:
        """Take up to ``limit`` messages, reading on from the low-water mark."""
        params = {
            "lanes": _LANES,
            "marks": self._marks.start(),
            "limit": limit,
            "lease": LEASE,
            "token": new_token(),
        }
        rows = self.relaxed.execute(self._claim, params, prepare=True, binary=True).fetchall()
        if rows:
            seen = Seen({0: max(row[1] for row in rows)}, rows[0][9], rows[0][10])
            self._marks.finish(seen, full=len(rows) == limit)
        else:
            self._marks.finish(None, full=False)
        return rows

    def ack(self, rows: Sequence[Row]) -> int:
        """Remove what was taken; return how many."""
        return self._settle(self._ack, rows)

    def archive(self, rows: Sequence[Row]) -> int:
        """Move what was taken to the archive; return how many."""
        return self._settle(self._archive, rows)

    def close(self) -> None:
        """Close the connections."""
        self.durable.close()
        self.relaxed.close()

    def _settle(self, statement: bytes, rows: Sequence[Row]) -> int:
        params = {
            "lanes": numbers([row[0] for row in rows]),
            "ids": numbers([row[1] for row in rows]),
            "tokens": numbers([row[8] for row in rows]),
        }
        return len(self.durable.execute(statement, params, prepare=True, binary=True).fetchall())


#: As PGMQ 1.13 creates a queue and its archive.
_PGMQ_TABLES: Final = """
drop table if exists pgmq_q, pgmq_a;
create table pgmq_q (
  msg_id bigint primary key generated always as identity,
  read_ct int default 0 not null,
  enqueued_at timestamptz default now() not null,
  last_read_at timestamptz,
  vt timestamptz not null,
  message jsonb,
  headers jsonb);
create index on pgmq_q (vt);
create table pgmq_a (
  msg_id bigint primary key,
  read_ct int default 0 not null,
  enqueued_at timestamptz default now() not null,
  last_read_at timestamptz,
  archived_at timestamptz default now() not null,
  vt timestamptz not null,
  message jsonb,
  headers jsonb);
create index on pgmq_a (archived_at);
"""

_PGMQ_SEND: Final = """
insert into pgmq_q (vt, message) select clock_timestamp(), m from unnest(%b::jsonb[]) m returning msg_id"""

_PGMQ_READ: Final = """
with cte as (
  select msg_id from pgmq_q where vt <= clock_timestamp() order by msg_id limit %s for update skip locked)
update pgmq_q m
set last_read_at = clock_timestamp(), vt = clock_timestamp() + %s::float8 * interval '1 second', read_ct = read_ct + 1
from cte where m.msg_id = cte.msg_id
returning m.msg_id, m.read_ct, m.enqueued_at, m.last_read_at, m.vt, m.message, m.headers"""

_PGMQ_DELETE: Final = "delete from pgmq_q where msg_id = any(%s::bigint[]) returning msg_id"

_PGMQ_ARCHIVE: Final = """
with archived as (
  delete from pgmq_q where msg_id = any(%s::bigint[])
  returning msg_id, vt, read_ct, enqueued_at, last_read_at, message, headers)
insert into pgmq_a (msg_id, vt, read_ct, enqueued_at, last_read_at, message, headers)
select msg_id, vt, read_ct, enqueued_at, last_read_at, message, headers from archived
returning msg_id"""


class PgmqShape:
    """PGMQ's tables and the statements inside its functions, without the functions, which would plan each call anew."""

    def __init__(self, dsn: str, *, create: bool = True) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        if create:
            self.connection.execute(_PGMQ_TABLES)

    @property
    def pids(self) -> list[int]:
        """The backend that serves it."""
        return [self.connection.info.backend_pid]

    def send(self, count: int) -> None:
        """Store ``count`` messages, all in one statement."""
        self._execute(_PGMQ_SEND, [[Jsonb(JSON)] * count])

    def claim(self, limit: int) -> list[Row]:
        """Take up to ``limit`` messages."""
        return self._execute(_PGMQ_READ, [limit, LEASE])

    def ack(self, rows: Sequence[Row]) -> int:
        """Remove what was taken; return how many."""
        return len(self._execute(_PGMQ_DELETE, [numbers([row[0] for row in rows])]))

    def archive(self, rows: Sequence[Row]) -> int:
        """Move what was taken to the archive; return how many."""
        return len(self._execute(_PGMQ_ARCHIVE, [numbers([row[0] for row in rows])]))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _execute(self, query: str, params: list[Any]) -> list[Row]:
        return self.connection.execute(query.encode(), params, prepare=True, binary=True).fetchall()


_FLOOR_TABLE: Final = """
drop table if exists floor;
create table floor (id bigint primary key generated by default as identity, body bytea not null)"""


class Floor:
    """The least that moving rows through a table can cost: insert, then ``delete … returning``. No lease, no fence."""

    def __init__(self, dsn: str, body: bytes) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        prepare_adapters(self.connection)
        self._body = body
        self.connection.execute(_FLOOR_TABLE)

    @property
    def pids(self) -> list[int]:
        """The backend that serves it."""
        return [self.connection.info.backend_pid]

    def send(self, count: int) -> None:
        """Store ``count`` rows, all in one statement."""
        self._execute(
            "insert into floor (body) select b from unnest(%s::bytea[]) b returning id",
            [ByteaArray([self._body] * count)],
        )

    def claim(self, limit: int) -> list[Row]:
        """Remove up to ``limit`` rows and return them."""
        return self._execute(
            "delete from floor where id = any(array("
            "select id from floor order by id limit %s for update skip locked)) returning id, body",
            [limit],
        )

    def ack(self, rows: Sequence[Row]) -> int:
        """Do nothing: they are gone."""
        return len(rows)

    archive = ack

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _execute(self, query: str, params: list[Any]) -> list[Row]:
        return self.connection.execute(query.encode(), params, prepare=True, binary=True).fetchall()
