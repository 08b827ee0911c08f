"""Every statement of each catalogue, with its parameters and how many rows it is about, for `test_statistics.py`.

Add a statement here when you add it to a catalogue. Its bound follows from ``rows``: a statement that reads more than a few
pages per row that it is about has a plan that depends on statistics, or an index too few. Give it another shape (see
docs/adr/0018-settle-by-place.md); exempt it only if it reads a whole table by intention, or no table of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pgqrs_celery.sql
import pgqrs_dramatiq.sql
import pgqrs_kombu.sql

import pgqrs_core.sql
from pgqrs_core.arrays import numbers, texts
from pgqrs_core.messages import CLAIM_LANES, DEAD_LANE

if TYPE_CHECKING:
    from pgqrs_core.sql import Query

__all__ = ["BATCH", "CATALOGUES", "ENTRIES", "EXEMPT", "FILL", "LEFT", "QUEUE_IDS", "ROWS", "Entry", "Held"]

#: Rows of each table where it is full, and how many are left where it was emptied: those with the highest numbers.
ROWS: Final = 10_000
LEFT: Final = 1_000
#: What a statement about many rows is about.
BATCH: Final = 100

#: Numbers in the part that is left everywhere, from all over it.
_CHOSEN: Final = [ROWS - LEFT + 1 + n * 7 % LEFT for n in range(BATCH)]
_IDS: Final = numbers(sorted(_CHOSEN))
_KEYS: Final = texts(f"k{n}" for n in _CHOSEN)
_ONE: Final = _CHOSEN[50]

#: What stands for a queue's number in statements that use it for something else.
QUEUE_IDS: Final = {"pgqrs_dramatiq": -(_ONE // 10), "pgqrs_kombu": -_ONE}

#: Each table, and how its row number ``n`` is made. Rows are inserted in a random order, so that reading an index from end
#: to end visits a page per row.
FILL: Final[Mapping[str, str]] = {
    "q_jobs": """
        insert into {table} (lane, priority, message_id, due_at, expires_at, body) overriding system value
        select case n % 10 when 7 then -1 when 8 then -2 when 9 then -100 else n % 10 end, n % 10, n,
               case when n % 10 >= 7
                 then statement_timestamp() + (case n % 10 when 8 then 1 else -1 end) * n * interval '1 second' end,
               case when n % 20 = 5 then statement_timestamp() - n * interval '1 second' end, 'x'""",
    "a_jobs": """
        insert into {table} (message_id, priority, attempt, enqueued_at, archived_at, body)
        select n, 0, 1, statement_timestamp(), statement_timestamp() - interval '1 day', 'x'""",
    "waiters": "insert into {table} select n, n, statement_timestamp() - interval '1 minute'",
    "idempotency_keys": """
        insert into {table}
        select n % 10, sha256(convert_to('k' || n, 'utf8')), n,
               statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "celery_results": """
        insert into {table} (task_id, status, content_type, expires_at)
        select 'k' || n, 'STARTED', 'application/json', statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "celery_groups": """
        insert into {table} (group_id, result, content_type, expires_at)
        select 'k' || n, '', 'application/json', statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "celery_chords": """
        insert into {table} (group_id, size, done, claim, body, claimed_until, finished_at, expires_at)
        select 'k' || n, 10, 9, n, case when n % 2 = 0 then ''::bytea end,
               case when n % 2 = 0 then statement_timestamp() - n * interval '1 second' end,
               case when n % 3 = 0 then statement_timestamp() end,
               statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "celery_chord_parts": """
        insert into {table} (group_id, place, task_id, status, content_type)
        select 'k' || n, 1, 't' || n, 'SUCCESS', 'application/json'""",
    "celery_waiters": """
        insert into {table}
        select 'k' || n, 'pgqrs:celery:' || lpad((n % 10)::text, 16, '0'), statement_timestamp() + interval '1 minute'""",
    "dramatiq_results": """
        insert into {table} select 'k' || n, '', statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "dramatiq_limits": """
        insert into {table} select 'k' || n, 1, statement_timestamp() + (n % 3 - 1) * n * interval '1 second'""",
    "dramatiq_waiters": "insert into {table} select 'k' || n, -(n / 10), statement_timestamp() + interval '1 minute'",
    "kombu_exchanges": "insert into {table} select 'k' || n, 'direct', true, false",
    "kombu_queues": """
        insert into {table} (queue_id, name, ephemeral, exclusive, auto_delete, owner, expires)
        overriding system value select n, 'k' || n, true, false, true, n, 3600""",
    "kombu_bindings": "insert into {table} select 'k' || n, 'key', n",
    "kombu_consumers": "insert into {table} select n, n % 10, statement_timestamp() + interval '1 minute'",
    "kombu_mail": """
        insert into {table} (queue_id, mail_id, expires_at, body)
        select n, n, case when n % 20 = 5 then statement_timestamp() - n * interval '1 second' end, 'x'""",
}


class Held:
    """What stands in the tables when a statement is run."""

    def __init__(self, run: Callable[[str], list[tuple[Any, ...]]]) -> None:
        #: A batch of messages that are held, by id, with what settles them.
        rows = run(
            "update pgqrs.q_jobs set lease_token = 5, lease_until = now() + interval '30 s' "
            f"where lane >= -10 and message_id = any ('{_IDS}') returning lane, message_id, ctid::text"
        )
        rows.sort(key=lambda row: row[1])
        self.count = len(rows)
        self.settle = {
            "lanes": numbers(row[0] for row in rows),
            "ids": numbers(row[1] for row in rows),
            "tokens": numbers("5" for _ in rows),
            "places": texts(row[2] for row in rows),
        }
        self.one = {"lane": rows[0][0], "id": rows[0][1], "token": 5}


Params = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """How a statement is run, and how much it may touch."""

    params: Params | Callable[[Held], Params] = field(default_factory=dict)
    #: How many rows it is about; each may cost a few pages.
    rows: int = 1
    #: It reads a table from its beginning, and so walks once over what died there and could not be removed.
    front: bool = False
    #: It also runs in transactions of callers, under their settings.
    caller: bool = False
    #: It asks each of the twenty-one lanes.
    lanes: bool = False

    @property
    def bound(self) -> int:
        """How many pages it may touch."""
        return 100 + 20 * self.rows + (400 if self.lanes else 0)


def _hash(kind: str, number: int) -> str:
    return hashlib.sha256(f"{kind}{number}".encode()).hexdigest()


def _settle(**more: Any) -> Entry:
    return Entry(lambda held: {**held.settle, **more}, rows=BATCH, caller=True)


_DRAFT: Final = {"at": None, "delay": None, "ttl": 60.0, "content_type": "text/plain", "headers": None}
_ARRAYS: Final = {
    "lanes": numbers(0 for _ in range(BATCH)),
    "priorities": numbers(0 for _ in range(BATCH)),
    "ats": texts(None for _ in range(BATCH)),
    "delays": texts(None for _ in range(BATCH)),
    "ttls": texts(60.0 for _ in range(BATCH)),
    "content_types": texts("text/plain" for _ in range(BATCH)),
    "headers": texts(None for _ in range(BATCH)),
    "bodies": texts(r"\x78" for _ in range(BATCH)),
}
_PLAIN: Final = {"priority": 0, "content_type": "text/plain", "headers": None, "body": b"x"}
_LIMIT: Final = {"limit": BATCH}
_MAIL: Final = {"priority": 0, "ttl": None, "content_type": None, "headers": None, "body": b"x", "channel": "c"}
_MARKS: Final = numbers(ROWS - LEFT + 1 for _ in CLAIM_LANES)

_CORE: Final[dict[str, Entry]] = {
    "enqueue_plain": Entry(_PLAIN, caller=True),
    "enqueue_unasked": Entry(_PLAIN, caller=True),
    "enqueue_one": Entry({**_DRAFT, **_PLAIN, "lane": 0}, caller=True),
    "enqueue_alike": Entry(
        {**_DRAFT, "lane": 0, "priority": 0, "bodies": texts(r"\x78" for _ in range(BATCH))}, rows=BATCH, caller=True
    ),
    "enqueue_mixed": Entry(_ARRAYS, rows=BATCH, caller=True),
    "enqueue_keyed": Entry(
        {**_ARRAYS, "keys": texts(f"\\x{_hash('k' if n % 2 else 'new', n)}" for n in _CHOSEN)},
        rows=2 * BATCH,
        caller=True,
    ),
    "claim": Entry(
        {"lanes": numbers(CLAIM_LANES), "marks": _MARKS, **_LIMIT, "lease": 30.0, "token": 5}, rows=BATCH, lanes=True
    ),
    "ack": _settle(),
    "archive": _settle(),
    "release": _settle(refund=1),
    "postpone": Entry(
        lambda held: {**held.settle, "errors": texts(None for _ in range(held.count))}, rows=BATCH, caller=True
    ),
    "extend": _settle(lease=30.0),
    "locate": _settle(),
    "unlocked": _settle(),
    "nack": Entry(
        lambda held: {
            **held.settle,
            "max_attempts": 5,
            "delays": numbers("1" for _ in range(held.count)),
            "burials": numbers("f" for _ in range(held.count)),
            "errors": texts(None for _ in range(held.count)),
        },
        rows=BATCH,
        caller=True,
    ),
    "replace": Entry(lambda held: {**_DRAFT, **_PLAIN, **held.one, "error": None}, caller=True),
    "renumber": Entry(lambda held: held.one),
    "renumber_free": Entry({"lanes": numbers(DEAD_LANE for _ in _CHOSEN), "ids": _IDS}, rows=2 * BATCH),
    "watch": Entry({"queue_ids": numbers(range(10)), "consumer": 7, "seconds": 1.0, "fresh": True}, rows=10),
    "unwatch": Entry({"queue_ids": numbers(range(10)), "consumer": 7, "polled": True}, rows=10),
    "notify": Entry({"queue_id": 7, "count": 4, "consumer": 1, "payload": "7"}),
    "probe": Entry(front=True, lanes=True),
    "purge": Entry(_LIMIT, rows=BATCH, front=True),
    "peek": Entry({"lanes": numbers(CLAIM_LANES), **_LIMIT}, rows=10 * BATCH, front=True, lanes=True),
    "metrics": Entry({"cap": 100, "parts": 4, "sample": 50}, rows=10 * BATCH, front=True, lanes=True),
    "archive_metrics": Entry({"cap": 100, "parts": 4, "sample": 50}, rows=3 * BATCH, front=True),
    "highest_ids": Entry(front=True, lanes=True),
    "highest_archived": Entry(),
    "unsound": Entry(front=True, lanes=True),
    "list_dead": Entry({"before": None, **_LIMIT}, rows=BATCH, front=True),
    "show_dead": Entry({"id": _ONE}),
    "replay_dead": Entry({"ids": _IDS}, rows=BATCH),
    "dead_ids": Entry({"after": 0, **_LIMIT}, rows=BATCH, front=True),
    "purge_dead": Entry({"ids": _IDS}, rows=BATCH),
    "list_archive": Entry({"before": None, **_LIMIT}, rows=BATCH, front=True),
    "replay_archive": Entry({"ids": _IDS}, rows=BATCH),
    "prune_archive": Entry({"seconds": 1.0, **_LIMIT}, rows=BATCH, front=True),
    "expire": Entry(_LIMIT, rows=BATCH, front=True),
    "prune_dead": Entry({"seconds": 1.0, **_LIMIT}, rows=BATCH, front=True),
    "prune_keys": Entry(_LIMIT, rows=BATCH, front=True),
    "elect": Entry({"role": "r", "holder": 1, "host": "h", "pid": 1, "seconds": 1.0}),
    "resign": Entry({"role": "r", "holder": 1}),
    "find_queue": Entry({"name": "jobs"}),
    "insert_queue": Entry({"name": "other", "suffix": "other", "options": "{}", "version": 9}),
    "alter_queue": Entry({"name": "jobs", "options": "{}"}),
    "lock_outdated_queue": Entry({"queue_id": 1}),
    "record_version": Entry({"queue_id": 1, "version": 9}),
    "lock_queue": Entry({"name": "jobs"}),
    "delete_queue": Entry(),
    "pause_queue": Entry({"name": "jobs"}),
    "resume_queue": Entry({"name": "jobs"}),
}
_EXPIRES: Final = {"expires": 60.0}
#: Looked for in each lane, since only ids are known.
_ANYWHERE: Final = {"lanes": numbers([*CLAIM_LANES, DEAD_LANE])}
_CORE.update(
    {
        "show_message": Entry({**_ANYWHERE, "id": _ONE}, rows=len(CLAIM_LANES) + 1),
        "delete_messages": Entry({**_ANYWHERE, "ids": _IDS, "held": False}, rows=(len(CLAIM_LANES) + 1) * BATCH),
        "find_messages": Entry({**_ANYWHERE, "ids": _IDS}, rows=(len(CLAIM_LANES) + 1) * BATCH),
    }
)
_CELERY: Final[dict[str, Entry]] = {
    "start_chord": Entry({"group_id": f"k{_ONE}", "header": b"x", "content_type": "c", **_EXPIRES}),
    "look_at_chord": Entry({"group_id": f"k{_ONE}"}),
    "restart_chord": Entry({"group_id": f"k{_ONE}", "header": b"x", "content_type": "c", **_EXPIRES}),
    "size_new_chord": Entry({"group_id": f"k{_ONE}", "size": 3, **_EXPIRES}),
    "size_chord": Entry({"group_id": f"k{_ONE}", "size": 3, **_EXPIRES}),
    "add_to_chord": Entry({"group_id": f"k{_ONE}", **_EXPIRES}),
    "return_part": Entry(
        {
            "group_id": f"k{_ONE}",
            "place": 5,
            "task_id": "t",
            "status": "SUCCESS",
            "result": b"",
            "content_type": "c",
            "claim": 7,
            "seconds": 1.0,
            **_EXPIRES,
        }
    ),
    "claim_chord": Entry({"group_id": f"k{_ONE}", "claim": 7, "seconds": 1.0}),
    "read_parts": Entry({"group_id": f"k{_ONE}"}),
    "keep_body": Entry({"group_id": f"k{_ONE}", "claim": _ONE, "body": b"x", "body_type": "c"}),
    "extend_claim": Entry({"group_id": f"k{_ONE}", "claim": _ONE, "seconds": 1.0}),
    "finish_chord": Entry({"group_id": f"k{_ONE}", "claim": _ONE}),
    "abandoned_chords": Entry({"limit": 10}, rows=10, front=True),
    "prune_chords": Entry(_LIMIT, rows=2 * BATCH, front=True),
    "store_result": Entry(
        {
            "task_id": f"k{_ONE}",
            "status": "SUCCESS",
            "result": b"x",
            "content_type": "c",
            "slack": 1.2,
            **_EXPIRES,
            **dict.fromkeys(("traceback", "children", "date_done", "group_id", "parent_id", "name", "args", "kwargs")),
            **dict.fromkeys(("worker", "retries", "queue", "stamps")),
        }
    ),
    "read_results": Entry({"ids": _KEYS}, rows=BATCH),
    "forget_result": Entry({"task_id": f"k{_ONE}"}),
    "save_group": Entry({"group_id": f"k{_ONE}", "result": b"x", "content_type": "c", **_EXPIRES}),
    "replace_group": Entry({"group_id": f"k{_ONE}", "result": b"x", "content_type": "c", **_EXPIRES}),
    "read_group": Entry({"group_id": f"k{_ONE}"}),
    "delete_group": Entry({"group_id": f"k{_ONE}"}),
    "await_results": Entry({"ids": _KEYS, "channel": "pgqrs:celery:0000000000000001", "seconds": 1.0}, rows=BATCH),
    "await_no_more": Entry({"ids": _KEYS, "channel": "pgqrs:celery:0000000000000001"}, rows=BATCH),
    "prune_results": Entry(_LIMIT, rows=BATCH, front=True),
    "prune_groups": Entry(_LIMIT, rows=BATCH, front=True),
}
_DRAMATIQ: Final[dict[str, Entry]] = {
    "add_barrier": Entry({"key": f"{_ONE:08}-0000-0000-0000-000000000000", "value": 1, "ttl": 1.0}),
    "add_limit": Entry({"key": f"k{_ONE}", "value": 1, "ttl": 1.0}),
    "change_limit": Entry({"key": f"k{_ONE}", "amount": 1, "minimum": 0, "maximum": 9, "ttl": 1.0}),
    "change_limit_of_sum": Entry(
        {"key": f"k{_ONE}", "keys": _KEYS, "amount": 1, "maximum": 9_999, "ttl": 1.0}, rows=BATCH
    ),
    "publish_event": Entry({"key": f"k{_ONE}", "ttl": 1.0, "channel": "c"}),
    "read_events": Entry({"keys": _KEYS}, rows=BATCH),
    "events_probe": Entry(rows=10),
    "prune_limits": Entry(_LIMIT, rows=BATCH, front=True),
    "store_result": Entry({"key": f"k{_ONE}", "result": b"x", "ttl": 1.0, "channel": "c"}),
    "read_results": Entry({"keys": _KEYS}, rows=BATCH),
    "await": Entry({"keys": _KEYS, "listener": -7, "seconds": 1.0}, rows=BATCH),
    "await_no_more": Entry({"keys": _KEYS, "listener": -(_ONE // 10)}, rows=BATCH),
    "results_probe": Entry(rows=10),
    "prune_results": Entry(_LIMIT, rows=BATCH, front=True),
    "outstanding": Entry({"since": "2100-01-01"}, front=True),
}
_BINDING: Final = {"exchange": f"k{_ONE}", "routing_key": "key", "queue": f"k{_ONE}", "channel": "c"}
_KOMBU: Final[dict[str, Entry]] = {
    "declare_exchange": Entry(
        {"name": f"k{_ONE}", "type": "direct", "durable": True, "auto_delete": False, "arguments": None}
    ),
    "find_exchange": Entry({"name": f"k{_ONE}"}),
    "delete_exchange": Entry({"name": f"k{_ONE}", "if_unused": False}),
    "declare_queue": Entry(
        {
            "name": f"k{_ONE}",
            "ephemeral": True,
            "exclusive": False,
            "auto_delete": True,
            "owner": 1,
            **dict.fromkeys(("arguments", "message_ttl", "expires")),
        }
    ),
    "find_declared": Entry({"name": f"k{_ONE}"}),
    "consumer_count": Entry({"queue_id": _ONE, "consumer": _ONE}),
    "is_bound": Entry({**_BINDING, "pattern": None, "arguments": None}),
    "bind": Entry({**_BINDING, "pattern": None, "arguments": None}),
    "unbind": Entry(_BINDING),
    "forget_queue": Entry({"names": _KEYS, "owner": None, "if_unused": False, "channel": "c"}, rows=5 * BATCH),
    "auto_delete": Entry({"queue_id": _ONE}),
    "exchange_table": Entry({"name": f"k{_ONE}"}),
    "leave": Entry({"consumer": 1, "queue_ids": _IDS}, rows=BATCH),
    "post": Entry({**_MAIL, "exchange": f"k{_ONE}", "routing_key": "key"}, caller=True),
    "post_to": Entry({**_MAIL, "queue": f"k{_ONE}"}, caller=True),
    "recipients": Entry({"exchange": f"k{_ONE}", "routing_key": "key"}, caller=True),
    "recipient": Entry({"queue": f"k{_ONE}"}, caller=True),
    "post_each": Entry(
        {
            **{name: _MAIL[name] for name in ("priority", "ttl", "content_type", "channel")},
            "queue_ids": _IDS,
            "headers": texts(None for _ in range(BATCH)),
            "bodies": texts(r"\x78" for _ in range(BATCH)),
        },
        rows=BATCH,
        caller=True,
    ),
    "take": Entry({"queue_ids": _IDS, "marks": numbers(0 for _ in range(BATCH)), **_LIMIT}, rows=BATCH),
    "put_back": Entry(
        {
            "queue_ids": _IDS,
            "mail_ids": numbers(n + 10 * ROWS for n in range(BATCH)),
            "channel": "c",
            "priorities": numbers(0 for _ in range(BATCH)),
            "enqueued": texts("2020-01-01" for _ in range(BATCH)),
            "content_types": texts(None for _ in range(BATCH)),
            "headers": texts(None for _ in range(BATCH)),
            "bodies": texts(r"\x78" for _ in range(BATCH)),
        },
        rows=BATCH,
    ),
    "mail_size": Entry({"queue_id": _ONE}),
    "purge_mail": Entry({"queue_id": _ONE}),
    "mail_probe": Entry(),
    "take_out": Entry(lambda held: held.settle, rows=BATCH),
    "put_aside": Entry(lambda held: {**held.settle, "error": "{}"}, rows=BATCH),
    "fallen": Entry({**_LIMIT, "seconds": 3e9}, rows=2 * BATCH, front=True),
    "keep_expired": Entry({"name": "jobs", "keep": True}),
    "is_expired_kept": Entry({"name": "jobs", "keep": True}),
}
CATALOGUES: Final[Mapping[str, Mapping[str, Query]]] = {
    "pgqrs_core": pgqrs_core.sql.queries,
    "pgqrs_celery": pgqrs_celery.sql.queries,
    "pgqrs_dramatiq": pgqrs_dramatiq.sql.queries,
    "pgqrs_kombu": pgqrs_kombu.sql.queries,
}
ENTRIES: Final[Mapping[str, Mapping[str, Entry]]] = {
    "pgqrs_core": _CORE,
    "pgqrs_celery": _CELERY,
    "pgqrs_dramatiq": _DRAMATIQ,
    "pgqrs_kombu": _KOMBU,
}

_TABLELESS: Final = "reads no table of ours that grows"
_SCHEMA: Final = "runs when the schema or its roles are changed"
#: Statements that are not bounded, and why.
EXEMPT: Final[Mapping[str, Mapping[str, str]]] = {
    "pgqrs_core": {
        **dict.fromkeys(
            (
                "migration_lock",
                "migration_pause",
                "namespace_exists",
                "schema_exists",
                "schema_holds_others",
                "missing_core_tables",
                "oldest_writer",
                "dead_tuples",
            ),
            _TABLELESS,
        ),
        **dict.fromkeys(("applied_migrations", "record_migration", "existing_tables", "lock_holders"), _TABLELESS),
        **dict.fromkeys(("list_queues", "queue_names", "outdated_queues"), "lists queues"),
        **dict.fromkeys(
            (
                "create_schema",
                "create_migrations",
                "drop_shared",
                "schema_is_droppable",
                "drop_schema",
                "drop_queue",
                "drop_archive",
            ),
            _SCHEMA,
        ),
        **dict.fromkeys(
            (
                "roles_exist",
                "create_roles",
                "list_roles",
                "record_role",
                "known_roles",
                "create_role",
                "has_role",
                "join_role",
            ),
            _SCHEMA,
        ),
        **dict.fromkeys(("may_create_roles", "inherits", "add_member", "add_member_inherit", "open_schema"), _SCHEMA),
        **dict.fromkeys(
            ("not_theirs", "hand_over", "hand_over_function", "server_number", "drop_role", "close_schema"), _SCHEMA
        ),
        **dict.fromkeys(("inherits", "add_member", "add_member_inherit", "open_schema"), _SCHEMA),
        **dict.fromkeys(("may_create_roles", "tables_owner", "acting_role", "foreign_code"), _SCHEMA),
        **dict.fromkeys(
            ("relations", "recorded_steps", "queue_versions", "table_facts", "holds_rows", "drop_table", "drop_view"),
            _SCHEMA,
        ),
        **dict.fromkeys(("drop_function", "create_scratch", "move_table", "drop_scratch"), _SCHEMA),
        **dict.fromkeys(
            ("adopt_queue", "label_queue", "pass_queue_numbers", "pass_archived_ids", "pass_keyed_ids"), _SCHEMA
        ),
        **dict.fromkeys(
            (
                "server_facts",
                "server_time",
                "server_settings",
                "synchronous_standbys",
                "connection_counts",
                "xmin_pins",
            ),
            "reads the server's own views",
        ),
        **dict.fromkeys(("queue_tables", "transaction_age", "notify_usage", "leaders"), "reads the server's own views"),
        "sleepers": "counts all sleepers",
        "highest_keyed": "reads all keys, for the doctor",
        "queue_numbers": _TABLELESS,
        "forget_waiters": "reads all sleepers, once in a while",
        "vacuum": "is a VACUUM",
    },
    "pgqrs_celery": {"prune_waiters": "reads all that wait, once in a while"},
    "pgqrs_dramatiq": {
        "lock_limits": _TABLELESS,
        "prune_waiters": "reads all that wait, once in a while",
        "counts": "counts every message one by one, for tests of applications",
        "flush": "removes every message",
    },
    "pgqrs_kombu": {
        **dict.fromkeys(("migrated", "topology_probe"), _TABLELESS),
        **dict.fromkeys(("exchange_names", "list_bindings", "with_rules"), "lists all"),
        "exchanges_of": "may read all bindings, where messages are sealed",
        "beyond_length": "counts a queue that has a greatest length, which bounds it",
        "keep": "sweeps all ephemeral queues, one process at a time",
        "sweep_orphans": "looks at all mail, once in a while",
    },
}
