"""The catalogue of statements: each is named, explained and used, and nothing is formatted into one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pgqrs_core.sql
from pgqrs_core.effects import Execute
from pgqrs_core.sql import MIGRATIONS, Query, queries, read_migrations, read_queries
from pgqrs_core.testing.by_hand import make_queue, text_of
from tests.support import statements

CORE = Path(pgqrs_core.__file__).parent
SHELVES = [CORE, CORE.parent / "adapters", CORE.parent / "plugins"]
FILES = sorted((CORE / "sql").glob("*.sql"))
#: What is filled in from `Execute.names`: roles, and a table to hand over to one.
NAMES = {
    name: f"some {name}" for name in ("producer", "consumer", "observer", "admin", "role", "table", "owner", "scratch")
}
PLACEHOLDERS = {
    "schema",
    "queue",
    "archive",
    "view",
    "queue_id",
    "queue_name",
    "archive_name",
    "sequence",
    "sequence_name",
    "enqueue",
    "queue_label",
    *NAMES,
}

#: Their names and text say all there is to say.
CLEAR = frozenset(
    [
        "applied_migrations",
        "create_migrations",
        "create_schema",
        "delete_queue",
        "drop_scratch",
        "move_table",
        "drop_archive",
        "drop_schema",
        "find_queue",
        "list_queues",
        "alter_queue",
        "pause_queue",
        "purge_dead",
        "queue_names",
        "record_migration",
        "record_role",
        "resign",
        "resume_queue",
        "schema_exists",
        "server_time",
        "show_dead",
        "vacuum",
    ]
)

#: The statements of each adapter that has some, by its package.
CATALOGUES = {
    path.parent.parent.name: read_queries(f"{path.parent.parent.name}.sql")
    for path in CORE.parent.glob("adapters/*/sql/__init__.py")
}
STATEMENTS = [pytest.param(query, id=name) for name, query in queries.items()] + [
    pytest.param(query, id=f"{package}-{name}")
    for package, catalogue in CATALOGUES.items()
    for name, query in catalogue.items()
]
BLOCKS = [
    pytest.param(block, id=f"{step.version:04}-{name}") for step in MIGRATIONS for name, block in step.blocks.items()
] + [
    pytest.param(block, id=f"{path.parent.parent.parent.name}-{step.version:04}-{name}")
    for path in CORE.parent.glob("adapters/*/sql/migrations/__init__.py")
    for step in read_migrations(f"{path.parent.parent.parent.name}.sql.migrations")
    for name, block in step.blocks.items()
]


def code_of(text: str) -> str:
    """A statement without its comments."""
    return re.sub(r"--[^\n]*", "", text)


def without_strings(text: str) -> str:
    return re.sub(r"'(?:[^']|'')*'", "''", code_of(text))


def source() -> str:
    """All Python code that may run statements."""
    return "\n".join(path.read_text() for shelf in SHELVES for path in shelf.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_stands_before_the_first_name_but_comments(path: Path) -> None:
    head = path.read_text().split("-- name:", 1)[0]

    assert code_of(head).strip() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_name_is_well_formed_and_unique(path: Path) -> None:
    lines = re.findall(r"^-- name:.*$", path.read_text(), re.MULTILINE)

    names = [
        re.fullmatch(
            r"-- name: ([a-z][a-z_]*)"
            r"((?: (?:anyone|producer|consumer|observer|relaxed|patient|bitmap|alone|glance|lock_timeout|brief|login))*)",
            line,
        )
        for line in lines
    ]

    assert all(names), [line for line, match in zip(lines, names, strict=True) if not match]
    assert {match[1] for match in names if match} <= queries.keys()
    assert len({match[1] for match in names if match}) == len(lines)


@pytest.mark.parametrize("query", [item for item in STATEMENTS if item.id not in CLEAR])
def test_every_statement_says_what_it_promises(query: Query) -> None:
    assert query.text.startswith("-- "), f"{query.name} has no comment"


def test_the_list_of_clear_statements_holds_none_that_is_explained_or_gone() -> None:
    assert {name for name in CLEAR if name not in queries or queries[name].text.startswith("--")} == set()


def test_every_statement_is_used() -> None:
    text = source()

    assert [name for name in queries if f'"{name}"' not in text] == []


def test_every_name_that_is_used_exists() -> None:
    used = set(re.findall(r'queries\["(\w+)"\]', source()))
    # Adapters bring catalogues of their own, under the same name.
    known = set(queries).union(*CATALOGUES.values())

    assert used
    assert used - known == set()


@pytest.mark.parametrize("query", STATEMENTS + BLOCKS)
def test_braces_hold_nothing_but_identifiers_that_the_driver_composes(query: Query) -> None:
    text = query.text.replace("{{", "").replace("}}", "")

    assert set(re.findall(r"\{([^{}]*)\}", text)) <= PLACEHOLDERS


@pytest.mark.parametrize("query", STATEMENTS + BLOCKS)
def test_no_identifier_is_quoted_or_extended_by_hand(query: Query) -> None:
    """As in ``q_{queue}`` or ``'{schema}'``: what the driver composes is whole."""
    text = code_of(query.text).replace("{{", "").replace("}}", "")

    assert (
        re.findall(r"""[\w'"]\{\w+\}|\{(?:queue|archive|view|queue_id|queue_name)\}[\w'"]|\{schema\}[\w'"]""", text)
        == []
    )


@pytest.mark.parametrize("query", STATEMENTS + BLOCKS)
def test_values_are_named_parameters(query: Query) -> None:
    rest = re.sub(r"%\([a-z_]+\)s", "", code_of(query.text))

    assert "%" not in rest


@pytest.mark.parametrize("query", BLOCKS)
def test_a_migration_takes_no_parameters(query: Query) -> None:
    assert "%" not in query.text


@pytest.mark.parametrize("query", STATEMENTS)
def test_a_script_of_several_statements_takes_no_parameters(query: Query) -> None:
    if ";" in without_strings(query.text).rstrip().rstrip(";"):
        assert "%(" not in query.text


VOLATILE = r"\b(?:clock_timestamp|timeofday|random|gen_random_uuid|nextval|txid_current)\b"


#: What `doctor` asks about the server is about this very moment, and touches no message.
TIMED = [item for item in STATEMENTS if f"-- name: {item.id}" not in (CORE / "sql" / "doctor.sql").read_text()]


@pytest.mark.parametrize("query", TIMED)
def test_times_are_those_of_the_statement(query: Query) -> None:
    """Not clock_timestamp(), which Citus refuses in an UPDATE, nor now(), which stands still in a transaction."""
    # A default is no time of a statement's.
    code = re.sub(r"default now\(\)", "", code_of(query.text))

    if query.name == "foreign_code":
        # It names functions, and calls none of them.
        return

    assert re.findall(VOLATILE, code) == []
    assert re.findall(r"\b(?:now\s*\(|current_timestamp|localtimestamp|transaction_timestamp)", code) == []


#: What a settling statement checks of the rows that it goes to.
_PLACE = "[width_bucket(q.message_id, %(ids)s::bigint[])]"
FENCE = (
    f"and q.lane = (%(lanes)s::smallint[]){_PLACE} and q.message_id = (%(ids)s::bigint[]){_PLACE} "
    f"and q.lease_token = (%(tokens)s::bigint[]){_PLACE}"
)


@pytest.mark.parametrize("query", STATEMENTS)
def test_whatever_changes_a_row_at_its_place_has_locked_it_or_checks_what_lies_there(query: Query) -> None:
    """A ctid changes with each version of a row, and may come to hold another row; archives are never updated."""
    code = " ".join(code_of(query.text).split())
    if "ctid = any" in code and "{queue}" in code:
        assert "for update skip locked" in code or FENCE in code


@pytest.mark.parametrize("query", STATEMENTS)
def test_whoever_takes_rows_from_others_skips_those_that_are_locked(query: Query) -> None:
    code = " ".join(code_of(query.text).split())

    assert code.count("for update skip locked") == code.count("for update") or query.name in {
        "lock_queue",
        "lock_outdated_queue",
    }


@pytest.mark.parametrize("name", ["ack", "archive", "nack", "release", "postpone", "extend"])
def test_whatever_settles_a_message_is_fenced(name: str) -> None:
    assert FENCE in " ".join(code_of(queries[name].text).split())


@pytest.mark.parametrize(
    "name",
    [
        "enqueue_plain",
        "enqueue_unasked",
        "enqueue_one",
        "enqueue_alike",
        "enqueue_mixed",
        "enqueue_keyed",
        "archive",
        "ack",
        "nack",
        "replace",
    ],
)
def test_what_must_survive_a_crash_is_not_relaxed(name: str) -> None:
    assert not queries[name].relaxed


@pytest.mark.parametrize("query", STATEMENTS + BLOCKS)
def test_no_brace_is_left_when_a_statement_is_composed(query: Query) -> None:
    text = text_of(Execute(query, {}, make_queue(), names=NAMES))

    assert re.findall(r"\{[a-z_]*\}", text) == []


class TestMigrations:
    def test_they_are_numbered_without_gaps(self) -> None:
        assert [step.version for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))

    def test_their_blocks_are_those_that_are_run(self) -> None:
        assert {name for step in MIGRATIONS for name in step.blocks} <= {"shared", "queue", "archive"}

    def test_each_says_whether_old_code_survives_it(self) -> None:
        folder = CORE / "sql" / "migrations"

        for path in folder.glob("[0-9]*.sql"):
            assert re.search(r"^-- safe: (yes|no)$", path.read_text(), re.MULTILINE), path.name

    def test_no_other_file_hides_among_them(self) -> None:
        folder = CORE / "sql" / "migrations"

        strangers = [
            path.name
            for path in folder.iterdir()
            if not re.fullmatch(r"(\d{4}_\w+|grants)\.sql|__\w+__(\.py)?", path.name)
        ]

        assert strangers == []


@pytest.mark.parametrize("package", statements.CATALOGUES)
def test_every_statement_is_run_on_tables_of_all_kinds_or_has_a_reason(package: str) -> None:
    """See tests/support/statements.py: a new statement needs an entry there."""
    catalogue, entries, exempt = statements.CATALOGUES[package], statements.ENTRIES[package], statements.EXEMPT[package]

    assert set(entries) & set(exempt) == set()
    assert set(catalogue) - set(entries) - set(exempt) == set()
    assert (set(entries) | set(exempt)) - set(catalogue) == set()


@pytest.mark.parametrize("package", statements.CATALOGUES)
def test_every_entry_names_all_parameters(package: str) -> None:
    missing = {
        name: asked
        for name, entry in statements.ENTRIES[package].items()
        if not callable(entry.params)
        and (asked := set(re.findall(r"%\((\w+)\)s", statements.CATALOGUES[package][name].text)) - set(entry.params))
    }

    assert missing == {}
