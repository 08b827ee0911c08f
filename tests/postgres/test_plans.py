"""Plans stay what they are whatever the statistics say: scans of the right index, at a cost that does not grow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqrs_core.arrays import numbers, texts
from pgqrs_core.drivers import session
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute
from pgqrs_core.marks import Marks
from pgqrs_core.messages import CLAIM_LANES
from pgqrs_core.sql import queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import SyncHarness

    from pgqrs_core.messages import Queue

BATCH = 100
KEY, DUE = "q_jobs_pkey", "q_jobs_lane_due_at_message_id_idx"

READY = "insert into pgqrs.q_jobs (lane, body) select 0, 'x' from generate_series(1, {rows})"
LANES = "insert into pgqrs.q_jobs (lane, priority, body) select n %% 10, n %% 10, 'x' from generate_series(1, {rows}) n"
DELAYED = (
    "insert into pgqrs.q_jobs (lane, due_at, body) "
    "select -1, now() + n * interval '1 second', 'x' from generate_series(1, {rows}) n"
)
DUE_NOW = (
    "insert into pgqrs.q_jobs (lane, due_at, body) "
    "select -1, now() - n * interval '1 second', 'x' from generate_series(1, {rows}) n"
)
ANALYZE = "analyze pgqrs.q_jobs"
VACUUM = "vacuum pgqrs.q_jobs"
#: What is in production after a minute: pages without rows. The planner takes such a table for empty however it is filled.
EMPTIED = [READY, "delete from pgqrs.q_jobs"]

#: How a table came to be as it is, by name: the statements, `{rows}` being the backlog.
HISTORIES: dict[str, list[str]] = {
    "empty": [],
    "empty and analysed": [ANALYZE],
    "never analysed": [READY],
    "analysed while empty and then filled": [ANALYZE, READY],
    "analysed while nearly empty and then filled": [READY.format(rows=3), ANALYZE, READY],
    "analysed while full": [READY, ANALYZE],
    "analysed while full and then emptied": [READY, ANALYZE, "delete from pgqrs.q_jobs"],
    "vacuumed while empty and then filled": [*EMPTIED, VACUUM, READY],
    "vacuumed while full and then emptied": [READY, VACUUM, "delete from pgqrs.q_jobs"],
    "ten lanes": [LANES, ANALYZE],
    "ten lanes, vacuumed while empty": [*EMPTIED, VACUUM, LANES],
    "delayed only, vacuumed while empty": [*EMPTIED, VACUUM, DELAYED],
    "ten lanes, analysed while empty": [ANALYZE, LANES],
    "delayed only": [DELAYED, ANALYZE],
    "delayed only, analysed while empty": [ANALYZE, DELAYED],
    "all due": [DUE_NOW, ANALYZE],
    "all due, analysed while empty": [ANALYZE, DUE_NOW],
}

BACKLOGS = [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)]


class Explained:
    """One plan, run: what it visited, and how many pages."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.root = plan["Plan"]

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def kinds(self) -> set[str]:
        return {node["Node Type"] for node in self.nodes()}

    @property
    def indexes(self) -> set[str]:
        """The indexes of the queue's table that it uses."""
        return {node["Index Name"] for node in self.nodes() if node.get("Index Name", "").startswith("q_jobs")}

    @property
    def buffers(self) -> int:
        """Pages visited, all levels together: the root's figure includes its children's."""
        return int(self.root["Shared Hit Blocks"]) + int(self.root["Shared Read Blocks"])

    @property
    def rows(self) -> int:
        return int(self.root["Actual Rows"])


class Bench:
    """A session in which plans are explained."""

    def __init__(self, connection: psycopg.Connection[Any], queue: Queue) -> None:
        self.connection = connection
        self.queue = queue

    def prepare(self, history: str, rows: int) -> None:
        for statement in HISTORIES[history]:
            self.connection.execute(statement.format(rows=rows).replace("%%", "%").encode())

    def explain(self, name: str, **params: Any) -> Explained:
        """Run a statement as the engine would, through a generic plan, and take it back."""
        text = Statements("pgqrs").render(Execute(queries[name], {}, self.queue)).named.decode()
        names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
        for number, key in enumerate(names, 1):
            text = text.replace(f"%({key})s", f"${number}")
        values = ", ".join(psycopg.sql.Literal(params[key]).as_string(None) for key in names)
        call = f"execute guarded({values})" if names else "execute guarded"
        self.connection.execute(f"prepare guarded as {text}".encode())
        try:
            with self.connection.transaction(force_rollback=True):
                rows = self.connection.execute(f"explain (analyze, buffers, timing off, format json) {call}".encode())
                return Explained(rows.fetchall()[0][0][0])
        finally:
            self.connection.execute("deallocate guarded")

    def claim(self) -> Explained:
        return self.explain(
            "claim", lanes=numbers(CLAIM_LANES), marks=Marks().start(), limit=BATCH, lease=30.0, token=5
        )

    def hold(self) -> dict[str, str]:
        """Claim a batch for real, and return what settles it."""
        rows = self.connection.execute(
            "update pgqrs.q_jobs set lease_token = 5, lease_until = now() + interval '30 s' "
            "where ctid = any (array(select ctid from pgqrs.q_jobs order by random() limit 100)) "
            "returning lane, message_id, ctid::text"
        ).fetchall()
        rows.sort(key=lambda row: row[1])
        return {
            "lanes": numbers(row[0] for row in rows),
            "ids": numbers(row[1] for row in rows),
            "tokens": numbers("5" for _ in rows),
            "places": texts(row[2] for row in rows),
        }


@pytest.fixture
def ours(engine: SyncHarness) -> Iterator[Bench]:
    """A session set up as the engine's own are."""
    with psycopg.connect(engine.dsn, autocommit=True) as connection:
        connection.execute(session.session_settings(0).encode())
        yield Bench(connection, engine.queue())


@pytest.fixture
def plain(engine: SyncHarness) -> Iterator[Bench]:
    """A session as a caller brings it."""
    with psycopg.connect(engine.dsn, autocommit=True) as connection:
        yield Bench(connection, engine.queue())


def is_sound(plan: Explained, indexes: set[str]) -> None:
    assert not plan.kinds & {"Sort", "Incremental Sort", "Hash Join", "Merge Join", "Bitmap Heap Scan"}, plan.kinds
    assert [node for node in plan.nodes() if node.get("Relation Name") == "q_jobs" and "Seq" in node["Node Type"]] == []
    assert plan.indexes <= indexes


@pytest.mark.parametrize("rows", BACKLOGS)
@pytest.mark.parametrize("history", HISTORIES)
def test_a_claim_reads_the_right_indexes_and_as_many_pages_whatever_the_backlog(
    ours: Bench, history: str, rows: int
) -> None:
    ours.prepare(history, rows)

    plan = ours.claim()

    is_sound(plan, {KEY, DUE})
    assert plan.indexes == {KEY, DUE}
    assert "Tid Scan" in plan.kinds
    # 4 a message: index and heap in the scan, the heap again in the update. An emptied table is walked once.
    assert plan.buffers <= (10 * BATCH + 100 if "emptied" not in history else rows / 20)


@pytest.mark.parametrize("rows", BACKLOGS)
@pytest.mark.parametrize("history", HISTORIES)
def test_a_probe_stops_at_the_first_message_of_a_lane(ours: Bench, history: str, rows: int) -> None:
    ours.prepare(history, rows)
    # What an emptied table leaves in the index is dead to the second probe.
    ours.explain("probe")

    plan = ours.explain("probe")

    is_sound(plan, {KEY, DUE})
    assert plan.buffers <= (150 if "emptied" not in history else rows / 20)


SETTLERS: dict[str, Any] = {
    "ack": lambda held: held,
    "archive": lambda held: held,
    "release": lambda held: {**held, "refund": 1},
    "postpone": lambda held: {**held, "errors": [None] * len(held["ids"])},
    "extend": lambda held: {**held, "lease": 30.0},
    "nack": lambda held: {
        **held,
        "max_attempts": 5,
        "delays": numbers("1" for _ in range(BATCH)),
        "burials": numbers("f" for _ in range(BATCH)),
        "errors": [None] * BATCH,
    },
}
#: Those that also look up keys: of rows that move often, and of twins where messages are to go.
LOOKING = {"extend", "nack", "release", "postpone"}
FILLED = [history for history, steps in HISTORIES.items() if set(steps) - {ANALYZE} and "then emptied" not in history]


@pytest.mark.parametrize("rows", BACKLOGS)
@pytest.mark.parametrize("history", FILLED)
def test_whatever_settles_messages_goes_to_their_places(ours: Bench, history: str, rows: int) -> None:
    ours.prepare(history, rows)
    held = ours.hold()

    plans = {name: ours.explain(name, **params(held)) for name, params in SETTLERS.items()}

    for name, plan in plans.items():
        assert plan.rows == BATCH, name
        is_sound(plan, {KEY})
        assert "Tid Scan" in plan.kinds
        assert plan.indexes == ({KEY} if name in LOOKING else set())
        assert plan.buffers <= 15 * BATCH


@pytest.mark.parametrize("rows", BACKLOGS)
@pytest.mark.parametrize("history", FILLED)
def test_whatever_settles_messages_in_a_callers_session_does_the_same(plain: Bench, history: str, rows: int) -> None:
    plain.prepare(history, rows)
    held = plain.hold()

    plans = {name: plain.explain(name, **params(held)) for name, params in SETTLERS.items()}

    for name, plan in plans.items():
        assert plan.rows == BATCH, name
        assert {node["Node Type"] for node in plan.nodes() if node.get("Relation Name") == "q_jobs"} <= {
            *("ModifyTable", "Tid Scan"),
            *(["Index Scan", "Index Only Scan"] if name in LOOKING else []),
        }
        assert plan.buffers <= 15 * BATCH


@pytest.mark.parametrize("history", FILLED)
@pytest.mark.parametrize("name", ["purge", "expire", "prune_dead"])
def test_whatever_removes_many_messages_goes_to_their_places(ours: Bench, name: str, history: str) -> None:
    """Joined by the key, a page was read once for each message where statistics were of an empty queue."""
    ours.prepare(history, 10_000)
    state = {"purge": "", "expire": "expires_at = now()", "prune_dead": "lane = -100, due_at = '2000-01-01'"}[name]
    if state:
        ours.connection.execute(f"update pgqrs.q_jobs set {state}".encode())

    plan = ours.explain(name, **({"seconds": 1.0} if name == "prune_dead" else {}), limit=BATCH)

    assert plan.rows == BATCH
    assert "Tid Scan" in plan.kinds
    assert "Nested Loop" not in plan.kinds


def test_without_our_settings_the_planner_would_sort_the_backlog(plain: Bench) -> None:
    """So the guards beside this one can fail."""
    plain.prepare("analysed while empty and then filled", 50_000)

    plan = plain.claim()

    assert "Sort" in plan.kinds


def test_a_claim_from_its_marks_reads_nothing_of_what_was_settled(ours: Bench) -> None:
    """With a snapshot that keeps all the dead entries in the index."""
    ours.prepare("never analysed", 50_000)
    # What a connection says of its address leaves the password out.
    info = ours.connection.info
    with psycopg.connect(info.dsn, password=info.password) as old:
        old.execute("set transaction isolation level repeatable read; select 1 from pgqrs.q_jobs limit 1")
        ours.connection.execute("delete from pgqrs.q_jobs where message_id <= 49000")
        lanes = numbers(CLAIM_LANES)

        start = ours.claim()
        marks = numbers(49_000 if lane == 0 else 0 for lane in CLAIM_LANES)
        marked = ours.explain("claim", lanes=lanes, marks=marks, limit=BATCH, lease=30.0, token=5)

    assert (start.rows, marked.rows) == (BATCH, BATCH)
    assert marked.buffers <= 10 * BATCH + 100 < start.buffers


def test_a_claim_changes_no_index(engine: SyncHarness) -> None:
    """Heap-only: there is room on the page, and no indexed column changes."""
    engine.send(*[b"x" * 100] * 1000)
    engine.take(1000)
    # Counters reach the statistics when the session that holds them ends.
    engine.close()

    from harness import until

    counted = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'q_jobs'"
    updated, hot = until(lambda: [row for row in engine.ask(counted) if row[0] >= 1000], "the counters are there")[0]

    assert hot >= 0.9 * updated
