"""PGMQ's tables and statements in plain SQL, driven as :mod:`benchmarks.bare` drives ours.

The statements are those inside PGMQ's functions. Without the functions, which plan each call anew, they are prepared
once like ours: the shape of the tables is compared, at its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.bare import LEASE, Row
from benchmarks.payloads import JSON
from pgqrs_core.arrays import numbers

__all__ = ["PgmqShape"]

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
    """A queue and its archive as PGMQ creates them."""

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

    def vacuum(self) -> None:
        """Vacuum the tables, and plan all statements anew."""
        self.connection.execute("vacuum pgmq_q, pgmq_a")
        self.connection.execute("discard plans")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _execute(self, query: str, params: list[Any]) -> list[Row]:
        return self.connection.execute(query.encode(), params, prepare=True, binary=True).fetchall()
