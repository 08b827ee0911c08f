"""Bringing the tables of queues up to date, each queue in a transaction of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Transact
from pgqrs_core.errors import NotPermitted, QueuesFailed, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue
from pgqrs_core.operations.grants import grant_queue
from pgqrs_core.sql import Migration, queries

__all__ = ["apply_to_queue", "raise_if_any", "upgrade_queues"]

_log = get_logger("pgqrs.schema")

#: Queues whose names are read at once.
_PAGE: Final = 1_000


def upgrade_queues(schema: str, migrations: Sequence[Migration]) -> Op[None]:
    """Bring the tables of every queue up to date. One that cannot be does not stop the others."""
    # Imported late, as it reads queues, which are built by this module.
    from pgqrs_core.operations.doctor_rules import rules

    newest, after, upgraded = migrations[-1].version, 0, False
    failed: dict[str, ServerError] = {}
    while True:
        rows = yield Execute(queries["outdated_queues"], {"version": newest, "after": after, "limit": _PAGE})
        for number, name in rows:
            upgraded = True
            try:
                yield Transact(partial(_upgrade_queue, schema, number, migrations))
            except ServerError as error:
                _log.warning("the tables of queue %r could not be upgraded, those of others are: %s", name, error)
                failed[name] = error
        if len(rows) < _PAGE:
            break
        after = rows[-1][0]
    raise_if_any(failed, schema, "upgraded")
    for finding in (yield from rules(schema)) if upgraded else ():
        if finding.status != "ok":
            _log.warning("%s. %s `%s`", finding.summary, finding.remedy, "` `".join(finding.commands))


def _upgrade_queue(schema: str, number: int, migrations: Sequence[Migration]) -> Op[None]:
    # Imported late: queues are built by this module.
    from pgqrs_core.operations.queues import queue_of

    rows = yield Execute(queries["lock_outdated_queue"], {"queue_id": number})
    if not rows:
        return
    queue, version = queue_of(rows[0][:6]), rows[0][6]
    tables = {"queue": f"q_{queue.suffix}", "archive": f"a_{queue.suffix}"}
    found = yield Execute(queries["existing_tables"], {"schema": schema, "tables": texts(list(tables.values()))})
    there = {row[0] for row in found}
    for step in migrations:
        if step.version > version:
            # A table that is missing has nothing to upgrade, and must not stop the others.
            yield from apply_to_queue(step, queue, [kind for kind, table in tables.items() if table in there])
    if there >= set(tables.values() if queue.options.archive else [tables["queue"]]):
        yield from grant_queue(schema, queue)
    yield Execute(queries["record_version"], {"queue_id": number, "version": migrations[-1].version})


def raise_if_any(failed: Mapping[str, ServerError], schema: str, what: str) -> None:
    """Raise what became of the queues that failed, if some did; ``what`` was done to the others.

    Raises:
        NotPermitted: it is not ours to do.
        QueuesFailed: it names the queues, and the first error.
    """
    if failed:
        first = next(iter(failed.values()))
        if isinstance(first, NotPermitted):
            raise first
        raise QueuesFailed(what, schema, tuple(failed), str(first)) from first


def apply_to_queue(step: Migration, queue: Queue, kinds: Sequence[str] = ("queue", "archive")) -> Op[None]:
    """Run the blocks of a step for the tables of a queue, or for some of them."""
    for kind in kinds:
        if kind in step.blocks and (kind == "queue" or queue.options.archive):
            yield Execute(step.blocks[kind], {}, queue)
