"""What a producer may not add: rows that look dead, absurd times, ids and keys of its choice, what is too large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from .estate import Estate

#: Rows that no producer may add, as columns and values.
HOSTILE: dict[str, dict[str, str]] = {
    "dead": {"lane": "-100", "due_at": "now()"},
    "an unknown lane": {"lane": "10"},
    "an unknown delayed lane": {"lane": "-11", "due_at": "now()"},
    "the lowest lane": {"lane": "-32768", "due_at": "now()"},
    "another lane than its priority": {"lane": "0", "priority": "5"},
    "an unknown priority": {"lane": "99", "priority": "99"},
    "a priority that dies when it is delayed": {"lane": "-100", "priority": "99", "due_at": "now()"},
    "delayed without a time": {"lane": "-1"},
    "ready with a time": {"lane": "0", "due_at": "now()"},
    "due never": {"lane": "-1", "due_at": "'infinity'"},
    "due always": {"lane": "-1", "due_at": "'-infinity'"},
    "due in the year 20000": {"lane": "-1", "due_at": "'20000-01-01'"},
    "due before Christ": {"lane": "-1", "due_at": "'0044-03-15 BC'"},
    "expiring never": {"lane": "0", "expires_at": "'infinity'"},
    "expiring in the year 20000": {"lane": "0", "expires_at": "'20000-01-01'"},
    "expired before Christ": {"lane": "0", "expires_at": "'4713-01-01 BC'"},
    "a long type": {"lane": "0", "content_type": "repeat('x', 2000)"},
    "large headers": {"lane": "0", "headers": """json_build_object('x', repeat('x', 2000000))"""},
    "an id": {"lane": "0", "message_id": "7"},
    "an id near the end": {"lane": "0", "message_id": "9223372036854775807"},
    "attempts": {"lane": "0", "attempt": "1"},
    "a lease": {"lane": "0", "lease_until": "'infinity'"},
}
SOUND: dict[str, dict[str, str]] = {
    "ready": {"lane": "9", "priority": "9"},
    "delayed": {"lane": "-10", "priority": "9", "due_at": "now() + interval '1 year'"},
    "mortal": {"lane": "0", "expires_at": "now() + interval '1 second'"},
    "late": {"lane": "-1", "due_at": "'9999-12-31 23:59:59Z'"},
}
#: Arguments of the function that stores messages with keys, each in place of a good one.
ARGUMENTS: dict[str, dict[str, str]] = {
    "a priority": {"priorities": "{99}"},
    "a negative priority": {"priorities": "{-1}"},
    "no priority": {"priorities": "{NULL}"},
    "due never": {"ats": "{infinity}"},
    "due before Christ": {"ats": '{"0044-03-15 BC"}'},
    "delayed for ever": {"delays": "{Infinity}"},
    "delayed by no number": {"delays": "{NaN}"},
    "a negative time to live": {"ttls": "{-1}"},
    "an endless time to live": {"ttls": "{Infinity}"},
    "no body": {"bodies": "{NULL}"},
    "headers that are none": {"headers": "{nonsense}"},
    "a long type": {"content_types": "{" + "x" * 2000 + "}"},
}
GOOD = {
    "priorities": "{0}",
    "ats": "{NULL}",
    "delays": "{NULL}",
    "ttls": "{NULL}",
    "content_types": "{text/plain}",
    "headers": "{NULL}",
    "bodies": r'{"\\x78"}',
    "key_hashes": '{"\\\\x' + "00" * 32 + '"}',
}


@pytest.fixture(scope="module")
def producer(estate: Estate) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(estate.url("producer"), autocommit=True) as connection:
        yield connection


def insert(connection: psycopg.Connection[Any], row: dict[str, str]) -> Any:
    columns = {"priority": row["lane"] if row["lane"] in "0123456789" else "0", "body": "''", **row}
    override = "overriding system value" if "message_id" in row else ""
    statement = f"insert into pgqrs.q_jobs ({', '.join(columns)}) {override} values ({', '.join(columns.values())})"
    return connection.execute(f"{statement} returning message_id".encode()).fetchone()


def call(connection: psycopg.Connection[Any], **arguments: str) -> Any:
    given = {**GOOD, **arguments}
    holders = ", ".join(f"{name} => %({name})s" for name in given)
    return connection.execute(f"select * from pgqrs.e_jobs({holders})".encode(), given).fetchall()


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_row_is_refused(estate: Estate, producer: psycopg.Connection[Any], row: dict[str, str]) -> None:
    with pytest.raises((errors.InsufficientPrivilege, errors.UndefinedFunction)):
        insert(producer, row)

    assert estate.run("select count(*) from pgqrs.q_jobs") == [(0,)]


@pytest.mark.parametrize("row", SOUND.values(), ids=SOUND)
def test_a_sound_row_is_taken(estate: Estate, producer: psycopg.Connection[Any], row: dict[str, str]) -> None:
    assert insert(producer, row) is not None

    estate.run("delete from pgqrs.q_jobs")


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_the_function_for_keys_refuses_what_the_table_does(
    estate: Estate, producer: psycopg.Connection[Any], arguments: dict[str, str]
) -> None:
    with pytest.raises((errors.CheckViolation, errors.NotNullViolation, errors.InvalidTextRepresentation)):
        call(producer, **arguments)

    assert estate.run("select count(*) from pgqrs.q_jobs") == [(0,)]
    assert estate.run("select count(*) from pgqrs.idempotency_keys") == [(0,)]


def test_a_body_is_not_larger_than_a_queue_can_be_told_to_take(
    estate: Estate, producer: psycopg.Connection[Any]
) -> None:
    (rule,) = estate.run(
        "select pg_get_expr(polwithcheck, polrelid) from pg_policy "
        "where polrelid = 'pgqrs.q_jobs'::regclass and polcmd = 'a'"
    )[0]

    assert "octet_length(body) <= 268435456" in rule


class TestTheFunction:
    def test_it_is_of_no_use_without_the_right_on_this_queue(self, estate: Estate) -> None:
        estate.owner.admin.create_queue("private")
        estate.run("revoke all on function pgqrs.e_private from {}", estate.role("producer"))
        with psycopg.connect(estate.url("producer"), autocommit=True) as producer:
            call(producer)
            with pytest.raises(errors.InsufficientPrivilege):
                producer.execute("select pgqrs.e_private(null, null, null, null, null, null, null, null)")
        estate.run("delete from pgqrs.q_jobs")
        estate.run("delete from pgqrs.idempotency_keys")

    @pytest.mark.parametrize("duty", ["consumer", "observer"])
    def test_others_may_not_call_it(self, estate: Estate, duty: str) -> None:
        with psycopg.connect(estate.url(duty)) as connection, pytest.raises(errors.InsufficientPrivilege):
            call(connection)

    def test_what_the_caller_has_put_before_the_catalogue_is_not_called(self, estate: Estate) -> None:
        """It would be, with the rights of the owner of all tables."""
        own = f"{estate.prefix}_own"
        estate.run("create schema {}", own)
        estate.run("grant create, usage on schema {} to {}", own, estate.role("producer"))
        with psycopg.connect(estate.url("producer"), autocommit=True) as producer:
            producer.execute(
                f"create function {own}.statement_timestamp() returns timestamptz language plpgsql as "
                "$$ begin raise exception 'called as %', current_user; end $$".encode()
            )
            producer.execute(
                f"create function {own}.octet_length(bytea) returns int language plpgsql as "
                "$$ begin raise exception 'called as %', current_user; end $$".encode()
            )
            producer.execute(f"set search_path = {own}, pg_catalog, pg_temp".encode())

            assert len(call(producer)) == 1
        estate.run("drop schema {} cascade", own)
        estate.run("delete from pgqrs.q_jobs")
        estate.run("delete from pgqrs.idempotency_keys")


def test_a_key_of_another_cannot_be_read_or_changed(estate: Estate) -> None:
    sender, attacker = estate.client(estate.url("producer")), estate.client(estate.url("producer"))
    (first,) = [sender.producer.enqueue("jobs", 1, idempotency_key="invoice-ada@example.org")]
    with psycopg.connect(estate.url("producer"), autocommit=True) as connection:
        for statement in (
            "select * from pgqrs.idempotency_keys",
            "select message_id from pgqrs.idempotency_keys",
            "update pgqrs.idempotency_keys set expires_at = 'infinity'",
            "delete from pgqrs.idempotency_keys",
            "insert into pgqrs.idempotency_keys values (1, '', 1, 'infinity')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())

    assert attacker.producer.enqueue("jobs", 2, idempotency_key="invoice-ada@example.org") == first
    estate.run("delete from pgqrs.q_jobs")
    estate.run("delete from pgqrs.idempotency_keys")


@pytest.mark.parametrize("duty", ["consumer", "observer", "admin"])
def test_the_policies_hide_nothing_and_stop_nobody_else(estate: Estate, duty: str) -> None:
    estate.owner.producer.batch_enqueue("jobs", [1, 2, 3])
    with psycopg.connect(estate.url(duty)) as connection:
        assert connection.execute("select count(message_id) from pgqrs.q_jobs").fetchone() == (3,)
        if duty != "observer":
            assert connection.execute("update pgqrs.q_jobs set lane = -100, due_at = now()").rowcount == 3
            assert connection.execute("delete from pgqrs.q_jobs").rowcount == 3
        connection.rollback()
    estate.run("delete from pgqrs.q_jobs")
