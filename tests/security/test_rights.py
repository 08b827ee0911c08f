"""Every statement, tried by every role, on every table: what `rights.yaml` does not allow is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from pgqrs_core.operations import schema
from pgqrs_core.sql import read_grants, read_migrations

from .estate import Estate
from .rights import PAGE, ROLES, documented, find_relations, page_with, read_decided, tried

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "pgqrs_hello"


@pytest.fixture(scope="module")
def full(estate: Estate) -> Estate:
    """An installation with everything: the adapters' tables, a queue with an archive, and those of the example plugin."""
    sys.path.append(str(EXAMPLE))
    try:
        steps = tuple(read_migrations("pgqrs_hello.migrations"))
        grants = read_grants("pgqrs_hello.migrations")
        estate.owner.engine.run(schema.install, "pgqrs", component="hello", migrations=steps, grants=grants)
    finally:
        sys.path.remove(str(EXAMPLE))
    return estate


@pytest.fixture(scope="module")
def connection(full: Estate) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(full.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def roles(full: Estate) -> dict[str, str]:
    full.login(f"{full.prefix}_stranger")
    return {duty: f"{full.prefix}_stranger" if duty == "public" else full.role(duty) for duty in ROLES}


def test_each_role_may_do_what_was_decided_and_nothing_else(
    connection: psycopg.Connection[Any], roles: dict[str, str]
) -> None:
    assert tried(connection, roles) == read_decided()


def test_what_somebody_adds_is_red_until_it_is_decided(
    connection: psycopg.Connection[Any], roles: dict[str, str]
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("alter table pgqrs.kombu_queues add column secret text")
        connection.execute("create table pgqrs.celery_more (secret text)")
        connection.execute(sql.SQL("grant select on pgqrs.celery_more to {}").format(sql.Identifier(roles["observer"])))
        found = tried(connection, roles)

    decided = read_decided()
    assert found != decided
    assert "secret" in found["kombu_queues"]["producer"]["select"]
    assert found["celery_more"] == {"observer": {"select": ["secret", "ctid"], "lock": "access share"}}


def test_all_tables_of_all_adapters_are_tried(connection: psycopg.Connection[Any]) -> None:
    found = {relation.entry for relation in find_relations(connection)}

    assert {"q_<queue>", "a_<queue>", "v_<queue>", "q_<queue>_message_id_seq", "roles", "hello_journal"} <= found
    assert {"celery_results", "dramatiq_limits", "kombu_mail"} <= found
    assert {name for name in read_decided() if not name.endswith("()")} <= found


def test_an_administrator_may_do_everything(connection: psycopg.Connection[Any], full: Estate) -> None:
    owners = connection.execute(
        "select distinct relowner::regrole::text from pg_class where relnamespace = 'pgqrs'::regnamespace"
    ).fetchall()

    assert owners == [(full.role("admin"),)]


def test_the_table_of_the_page_is_up_to_date() -> None:
    assert page_with(documented(read_decided())) == PAGE.read_text(encoding="utf-8")


def test_the_tests_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`((?:test_|Test)\w+)`", PAGE.read_text(encoding="utf-8")))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    there = set(re.findall(r"^\s*(?:async def|def|class) (\w+)", sources, re.MULTILINE))

    assert len(named) > 15
    assert named - there == set()


def test_a_producer_locks_nothing_that_anybody_waits_for() -> None:
    """An enqueue, a claim and a change of a table take locks that ``access share`` does not stop, but for dropping it."""
    locks = {
        relation: rights["producer"]["lock"]
        for relation, rights in read_decided().items()
        if "lock" in rights.get("producer", {})
    }

    assert set(locks.values()) == {"access share"}


def test_what_earlier_versions_granted_is_taken_back(own_estate: Estate) -> None:
    producer = own_estate.role("producer")
    own_estate.run("grant all on pgqrs.celery_results, pgqrs.dramatiq_limits to {}", producer)

    own_estate.owner.admin.install(roles=True)

    tables = ("celery_results", "dramatiq_limits")
    rights = [
        own_estate.run("select has_table_privilege({}, {}, 'delete')", sql.Literal(producer), sql.Literal(f"pgqrs.{t}"))
        for t in tables
    ]
    assert rights == [[(False,)], [(False,)]]


class TestBarriersOfGroups:
    """A producer sets the counter of a group that it sends, under a random name, and no other."""

    @pytest.fixture
    def producer(self, full: Estate) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(full.url("producer"), autocommit=True) as connection:
            yield connection

    @pytest.mark.parametrize(
        ("key", "value", "expires"),
        [
            ("mutex:payments", 1, "now"),
            ("0b5f4b1e-0000-0000-0000-00000000000", 1, "now"),
            ("0b5f4b1e-0000-0000-0000-000000000000", 0, "now"),
            ("0b5f4b1e-0000-0000-0000-000000000000", 2**62, "now"),
            ("0b5f4b1e-0000-0000-0000-000000000000", 1, "infinity"),
        ],
    )
    def test_any_other_counter_is_refused(
        self, producer: psycopg.Connection[Any], key: str, value: int, expires: str
    ) -> None:
        with pytest.raises(psycopg.Error, match="check option"):
            producer.execute("insert into pgqrs.dramatiq_new_barriers values (%s, %s, %s)", (key, value, expires))

    def test_one_that_is_there_is_not_changed(self, producer: psycopg.Connection[Any], full: Estate) -> None:
        row = ("0b5f4b1e-0000-0000-0000-0000000000aa", 3, "2100-01-01")
        insert = "insert into pgqrs.dramatiq_new_barriers values (%s, %s, %s) on conflict do nothing"
        producer.execute(insert, row)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.execute(
                insert.replace("nothing", "update set value = 1").replace("conflict", "conflict (key)"), row
            )
        assert producer.execute(insert, row).rowcount == 0


def test_a_producer_cannot_resize_a_chord(full: Estate) -> None:
    full.run("insert into pgqrs.celery_chords (group_id, size) values ('sized', 3), ('new', null)")
    update = "update pgqrs.celery_new_chords set size = 1 where group_id = any('{sized,new}')"
    with psycopg.connect(full.url("producer"), autocommit=True) as producer:
        assert producer.execute(update).rowcount == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.execute(update.replace("celery_new_chords", "celery_chords"))

    assert full.run("select group_id, size from pgqrs.celery_chords order by 1") == [("new", 1), ("sized", 3)]


def test_rows_that_a_producer_locks_do_not_stop_the_cleaning(full: Estate) -> None:
    from pgqrs_celery import operations as celery
    from pgqrs_dramatiq import operations as dramatiq

    old = "now() - interval '1 hour'"
    full.run(f"insert into pgqrs.celery_waiters select n::text, 'pgqrs:celery:0123456789abcdef', {old} from "
             "generate_series(1, 2) n")  # fmt: skip
    full.run(f"insert into pgqrs.dramatiq_waiters select n::text, -n, {old} from generate_series(1, 2) n")
    with psycopg.connect(full.url("producer")) as producer:
        for table, key in (("celery_waiters", "task_id"), ("dramatiq_waiters", "key")):
            producer.execute(f"select {key} from pgqrs.{table} where {key} = '1' for update")  # type: ignore[arg-type]
        full.owner.engine.run(celery.prune)
        full.owner.engine.run(dramatiq.prune)

    assert full.run("select task_id from pgqrs.celery_waiters") == [("1",)]
    assert full.run("select key from pgqrs.dramatiq_waiters") == [("1",)]
