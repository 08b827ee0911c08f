"""No statement of any catalogue touches more than it is about, whatever the planner believes of its tables."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import msgspec
import pgqrs_celery.sql
import pgqrs_dramatiq.sql
import pgqrs_kombu.sql
import psycopg
import pytest
from harness import SyncHarness, ask
from psycopg import sql

from pgqrs_core.drivers import session
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute
from pgqrs_core.operations import schema
from pgqrs_core.sql import Query
from pgqrs_core.testing import with_database
from tests.support.statements import CATALOGUES, ENTRIES, FILL, LEFT, QUEUE_IDS, ROWS, Held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqrs_core.messages import Queue


MIGRATIONS = {
    "celery": pgqrs_celery.sql.MIGRATIONS,
    "dramatiq": pgqrs_dramatiq.sql.MIGRATIONS,
    "kombu": pgqrs_kombu.sql.MIGRATIONS,
}
#: Rows that are dead beside an old snapshot.
DEAD = 50_000

#: The columns that hold the numbers of rows, where that is not ``queue_id``.
NUMBERED = {
    "q_jobs": "message_id",
    "a_jobs": "message_id",
    "waiters": "consumer",
    "kombu_exchanges": "name",
    "celery_results": "task_id",
    "celery_waiters": "task_id",
    "idempotency_keys": "message_id",
    **dict.fromkeys(("celery_groups", "celery_chords", "celery_chord_parts"), "group_id"),
    **dict.fromkeys(("dramatiq_results", "dramatiq_limits", "dramatiq_waiters"), "key"),
}

FULL = ["fill"]
EMPTIED = ["fill", "delete all", "vacuum"]
#: How tables came to be as they are. "delete" leaves `LEFT` rows; "grow" makes rows that are dead at once.
STATES: dict[str, list[str]] = {
    "never analysed": FULL,
    "analysed while empty and then filled": ["analyze", *FULL],
    "vacuumed while empty and then filled": [*EMPTIED, *FULL],
    "vacuumed while full and then emptied": [*FULL, "vacuum", "delete"],
    "beside dead rows under an old snapshot": [*EMPTIED, *FULL, "hold", "die", "delete", "vacuum"],
}


class Estate:
    """A database with all components, and sessions in it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.state = ""
        self.engine = SyncHarness(dsn)
        self.engine.transact(schema.install, "pgqrs")
        for name in ("celery", "dramatiq", "kombu"):
            self.engine.transact(schema.install, "pgqrs", component=name, migrations=MIGRATIONS[name])
        self.queue: Queue = self.engine.create("jobs", archive=True)
        self.admin = psycopg.connect(dsn, autocommit=True)
        self.old = psycopg.connect(dsn)
        self.ours = psycopg.connect(dsn, autocommit=True)
        self.ours.execute(session.session_settings(0).encode())
        self.callers = psycopg.connect(dsn, autocommit=True)

    def prepare(self, state: str) -> None:
        for step in STATES[state]:
            getattr(self, "_" + step.replace(" ", "_"))()
        self.state = state

    def _run(self, statement: str) -> None:
        # Bindings before queues, which they belong to.
        for table in reversed(FILL):
            text = sql.SQL(statement).format(
                table=sql.Identifier("pgqrs", table), column=sql.Identifier(NUMBERED.get(table, "queue_id"))
            )
            self.admin.execute(text)

    def _fill(self) -> None:
        for table, insert in FILL.items():
            head = sql.SQL(insert).format(table=sql.Identifier("pgqrs", table))
            self.admin.execute(
                head + sql.SQL(f" from (select n from generate_series(1, {ROWS}) n order by md5(n::text)) s")
            )

        for table, column in (("q_jobs", "message_id"), ("kombu_mail", "mail_id"), ("kombu_queues", "queue_id")):
            self.admin.execute(f"alter table pgqrs.{table} alter {column} restart with {10 * ROWS}".encode())

    def _delete_all(self) -> None:
        self._run("delete from {table}")

    def _delete(self) -> None:
        self._run("delete from {table} where substring({column}::text from '[0-9]+')::bigint <= " + str(ROWS - LEFT))

    def _vacuum(self) -> None:
        """Without truncating: a reader would keep it from that, and on queues it is off."""
        self._run("vacuum (truncate off) {table}")

    def _analyze(self) -> None:
        self._run("analyze {table}")

    def _hold(self) -> None:
        self.old.execute("set transaction isolation level repeatable read")
        self.old.execute("select from pgqrs.q_jobs limit 1")

    def _die(self) -> None:
        """Messages that were sent, claimed and acked since: in the index they come before all others."""
        insert = FILL["q_jobs"].format(table="pgqrs.q_jobs")
        self.admin.execute(f"{insert} from (select -10 * n as n from generate_series(1, {DEAD}) n) s".encode())

    def touched(self, connection: psycopg.Connection[Any], package: str, query: Query, params: Any) -> int:
        """Run a prepared statement, take it back, and return how many pages it touched."""
        queue = msgspec.structs.replace(self.queue, id=QUEUE_IDS.get(package, self.queue.id))
        statement = Statements("pgqrs").render(Execute(query, {}, queue))
        connection.execute(b"prepare guarded as " + statement.positional)
        try:
            with connection.transaction(force_rollback=True):
                if callable(params):
                    params = params(Held(lambda text: connection.execute(text.encode()).fetchall()))
                values = ", ".join(sql.Literal(params[name]).as_string(connection) for name in statement.names)
                call = f"execute guarded({values})" if values else "execute guarded"
                row = connection.execute(
                    f"explain (analyze, buffers, timing off, format json) {call}".encode()
                ).fetchone()
        finally:
            connection.execute("deallocate guarded")
        assert row is not None
        plan = row[0][0]["Plan"]
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])

    def close(self) -> None:
        self.engine.close()
        for connection in (self.admin, self.old, self.ours, self.callers):
            connection.close()


@pytest.fixture(scope="module", params=STATES)
def estate(request: pytest.FixtureRequest, pgqrs_server: str) -> Iterator[Estate]:
    name = f"pgqrs_statistics_{secrets.token_hex(4)}"
    ask(pgqrs_server, f"create database {name} template template0")
    found = Estate(with_database(pgqrs_server, name))
    found.prepare(request.param)
    yield found
    found.close()
    ask(pgqrs_server, f"drop database {name} with (force)")


@pytest.mark.parametrize("whose", ["our session", "a caller's session"])
@pytest.mark.parametrize("package", CATALOGUES)
def test_a_statement_touches_few_pages_for_each_row_that_it_is_about(estate: Estate, package: str, whose: str) -> None:
    connection = estate.callers if whose != "our session" else estate.ours
    guilty = {}
    for name, entry in ENTRIES[package].items():
        if whose != "our session" and not entry.caller:
            continue
        query = CATALOGUES[package][name]
        bound = entry.bound
        if entry.front and "emptied" in estate.state:
            # The first to come marks what is dead as dead.
            estate.touched(connection, package, query, entry.params)
        if entry.front and "dead rows" in estate.state:
            bound += 2 * (DEAD + ROWS)
        touched = estate.touched(connection, package, query, entry.params)
        if touched > bound:
            guilty[name] = f"{touched} pages, at most {bound}"

    assert guilty == {}


@pytest.mark.parametrize("estate", ["vacuumed while empty and then filled"], indirect=True)
def test_a_join_with_a_list_is_noticed(estate: Estate) -> None:
    """So the guard above can fail: this is how messages were acked once."""
    text = (
        "delete from {queue} q using unnest(%(lanes)s::smallint[], %(ids)s::bigint[], %(tokens)s::bigint[]) "
        "a(lane, message_id, token) "
        "where q.lane = a.lane and q.message_id = a.message_id and q.lease_token = a.token returning q.message_id"
    )
    entry = ENTRIES["pgqrs_core"]["ack"]

    assert estate.touched(estate.ours, "pgqrs_core", Query("ack", text), entry.params) > 2 * entry.bound
