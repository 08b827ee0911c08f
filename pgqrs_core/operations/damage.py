"""Finding what a restore has left incomplete: tables without rows, rows without tables, tables without a version.

`pgqrs_core.operations.repair` mends it. A dump of the schema alone has all tables and no row; one that was restored over
tables which a program had made anew has messages without the row of their queue.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from pgqrs_core.effects import Execute, Op
from pgqrs_core.messages import Queue
from pgqrs_core.sql import MIGRATIONS, Migration, queries, read_migrations

if TYPE_CHECKING:
    from pgqrs_core.hookspecs import MigrationSource

__all__ = ["CORE", "Damage", "Schema", "components_of", "find_damage", "read_schema", "shared_tables"]

#: The core's name among components.
CORE: Final = "pgqrs"

_CREATED: Final = re.compile(r"^create (?:unlogged )?(?:table|view) (?:if not exists )?\{schema\}\.(\w+)", re.MULTILINE)
_DROPPED: Final = re.compile(r"^drop (?:table|view) (?:if exists )?\{schema\}\.(\w+)", re.MULTILINE)
_UNDER: Final = "migrations"
#: The step that makes the function by which a queue is written to.
_FUNCTION_SINCE: Final = next(
    step.version for step in MIGRATIONS if "queue" in step.blocks and "function {enqueue}" in step.blocks["queue"].text
)


class Damage(msgspec.Struct, frozen=True):
    """One thing that is incomplete.

    Attributes:
        kind: ``unrecorded``: a component's tables are there, but not which steps they have had; ``shared``: tables of a
            component are missing; ``queue``: tables of a queue are missing; ``stray``: tables of a queue are there, but not
            its row.
        tables: The tables that are there for ``unrecorded`` and ``stray``, and that are missing for the others.
        component: For ``unrecorded`` and ``shared``.
        queue: For ``queue``.
        suffix: What the names of the tables end with, for ``stray``.
        comment: What stands on the first of these tables.
    """

    kind: Literal["unrecorded", "shared", "queue", "stray"]
    tables: tuple[str, ...]
    component: str = CORE
    queue: Queue | None = None
    suffix: str = ""
    comment: str = ""

    def describe(self) -> str:
        """Say what is wrong, in one sentence without its end."""
        tables = ", ".join(self.tables)
        if self.kind == "unrecorded":
            return f"the tables of {self.component} are there, but not the record of their version: {tables}"
        if self.kind == "shared":
            return f"tables of {self.component} are missing: {tables}"
        if self.queue is not None:
            return f"tables of queue {self.queue.name!r} are missing: {tables}"
        return f"tables belong to no queue: {tables}"


class Schema(msgspec.Struct, frozen=True):
    """What a schema holds.

    Attributes:
        relations: Tables, views, and functions of queues by name: kind, and comment.
        steps: The recorded steps, by component.
        queues: The rows of queues.
        versions: The step up to which the tables of each queue are, by the queue's number.
    """

    relations: dict[str, tuple[str, str]]
    steps: dict[str, tuple[int, ...]]
    queues: list[Queue]
    versions: dict[int, int] = {}

    def is_view(self, name: str) -> bool:
        """Tell whether one of the relations is a view."""
        return self.relations.get(name, ("", ""))[0] == "v"

    def there(self, tables: Collection[str]) -> list[str]:
        """Return those of these tables that are there."""
        return [table for table in tables if table in self.relations]


def components_of(sources: Sequence[MigrationSource]) -> dict[str, tuple[Migration, ...]]:
    """Return the scripts of the core and of plugins, by component."""
    return {CORE: MIGRATIONS, **{source.component: tuple(read_migrations(source.package)) for source in sources}}


def shared_tables(steps: Sequence[Migration]) -> list[str]:
    """Return the tables and views that the shared blocks of these steps leave, in the order in which they are made."""
    tables: dict[str, None] = {}
    for step in steps:
        if "shared" in step.blocks:
            text = step.blocks["shared"].text
            tables.update(dict.fromkeys(_CREATED.findall(text)))
            for name in _DROPPED.findall(text):
                tables.pop(name, None)
    return list(tables)


def read_schema(schema: str) -> Op[Schema]:
    """Return what a schema holds; it need not exist."""
    from pgqrs_core.operations.queues import list_queues

    rows = yield Execute(queries["relations"], {"schema": schema})
    relations = {name: (kind, comment) for name, kind, comment in rows}
    steps: Mapping[str, Sequence[int]] = {}
    if _UNDER in relations:
        steps = dict((yield Execute(queries["recorded_steps"])))
    known: list[Queue] = []
    reached: dict[int, int] = {}
    if "queues" in relations:
        known = yield from list_queues()
        reached = dict((yield Execute(queries["queue_versions"])))
    return Schema(relations, {name: tuple(versions) for name, versions in steps.items()}, known, reached)


def find_damage(found: Schema, components: Mapping[str, Sequence[Migration]]) -> list[Damage]:
    """Return what is incomplete in a schema; nothing where nothing of ours is."""
    return [*_shared(found, components), *_queues(found)]


def _shared(found: Schema, components: Mapping[str, Sequence[Migration]]) -> Iterator[Damage]:
    for component, steps in components.items():
        recorded = found.steps.get(component, ())
        expected = shared_tables([step for step in steps if not recorded or step.version in recorded])
        there = found.there(expected)
        if not recorded and there:
            yield Damage("unrecorded", tuple(there), component)
        elif recorded and len(there) < len(expected):
            yield Damage("shared", tuple(table for table in expected if table not in there), component)


def _queues(found: Schema) -> Iterator[Damage]:
    suffixes = set()
    for queue in found.queues:
        suffixes.add(queue.suffix)
        kinds = "qva" if queue.options.archive else "qv"
        # A queue that is not yet brought up to date has no function, and lacks nothing.
        if found.versions.get(queue.id, 0) >= _FUNCTION_SINCE:
            kinds += "e"
        missing = [f"{kind}_{queue.suffix}" for kind in kinds if f"{kind}_{queue.suffix}" not in found.relations]
        if missing:
            yield Damage("queue", tuple(missing), queue=queue)
    stray: dict[str, list[str]] = {}
    for name, (kind, _) in sorted(found.relations.items(), reverse=True):
        if name.startswith(("q_", "a_")) and kind == "r" and name[2:] not in suffixes:
            stray.setdefault(name[2:], []).append(name)
    for suffix, tables in sorted(stray.items()):
        yield Damage("stray", tuple(tables), suffix=suffix, comment=found.relations[tables[0]][1])
