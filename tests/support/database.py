"""A look behind the adapters: at the tables themselves."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

#: How many connections pgqrs holds on the current database.
OURS = (
    "select count(*) from pg_stat_activity "
    "where datname = current_database() and application_name = 'pgqrs' and pid <> pg_backend_pid()"
)


class Database:
    """A test's own connection to its database; it opens when it is first used."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None

    def sql(self, statement: str | sql.Composed, *params: Any) -> list[tuple[Any, ...]]:
        """Run a statement of the test's own."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True, application_name="test")
        cursor = self._connection.execute(statement, params or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def rows(self, queue: str) -> int:
        """How many messages a queue's table holds, whatever their state, but for dead letters."""
        return (
            self.sql(self._about(queue, "select count(*) from {} where lane > -100"))[0][0] if self._table(queue) else 0
        )

    def dead(self, queue: str) -> list[Any]:
        """The reasons of a queue's dead letters, in the order of their deaths."""
        return [
            row[0]
            for row in self.sql(self._about(queue, "select last_error from {} where lane = -100 order by due_at"))
        ]

    def let_leases_end(self, queue: str) -> None:
        """Let the server think that all leases have run out."""
        self.sql(self._about(queue, "update {} set lease_until = 'epoch' where lane > -100"))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _table(self, queue: str) -> str | None:
        found = self.sql("select table_suffix from pgqrs.queues where name = %s", queue)
        return f"q_{found[0][0]}" if found else None

    def _about(self, queue: str, statement: str) -> sql.Composed:
        table = self._table(queue)
        assert table is not None, f"there is no queue {queue!r}"
        return sql.SQL(statement).format(sql.Identifier("pgqrs", table))  # type: ignore[arg-type]


def terminate_others(connection: psycopg.Connection[Any]) -> int:
    """End all other connections to the current database; return how many there were."""
    return connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
    ).rowcount
