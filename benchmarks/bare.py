"""Queues worked with nothing but psycopg: this design's statements, and a floor. PGMQ's shape is in `pgmq_shape`.

All are driven alike: prepared statements, binary results, arrays built whole, no API around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final, Protocol

import psycopg
from pgqrs_native import Client
from psycopg import sql

from pgqrs_core.arrays import ByteaArray, numbers, texts
from pgqrs_core.drivers.session import session_settings
from pgqrs_core.drivers.statements import prepare_adapters
from pgqrs_core.marks import Marks, Seen
from pgqrs_core.messages import CLAIM_LANES
from pgqrs_core.operations.claim import new_token
from pgqrs_core.sql import queries

__all__ = ["LEASE", "Floor", "Ours", "Row", "Table"]

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

    def vacuum(self) -> None:
        """Vacuum the table, and plan all statements anew."""

    def close(self) -> None:
        """Close the connections."""


class Ours:
    """The catalogue's statements, on sessions set up as the engine sets them up: claims on a relaxed one."""

    def __init__(self, dsn: str, name: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        with Client(dsn) as client:
            queue, schema = client.engine.queue(name), client.engine.schema
        self._body = body
        self._content_type = content_type
        self.durable, self.relaxed = _open(dsn), _open(dsn)
        self.relaxed.execute("set synchronous_commit = off")
        self._marks = Marks()

        def text(statement: str) -> sql.Composed:
            names: dict[str, sql.Composable] = {
                "schema": sql.Identifier(schema),
                "queue": sql.Identifier(schema, f"q_{queue.suffix}"),
                "archive": sql.Identifier(schema, f"a_{queue.suffix}"),
                "queue_id": sql.Literal(queue.id),
            }
            return sql.SQL(queries[statement].text).format(**names)

        self._send, self._claim, self._vacuum = text("enqueue_alike"), text("claim"), text("vacuum")
        self._ack, self._archive = text("ack"), text("archive")

    @property
    def pids(self) -> list[int]:
        """The backends that serve it."""
        return [self.durable.info.backend_pid, self.relaxed.info.backend_pid]

    @property
    def settler(self) -> int:
        """The backend that stores and settles; `claim` has another."""
        return self.durable.info.backend_pid

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
            seen = Seen({0: max(row[1] for row in rows)}, rows[0][10], rows[0][11])
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

    def vacuum(self) -> None:
        """Vacuum the table, and plan all statements anew."""
        self.durable.execute(self._vacuum)
        for connection in (self.durable, self.relaxed):
            connection.execute("discard plans")

    def close(self) -> None:
        """Close the connections."""
        self.durable.close()
        self.relaxed.close()

    def _settle(self, statement: sql.Composed, rows: Sequence[Row]) -> int:
        # The statement searches the ids, so they are sorted, as by the engine.
        rows = sorted(rows, key=itemgetter(1))
        params = {
            "lanes": numbers([row[0] for row in rows]),
            "ids": numbers([row[1] for row in rows]),
            "tokens": numbers([row[8] for row in rows]),
            "places": texts([row[9] for row in rows]),
        }
        return len(self.durable.execute(statement, params, prepare=True, binary=True).fetchall())


def _open(dsn: str) -> psycopg.Connection[Row]:
    """Connect, and set the session up as the engine does."""
    connection = psycopg.connect(dsn, autocommit=True)
    prepare_adapters(connection)
    connection.execute(session_settings(0).encode())
    return connection


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

    def vacuum(self) -> None:
        """Vacuum the table, and plan all statements anew."""
        self.connection.execute("vacuum floor")
        self.connection.execute("discard plans")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _execute(self, query: str, params: list[Any]) -> list[Row]:
        return self.connection.execute(query.encode(), params, prepare=True, binary=True).fetchall()
