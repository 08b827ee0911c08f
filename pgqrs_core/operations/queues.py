"""Creating, finding, changing and deleting queues."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pgqrs_core.arrays import numbers
from pgqrs_core.effects import Execute, Op, Rows
from pgqrs_core.errors import InvalidArgument, QueueExists, QueueNotFound, SchemaError, ServerError
from pgqrs_core.messages import (
    CLAIM_LANES,
    Queue,
    QueueOptions,
    Snapshot,
    check_name,
    check_number,
    show_headers,
)
from pgqrs_core.operations.grants import grant_queue
from pgqrs_core.operations.queue_options import read_options
from pgqrs_core.operations.schema import SUPPORTED, build_queue, pause_migrations
from pgqrs_core.pasting import command, shell_quoted
from pgqrs_core.sql import queries

__all__ = [
    "alter_queue",
    "create_queue",
    "delete_queue",
    "find_queue",
    "list_queues",
    "pause_queue",
    "peek",
    "purge_queue",
    "resume_queue",
    "table_suffix",
]

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_HASHED: Final = re.compile(r".*_[0-9a-f]{16}")
#: How PostgreSQL ends the names of indexes and sequences that it makes. Those of a queue ``x`` must not be in the way
#: of the tables of a queue ``x_pkey``.
_GENERATED: Final = re.compile(r".*_(?:pkey|key|idx|seq|check|excl|fkey|not_null)\d*")
_PAGE: Final = 5_000
_DUPLICATE_TABLE: Final = "42P07"


def table_suffix(name: str) -> str:
    """Return the suffix of a queue's tables: the name itself if it is a short plain identifier, else a slug and a hash.

    Distinct names never share a suffix: a plain name that looks hashed is hashed too. So is one that ends as the name of an
    index or a sequence does.
    """
    if _PLAIN.fullmatch(name) and not _HASHED.fullmatch(name) and not _GENERATED.fullmatch(name):
        return name
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:23] or "q"
    return f"{slug}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def create_queue(name: str, options: QueueOptions) -> Op[Queue]:
    """Create a queue and its tables, in one transaction. Repeating it with the same options changes nothing.

    What is there already takes no right to create any, so every program may ask for the queues that it uses.

    Raises:
        InvalidQueueName: if no queue may be called so.
        QueueExists: if it exists with other options; the error shows the difference.
        SchemaTooNew: it does not exist, and newer code has changed the schema since: what this code creates would not fit.
        SchemaError: a table that belongs to no queue has the name that the queue's table would have.
    """
    check_name(name)
    stored = msgspec.json.encode(options).decode()
    suffix = table_suffix(name)
    schema = yield from pause_migrations()
    rows = yield Execute(queries["find_queue"], {"name": name})
    if rows:
        return _same(queue_of(rows[0]), options)
    new = {"name": name, "suffix": suffix, "options": stored, "version": SUPPORTED}
    # After a restore or a switch-over the sequence may be behind.
    yield Execute(queries["pass_queue_numbers"], {"schema": schema})
    rows = yield Execute(queries["insert_queue"], new)
    if rows:
        queue = queue_of(rows[0])
        try:
            yield from build_queue(queue, schema)
        except ServerError as error:
            if error.sqlstate != _DUPLICATE_TABLE:
                raise
            repair = command("install", *(() if schema == "pgqrs" else ("--schema", shell_quoted(schema))), "--repair")
            raise SchemaError(
                f"queue {name!r} cannot be created: {str(error).partition(' (SQLSTATE')[0]}. It belongs to no queue of "
                f"schema {schema!r}: `{repair}` adopts it if a restore has left it without its row; else rename or drop "
                "it, or choose another name.",
                schema=schema,
                installed=SUPPORTED,
                supported=SUPPORTED,
            ) from error
        yield from grant_queue(schema, queue)
        return queue
    # Somebody else was creating it at this moment.
    return _same((yield from find_queue(name)), options)


def alter_queue(name: str, changes: dict[str, Any]) -> Op[Queue]:
    """Change some options of a queue; what is not named stays.

    Raises:
        QueueNotFound: if there is none of this name.
        InvalidArgument: if an option is unknown or out of range, or would add or drop the archive.
    """
    known = QueueOptions.__struct_fields__
    for key in changes:
        if key not in known:
            raise InvalidArgument("option", key, f"one of {', '.join(known)}")
    rows = yield Execute(queries["lock_queue"], {"name": name})
    if not rows:
        raise (yield from _not_found(name))
    old = queue_of(rows[0])
    options = msgspec.structs.replace(old.options, **changes)
    if options.archive != old.options.archive:
        raise InvalidArgument("archive", options.archive, f"{old.options.archive}: it is fixed when a queue is created")
    changed = yield Execute(queries["alter_queue"], {"name": name, "options": msgspec.json.encode(options).decode()})
    return queue_of(changed[0])


def find_queue(name: str) -> Op[Queue]:
    """Return the queue of this name.

    Raises:
        QueueNotFound: with the nearest existing names.
    """
    rows = yield Execute(queries["find_queue"], {"name": check_name(name)})
    if not rows:
        raise (yield from _not_found(name))
    return queue_of(rows[0])


def list_queues() -> Op[list[Queue]]:
    """Return all queues, by name."""
    rows = yield Execute(queries["list_queues"])
    return [queue_of(row) for row in rows]


def delete_queue(name: str) -> Op[Queue]:
    """Drop a queue with everything in it, archive and dead letters included, in one transaction.

    What is missing of it already does not matter.
    """
    rows = yield Execute(queries["lock_queue"], {"name": check_name(name)})
    if not rows:
        raise (yield from _not_found(name))
    queue = queue_of(rows[0])
    yield Execute(queries["drop_queue"], {}, queue)
    if queue.options.archive:
        yield Execute(queries["drop_archive"], {}, queue)
    yield Execute(queries["delete_queue"], {}, queue)
    return queue


def purge_queue(queue: Queue) -> Op[int]:
    """Remove the ready and delayed messages, page by page; return how many. Messages held by a consumer stay."""
    removed = 0
    while True:
        rows = yield Execute(queries["purge"], {"limit": _PAGE}, queue)
        removed += len(rows)
        # A page is not full where a message changed just then: see docs/adr/0008-claim-by-place.md.
        if not rows:
            return removed


def pause_queue(name: str) -> Op[None]:
    """Let nothing be claimed from a queue until it is resumed. Enqueueing and settling go on."""
    yield from _must_exist(name, (yield Execute(queries["pause_queue"], {"name": check_name(name)})))


def resume_queue(name: str) -> Op[None]:
    """End a pause."""
    yield from _must_exist(name, (yield Execute(queries["resume_queue"], {"name": check_name(name)})))


def peek(queue: Queue, limit: int) -> Op[list[Snapshot]]:
    """Return up to ``limit`` messages that are not dead, in the order of claims, without claiming them."""
    check_number("limit", limit, 1, 100_000, whole=True)
    rows = yield Execute(queries["peek"], {"lanes": numbers(CLAIM_LANES), "limit": limit}, queue)
    return [Snapshot(*(*row[:8], show_headers(row[8]), row[9])) for row in rows]


def queue_of(row: tuple[Any, ...]) -> Queue:
    """Build a `Queue` from a row of the queues table. Options that cannot be used are left at their defaults."""
    number, name, suffix, stored, paused_at, created_at = row
    options, unusable = read_options(name, stored)
    return Queue(number, name, suffix, options, paused_at, created_at, unusable)


def _must_exist(name: str, rows: Rows) -> Op[None]:
    if not rows:
        raise (yield from _not_found(name))


def _not_found(name: str) -> Op[QueueNotFound]:
    rows = yield Execute(queries["queue_names"])
    names: Sequence[str] = [row[0] for row in rows]
    folded = {other.casefold(): other for other in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    return QueueNotFound(name, [folded[key] for key in near])


def _same(queue: Queue, options: QueueOptions) -> Queue:
    if queue.options != options:
        raise QueueExists(queue.name, _differences(queue.options, options))
    return queue


def _differences(old: QueueOptions, new: QueueOptions) -> dict[str, tuple[object, object]]:
    pairs = {key: (getattr(old, key), getattr(new, key)) for key in QueueOptions.__struct_fields__}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
