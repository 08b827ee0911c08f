"""What each role may do with each table, view, sequence and function of an installation: tried, decided, documented.

``rights.yaml`` beside this file is what was decided: whatever is not in it must be refused. A new table, column or grant
fails `test_rights.py` until it is decided there. Run ``python -m tests.security.rights`` afterwards, which writes the table
of ``docs/security.md`` from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from psycopg import sql

__all__ = ["DECIDED", "PAGE", "ROLES", "Relation", "documented", "find_relations", "page_with", "read_decided", "tried"]

DECIDED: Final = Path(__file__).with_name("rights.yaml")
PAGE: Final = Path(__file__).parents[2] / "docs" / "security.md"
#: Those that are tried; ``public`` is a role that nothing was granted. An administrator owns everything.
ROLES: Final = ("producer", "consumer", "observer", "public")
BEGIN: Final = "<!-- From tests/security/rights.yaml, by `python -m tests.security.rights`. -->\n"
END: Final = "<!-- End of what is generated. -->"

MODES: Final = (
    "access share",
    "row share",
    "row exclusive",
    "share update exclusive",
    "share",
    "share row exclusive",
    "exclusive",
    "access exclusive",
)

#: By relation, by role, by action: the columns, or True.
Rights = dict[str, dict[str, dict[str, Any]]]


class Relation:
    """A table, view or sequence of the schema, under the name that it has in ``rights.yaml``."""

    def __init__(self, name: str, kind: str, columns: Sequence[str]) -> None:
        self.name = name
        self.kind = kind
        self.columns = columns

    @property
    def entry(self) -> str:
        """Its name, but a queue's with ``<queue>`` in place of ``jobs``."""
        return re.sub(r"^([qav])_jobs(?=_|$)", r"\1_<queue>", self.name)


def find_relations(connection: psycopg.Connection[Any], schema: str = "pgqrs") -> list[Relation]:
    """Return everything in the schema that has rights, whatever made it."""
    rows = connection.execute(
        "select c.relname::text, c.relkind::text, array(select a.attname::text from pg_attribute a "
        "where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) from pg_class c "
        "where c.relnamespace = %s::regnamespace and c.relkind not in ('i', 'I', 't', 'c') order by 1",
        (schema,),
    ).fetchall()
    return [Relation(*row) for row in rows]


def _function_entry(name: str) -> str:
    """Its name, but a queue's with ``<queue>`` in place of ``jobs``."""
    return f"{re.sub(r'^e_jobs$', 'e_<queue>', name)}()"


def _attempts(relation: Relation, schema: str) -> Iterator[tuple[str, str | None, sql.Composed]]:
    """Yield what to try with a relation: the action, the column, and a statement that changes nothing."""
    name = sql.Identifier(schema, relation.name)

    def fill(text: str, *more: sql.Composable) -> sql.Composed:
        return sql.SQL(text).format(name, *more)  # type: ignore[arg-type]

    if relation.kind == "S":
        literal = sql.Literal(name.as_string(None))
        for action, call in (("next number", "nextval({}::regclass)"), ("set number", "setval({}::regclass, 1)")):
            yield action, None, sql.SQL("select " + call).format(literal)  # type: ignore[arg-type]
        yield "read number", None, fill("select last_value from {}")
        return
    for column in [*relation.columns, *(["ctid"] if relation.kind == "r" else [])]:
        yield "select", column, fill("select {1} from {0} limit 0", sql.Identifier(column))
    for column in relation.columns:
        yield "insert", column, fill("insert into {} ({}) select null where false", sql.Identifier(column))
        yield "update", column, fill("update {} set {} = null where false", sql.Identifier(column))
    yield "delete", None, fill("delete from {} where false")
    yield "truncate", None, fill("truncate {}")
    for mode in MODES:
        yield "lock", mode, fill("lock table {} in " + mode + " mode nowait")
    for right in ("trigger", "references"):
        yield (
            right,
            None,
            sql.SQL("select 1 / has_table_privilege({}, {})::int").format(
                sql.Literal(name.as_string(None)), sql.Literal(right)
            ),
        )


def tried(connection: psycopg.Connection[Any], roles: Mapping[str, str], schema: str = "pgqrs") -> Rights:
    """Try everything as each of ``roles``, by name in ``rights.yaml``; return what was not refused."""
    found: Rights = {}
    relations = find_relations(connection, schema)
    for duty, role in roles.items():
        for relation in relations:
            done: dict[str, Any] = {}
            for action, column, statement in _attempts(relation, schema):
                if not _succeeds(connection, role, statement):
                    continue
                if column is None:
                    done[action] = True
                elif action == "lock":
                    # The strongest, for PostgreSQL 16 changed which weaker ones come with it.
                    done["lock"] = column
                else:
                    done.setdefault(action, []).append(column)
            if done:
                found.setdefault(relation.entry, {})[duty] = done
        for name, signature in _functions(connection, schema):
            if _may(connection, role, "has_function_privilege(%s, %s, 'execute')", signature):
                found.setdefault(_function_entry(name), {})[duty] = {"execute": True}
        if _may(connection, role, "has_schema_privilege(%s, %s, 'create')", schema):
            found.setdefault("schema", {})[duty] = {"create": True}
    return found


def _functions(connection: psycopg.Connection[Any], schema: str) -> list[tuple[Any, ...]]:
    return connection.execute(
        "select proname::text, oid::regprocedure::text from pg_proc where pronamespace = %s::regnamespace",
        (schema,),
    ).fetchall()


def _may(connection: psycopg.Connection[Any], role: str, call: str, what: str) -> bool:
    row = connection.execute(f"select {call}".encode(), (role, what)).fetchone()
    return bool(row and row[0])


def _succeeds(connection: psycopg.Connection[Any], role: str, statement: sql.Composed) -> bool:
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
        except psycopg.Error:
            return False
    return True


def read_decided() -> Rights:
    """Return what was decided, as `tried` returns what is so."""
    rights: Rights = yaml.safe_load(DECIDED.read_text(encoding="utf-8"))
    return rights


def documented(decided: Rights) -> str:
    """Return the table of the page: a line for each relation and role that may do anything with it."""
    lines = [
        "| table or view | role | reads | adds | changes | removes rows | locks up to |",
        "|---|---|---|---|---|---|---|",
    ]
    for relation, roles in sorted(decided.items()):
        for role, actions in roles.items():
            cells = [_shown(actions.get(action, ())) for action in ("select", "insert", "update")]
            others = [action for action in actions if action in {"next number", "read number", "set number", "execute"}]
            cells[0] = ", ".join(others) if others else cells[0]
            lines.append(
                f"| `{relation}` | {role} | {' | '.join(cells)} | {'yes' if actions.get('delete') else '–'} "
                f"| {actions.get('lock', '–')} |"
            )
    return "\n".join(lines) + "\n"


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns if column != "ctid") or "–"


def page_with(table: str) -> str:
    """Return the page with this table in its place."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + table + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with(documented(read_decided())), encoding="utf-8")
