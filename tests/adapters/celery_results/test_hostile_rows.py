"""Rows that other programs wrote: no result and no chord of ours is lost to them."""

from __future__ import annotations

import bz2
import lzma
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from celery import Celery, states
from celery.exceptions import ChordError
from pgqrs_celery.encoding import row_of
from pgqrs_celery.sql import MIGRATIONS, queries

from pgqrs_core.errors import DecodeError, InvalidArgument
from tests.support.versions import needs_celery_57

from .support import ask, request_of
from .test_chords import begin, finish

WAITER = "insert into pgqrs.celery_waiters (task_id, channel, until) values ('t', %s, now() + interval '1 hour')"
CHORD = "insert into pgqrs.celery_chords (group_id, {}) values ('g1', {}) on conflict (group_id) do update set {} = {}"


@pytest.fixture
def unchecked(app: Celery, pgqrs_dsn: str) -> str:
    """This test's database, without the rules of its tables."""
    app.backend.store_result("first", 1, states.SUCCESS)
    for row in ask(
        pgqrs_dsn,
        "select conname, conrelid::regclass::text as place from pg_constraint "
        "where contype = 'c' and connamespace = 'pgqrs'::regnamespace and conrelid <> 0",
    ):
        ask(pgqrs_dsn, f"alter table {row['place']} drop constraint {row['conname']}")
    return pgqrs_dsn


@pytest.mark.parametrize("channel", ["", "x" * 64, "pgqrs:celery:" + "0" * 60, "pgqrs:celery:", "other"])
def test_a_channel_of_another_form_is_refused(app: Celery, pgqrs_dsn: str, channel: str) -> None:
    app.backend.store_result("first", 1, states.SUCCESS)

    with pytest.raises(psycopg.errors.CheckViolation, match="celery_waiters_channel"):
        ask(pgqrs_dsn, WAITER, channel)


@pytest.mark.parametrize("channel", ["", "x" * 64, "pgqrs:celery:" + "0" * 60, "a" * 10_000])
def test_no_waiter_keeps_a_result_from_being_stored(app: Celery, unchecked: str, channel: str) -> None:
    ask(unchecked, "alter table pgqrs.celery_waiters drop constraint celery_waiters_pkey")
    ask(unchecked, WAITER, channel)

    app.backend.store_result("t", 42, states.SUCCESS)

    assert app.AsyncResult("t").get(timeout=10) == 42


def test_a_crowd_of_waiters_is_not_notified_one_by_one(app: Celery, pgqrs_dsn: str) -> None:
    app.backend.store_result("first", 1, states.SUCCESS)
    ask(
        pgqrs_dsn,
        "insert into pgqrs.celery_waiters (task_id, channel, until) "
        "select 't', 'pgqrs:celery:' || lpad(to_hex(n), 16, '0'), now() + '1 h' from generate_series(1, 2000) n",
    )

    with app.backend.store.transaction() as connection:
        text = psycopg.sql.SQL(queries["store_result"].text).format(schema=psycopg.sql.Identifier("pgqrs"))
        meta = {"status": states.SUCCESS, "result": 42, "date_done": None}
        notified = connection.execute(text, row_of(app.backend, "t", meta, None)).fetchall()

    assert len(notified) == 1000
    assert app.AsyncResult("t").get(timeout=10) == 42


@pytest.mark.parametrize("column", ["size", "added", "done"])
@pytest.mark.parametrize("number", [-(2**31), -1, 2**31 - 1])
def test_counts_that_no_chord_has_are_refused(app: Celery, pgqrs_dsn: str, column: str, number: int) -> None:
    app.backend.store_result("first", 1, states.SUCCESS)

    with pytest.raises(psycopg.errors.CheckViolation, match="celery_chords_counts"):
        ask(pgqrs_dsn, CHORD.format(column, number, column, number))


@pytest.mark.parametrize("column", ["size", "added", "done"])
@pytest.mark.parametrize("number", [-(2**31), 10**9, 2**31 - 1])
def test_no_count_of_a_chord_keeps_a_result_from_being_stored(
    app: Celery, unchecked: str, column: str, number: int
) -> None:
    begin(app, 3)
    ask(unchecked, CHORD.format(column, number, column, number))

    finish(app, 0)
    app.backend.add_to_chord("g1", None)

    assert app.AsyncResult("t0").get(timeout=10) == 0


@pytest.mark.parametrize("place", [2**31, -(2**40), "first", [1], 1.5])
def test_a_place_in_a_group_that_is_none_keeps_no_result_from_being_stored(app: Celery, place: Any) -> None:
    begin(app, 2)
    request = request_of(
        id="t0", group="g1", group_index=place, chord={"task": "total", "options": {}}, retries=2**40, task="add"
    )

    app.backend.mark_as_done("t0", 42, request)

    assert app.AsyncResult("t0").get(timeout=10) == 42


def test_the_id_of_a_task_is_no_longer_than_amqp_allows(app: Celery) -> None:
    with pytest.raises(InvalidArgument, match="at most 255 characters"):
        app.backend.store_result("x" * 256, 1, states.SUCCESS)
    app.backend.store_result("x" * 255, 1, states.SUCCESS)


def test_rows_from_before_the_rules_are_mended(
    open_app: Callable[..., Celery], unchecked: str, backend_url: str
) -> None:
    ask(unchecked, WAITER, "x" * 64)
    ask(unchecked, "insert into pgqrs.celery_chords (group_id, size, done) values ('bad', -1, 2147483647)")
    (script,) = [step for step in MIGRATIONS if step.version == 2]
    with psycopg.connect(unchecked, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL(script.blocks["shared"].text).format(schema=psycopg.sql.Identifier("pgqrs")))

    assert ask(unchecked, "select * from pgqrs.celery_waiters") == []
    (row,) = ask(unchecked, "select size, done from pgqrs.celery_chords where group_id = 'bad'")
    assert row == {"size": 0, "done": 10**9}


MEGABYTE = 1_048_576
PACKERS = {"application/x-gzip": zlib.compress, "application/x-bz2": bz2.compress, "application/x-lzma": lzma.compress}


@pytest.fixture(scope="module", params=PACKERS)
def bomb(request: pytest.FixtureRequest) -> bytes:
    """A result of 64 MB, as Celery compresses it."""
    body = b"[" + b"0," * (32 * MEGABYTE) + b"0]"
    return b"\0celery-compressed\0" + request.param.encode() + b"\0" + PACKERS[request.param](body)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 48 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("column", ["result", "children", "args", "kwargs", "stamps"])
def test_no_column_of_a_result_is_expanded_beyond_the_limit(
    app: Celery, pgqrs_dsn: str, bomb: bytes, column: str
) -> None:
    app.backend.store_result("t", 1, states.SUCCESS)
    ask(pgqrs_dsn, f"update pgqrs.celery_results set {column} = %s", bomb)
    app.backend._cache.clear()

    with little_memory(), pytest.raises(Exception, match="expands to more than 16,777,216 bytes"):
        app.AsyncResult("t").get(timeout=10)


def test_no_group_is_expanded_beyond_the_limit(app: Celery, pgqrs_dsn: str, bomb: bytes) -> None:
    app.GroupResult("g", [app.AsyncResult("one")]).save()
    ask(pgqrs_dsn, "update pgqrs.celery_groups set result = %s", bomb)

    with little_memory(), pytest.raises(DecodeError, match="expands to more than"):
        app.GroupResult.restore("g")


@pytest.mark.parametrize("what", ["part", "header"])
def test_nothing_of_a_chord_is_expanded_beyond_the_limit(
    open_app: Callable[..., Celery], pgqrs_dsn: str, bomb: bytes, what: str
) -> None:
    app = open_app(broker_url="memory://")
    begin(app, 2)
    finish(app, 0)
    if what == "part":
        ask(pgqrs_dsn, "update pgqrs.celery_chord_parts set result = %s", bomb)
    else:
        ask(pgqrs_dsn, "update pgqrs.celery_chords set header = %s, content_type = 'application/json'", bomb)

    with little_memory():
        finish(app, 1)

    with pytest.raises(ChordError, match="expands to more than"):
        app.AsyncResult("body").get(timeout=10)


def test_no_kept_body_is_expanded_beyond_the_limit(
    open_app: Callable[..., Celery], pgqrs_dsn: str, bomb: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = open_app(broker_url="memory://")
    app.backend.store_result("first", 1, states.SUCCESS)
    ask(
        pgqrs_dsn,
        "insert into pgqrs.celery_chords (group_id, size, done, body, body_type, claimed_until) "
        "values ('bomb', 1, 1, %s, 'application/json', now() - interval '1 second')",
        bomb,
    )

    with little_memory():
        assert app.backend.take_over_chords() == 0

    assert "expands to more than" in caplog.text


@needs_celery_57
def test_what_could_not_be_expanded_again_is_stored_as_it_is(open_app: Callable[..., Celery], pgqrs_dsn: str) -> None:
    app = open_app(result_compression="gzip", result_backend_transport_options={"max_result_bytes": 10_000})
    for name, value in (("small", "x" * 9_000), ("large", "x" * 11_000)):
        app.backend.store_result(name, value, states.SUCCESS)
        app.backend._cache.clear()
        assert app.AsyncResult(name).get(timeout=10) == value

    rows = ask(pgqrs_dsn, "select task_id, length(result) as size from pgqrs.celery_results")
    sizes = {row["task_id"]: row["size"] for row in rows}
    assert sizes["small"] < 1_000 < 11_000 < sizes["large"]
