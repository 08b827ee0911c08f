"""Mending what `pgqrs_core.operations.damage` finds. Nothing that holds a row is dropped, and nothing is guessed.

==========  ==================================================================================================
damage      what is done
==========  ==================================================================================================
unrecorded  the tables are made anew if all of them are empty, as in a copy of the schema without its data
shared      the missing tables are made, empty
queue       the missing tables are made, empty
stray       the queue gets a row again if its tables are what some version makes, and its name is known
==========  ==================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pgqrs_core.arrays import texts
from pgqrs_core.effects import Execute, Op, Rows, Transact
from pgqrs_core.errors import PgqrsError, ServerError
from pgqrs_core.logs import get_logger
from pgqrs_core.messages import Queue, QueueOptions, read_label
from pgqrs_core.operations.damage import CORE, Damage, Schema, components_of, find_damage, read_schema
from pgqrs_core.operations.grants import grant_new, grant_queue
from pgqrs_core.operations.queues import queue_of, table_suffix
from pgqrs_core.operations.schema import SUPPORTED, install, install_all
from pgqrs_core.operations.upgrade import apply_to_queue
from pgqrs_core.sql import GRANTS, MIGRATIONS, Migration, Query, queries, read_grants

if TYPE_CHECKING:
    from pgqrs_core.plugins import Plugins

__all__ = ["Repair", "repair"]

_log = get_logger("pgqrs.schema")

_FUNCTION: Final = re.compile(
    r"create function \{enqueue\}.*?\$pgqrs\$.*?\$pgqrs\$;\nrevoke [^;]* on function \{enqueue\} [^;]*(?:;|\Z)",
    re.DOTALL,
)
_VIEWS: Final = re.compile(r"^create (?:view|rule) .*?;$", re.MULTILINE | re.DOTALL)
_NAMED: Final = re.compile(r"create view \{schema\}\.(\w+)")
_VIEW: Final = re.compile(r"create (?:or replace )?view \{view\}.*?(?:;|\Z)", re.DOTALL)
#: A queue that is made to see what tables look like, and never committed.
_PATTERN: Final = Queue(0, "pgqrs pattern", "pgqrs_pattern_of_a_queue", QueueOptions(archive=True))


class Repair(msgspec.Struct, frozen=True):
    """What was mended, or with a dry run would be, and what cannot be: a sentence for each."""

    done: list[str] = []
    left: list[str] = []


class _Shapes(PgqrsError):
    """Carries what was learnt out of a transaction that is rolled back."""

    def __init__(self, shapes: dict[int, tuple[Any, Any]]) -> None:
        super().__init__("rolled back on purpose")
        self.shapes = shapes


def repair(schema: str, plugins: Plugins, *, dry_run: bool = False) -> Op[Repair]:
    """Mend what is incomplete in a schema, each thing in a transaction of its own; what was interrupted can be run again.

    What is missing of an installation is installed, too. Run it while no program uses the schema.

    Args:
        schema: the schema.
        plugins: whose tables belong to the installation.
        dry_run: change nothing, and return what would be done.
    """
    components = components_of(plugins.migrations)
    done: list[str] = []
    left: list[str] = []
    found = yield from read_schema(schema)
    for damage in find_damage(found, components):
        if damage.kind == "unrecorded":
            why = yield from _why_not_anew(damage, found)
            if why:
                left.append(why)
                continue
            done.append(f"make the tables of {damage.component} anew, which are all empty: {', '.join(damage.tables)}")
            if not dry_run:
                yield Transact(partial(_drop, damage.tables, found))
                yield from _install(schema, plugins, damage.component, components)
    if left:
        return Repair(done, left)
    if not dry_run:
        # Tables that are missing are made as the newest step leaves them.
        yield from install_all(schema, plugins)
        found = yield from read_schema(schema)
    shapes: dict[int, tuple[Any, Any]] | None = None
    for damage in find_damage(found, components):
        if damage.kind == "unrecorded":
            continue
        if damage.kind == "stray":
            shapes = shapes if shapes is not None else (yield from _shapes(schema))
            queue, version, why = yield from _recognised(schema, damage, shapes, found)
            if queue is None:
                left.append(f"{damage.describe()}; {why}")
                continue
            sentence = f"adopt {', '.join(damage.tables)} as queue {queue.name!r}, with the default options"
            mend = partial(_adopt, schema, damage, queue, version)
        elif damage.kind == "queue":
            sentence = f"make {', '.join(damage.tables)} of queue {damage.queue.name!r}, empty"  # type: ignore[union-attr]
            mend = partial(_make_queue_tables, schema, damage.queue, damage.tables)  # type: ignore[arg-type]
        else:
            sentence = f"make {', '.join(damage.tables)} of {damage.component}, empty"
            mend = partial(_make_shared, schema, damage, found, components[damage.component], plugins)
        try:
            if not dry_run:
                yield Transact(mend)
        except ServerError as error:
            left.append(f"{damage.describe()}; {error}")
        else:
            done.append(sentence)
    for sentence in done if not dry_run else ():
        _log.warning("schema %r was repaired: %s", schema, sentence)
    return Repair(done, left)


def _why_not_anew(damage: Damage, found: Schema) -> Op[str]:
    for table in damage.tables:
        if not found.is_view(table) and (yield Execute(queries["holds_rows"], names={"table": table}))[0][0]:
            return (
                f"{damage.describe()}; {table} holds rows, so they are not made anew: "
                "restore the table migrations from the same backup"
            )
    return ""


def _drop(tables: Sequence[str], found: Schema) -> Op[None]:
    for table in reversed(tables):
        yield Execute(queries["drop_view" if found.is_view(table) else "drop_table"], names={"table": table})


def _install(
    schema: str, plugins: Plugins, component: str, components: Mapping[str, Sequence[Migration]]
) -> Op[list[str]]:
    return install(schema, component=component, migrations=components[component], grants=_grants(plugins, component))


def _grants(plugins: Plugins, component: str) -> Mapping[str, Query]:
    if component == CORE:
        return GRANTS
    return read_grants(next(source.package for source in plugins.migrations if source.component == component))


def _make_shared(schema: str, damage: Damage, found: Schema, steps: Sequence[Migration], plugins: Plugins) -> Op[None]:
    """Make tables in another schema by all steps that are recorded, and move those that are missing."""
    names = {"scratch": f"{schema[:50]}_repair"}
    yield Execute(queries["create_scratch"], names=names)
    recorded = found.steps[damage.component]
    for step in steps:
        if step.version in recorded and "shared" in step.blocks:
            yield Execute(step.blocks["shared"], names={"schema": names["scratch"]})
    # Views stay behind, with the tables that they read.
    views = {
        name: text for step in steps if "shared" in step.blocks for name, text in _views(step.blocks["shared"].text)
    }
    for table in damage.tables:
        if table not in views:
            yield Execute(queries["move_table"], names={**names, "table": table})
    yield Execute(queries["drop_scratch"], names=names)
    for name in damage.tables:
        if name in views:
            yield Execute(Query("view", views[name]))
    yield from grant_new(schema, damage.component, _grants(plugins, damage.component))


def _make_queue_tables(schema: str, queue: Queue, missing: Sequence[str]) -> Op[None]:
    kinds = [kind for kind, short in (("queue", "q"), ("archive", "a")) if f"{short}_{queue.suffix}" in missing]
    if "queue" in kinds:
        # What is left of them is in the way.
        yield Execute(queries["drop_queue"], {}, queue)
    for step in MIGRATIONS:
        yield from apply_to_queue(step, queue, kinds)
    if "queue" in kinds:
        if queue.options.archive:
            yield Execute(queries["pass_archived_ids"], {}, queue)
        yield Execute(queries["pass_keyed_ids"], {}, queue)
    else:
        if f"v_{queue.suffix}" in missing:
            yield Execute(_part(_VIEW), {}, queue)
        yield Execute(_part(_FUNCTION), {}, queue)
    yield from grant_queue(schema, queue)
    yield Execute(queries["record_version"], {"queue_id": queue.id, "version": SUPPORTED})


def _views(text: str) -> Iterator[tuple[str, str]]:
    """Yield the views that a block makes, each with the statements that make it and its rules."""
    statements = _VIEWS.findall(text)
    for statement in statements:
        named = _NAMED.match(statement)
        if named is not None:
            rules = [
                one for one in statements if one.startswith("create rule") and f" to {{schema}}.{named[1]} " in one
            ]
            yield named[1], "\n".join([statement, *rules]).removesuffix(";")


def _part(pattern: re.Pattern[str]) -> Query:
    """Return the statements that make a part of a queue, its view or its function, as the newest step leaves it."""
    texts_of = [step.blocks["queue"].text for step in MIGRATIONS if "queue" in step.blocks]
    found = [part for text in texts_of for part in pattern.findall(text)]
    return Query("part", found[-1].removesuffix(";").replace("create function", "create or replace function", 1))


def _shapes(schema: str) -> Op[dict[int, tuple[Any, Any]]]:
    """Return what the tables of a queue are made of after each step: those of messages, and those of the archive."""
    try:
        yield Transact(partial(_learn_shapes, schema))
    except _Shapes as learnt:
        return learnt.shapes
    raise AssertionError("unreachable")


def _learn_shapes(schema: str) -> Op[None]:
    shapes = {}
    for step in MIGRATIONS:
        yield from apply_to_queue(step, _PATTERN)
        facts = yield from _facts(schema, _PATTERN.suffix)
        shapes[step.version] = facts
    raise _Shapes(shapes)


def _facts(schema: str, suffix: str) -> Op[tuple[Any, Any]]:
    names = [f"q_{suffix}", f"a_{suffix}"]
    rows = yield Execute(queries["table_facts"], {"schema": schema, "tables": texts(names)})
    facts = {name: tuple(sorted(found)) for name, found in rows}
    return facts.get(names[0]), facts.get(names[1])


def _recognised(
    schema: str, damage: Damage, shapes: Mapping[int, tuple[Any, Any]], found: Schema
) -> Op[tuple[Queue | None, int, str]]:
    """Return the queue that tables without a row belong to, and the version of their shape; or why it is not known."""
    messages, archive = yield from _facts(schema, damage.suffix)
    # A large archive keeps its first shape, so any of them will do.
    if archive is not None and archive not in [shape[1] for shape in shapes.values()]:
        return None, 0, _difference(f"a_{damage.suffix}", archive, shapes[SUPPORTED][1])
    versions = [version for version, shape in shapes.items() if messages in (shape[0], None)]
    if not versions:
        return None, 0, _difference(f"q_{damage.suffix}", messages, shapes[SUPPORTED][0])
    number, name = _name_of(damage)
    if name is None:
        return None, 0, "the name of the queue is not known: rename or drop them, or restore the row of the queue"
    if any(queue.name == name for queue in found.queues):
        return None, 0, f"queue {name!r} has other tables"
    return Queue(number, name, damage.suffix, QueueOptions(archive=archive is not None)), max(versions), ""


def _difference(table: str, facts: Sequence[str], wanted: Sequence[str]) -> str:
    lacks, has = sorted(set(wanted) - set(facts)), sorted(set(facts) - set(wanted))
    parts = [f"lacks {'; '.join(lacks[:3])}" if lacks else "", f"has {'; '.join(has[:3])}" if has else ""]
    return f"{table} is not as pgqrs makes it: it {' and '.join(part for part in parts if part)}"


def _name_of(damage: Damage) -> tuple[int, str | None]:
    """Return the number and name of a queue, by what stands on its table, or by the table's name; 0 and None: unknown."""
    label = read_label(damage.comment)
    if label is not None and table_suffix(label[1]) == damage.suffix:
        return label
    return 0, damage.suffix if table_suffix(damage.suffix) == damage.suffix else None


def _adopt(schema: str, damage: Damage, queue: Queue, version: int) -> Op[None]:
    params = {
        "name": queue.name,
        "suffix": queue.suffix,
        "options": msgspec.json.encode(queue.options).decode(),
        "version": version,
    }
    rows: Rows = ()
    if queue.id:
        # Its idempotency keys go by its number.
        rows = yield Execute(queries["adopt_queue"], {**params, "number": queue.id})
    yield Execute(queries["pass_queue_numbers"], {"schema": schema})
    if not rows:
        rows = yield Execute(queries["insert_queue"], params)
    adopted = queue_of(rows[0])
    if f"q_{queue.suffix}" not in damage.tables:
        yield from _make_queue_tables(schema, adopted, [f"q_{queue.suffix}"])
        return
    views = yield Execute(queries["existing_tables"], {"schema": schema, "tables": texts([f"v_{queue.suffix}"])})
    if not views:
        yield Execute(_part(_VIEW), {}, adopted)
    for step in MIGRATIONS:
        if step.version > version:
            yield from apply_to_queue(step, adopted)
    # It holds the number of its queue.
    yield Execute(_part(_FUNCTION), {}, adopted)
    yield Execute(queries["label_queue"], {}, adopted)
    yield from grant_queue(schema, adopted)
    yield Execute(queries["record_version"], {"queue_id": adopted.id, "version": SUPPORTED})
