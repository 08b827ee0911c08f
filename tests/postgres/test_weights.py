"""Large batches are cut by bytes: several statements, one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import ask, draft

from pgqrs_core import weights
from pgqrs_core.errors import InvalidArgument, ServerError
from pgqrs_core.operations import enqueue, schema
from pgqrs_core.weights import in_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Harness


@pytest.fixture
def harness(open_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> Harness:
    """An engine whose statements hold a thousand bytes of messages."""
    monkeypatch.setattr(weights, "PART_BYTES", 1_000)
    harness = open_harness()
    harness.transact(schema.install, "pgqrs")
    harness.create("jobs")
    return harness


def test_what_is_too_large_for_a_statement_is_stored_in_its_order(harness: Harness) -> None:
    bodies = [b"%03d" % number * 100 for number in range(20)]

    ids = harness.send(*bodies)

    assert ids == sorted(ids)
    assert harness.bodies(20) == bodies


def test_all_or_nothing_is_stored(harness: Harness) -> None:
    harness.ask(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin if new.body = 'last' then raise exception 'refused'; end if; return new; end $$; "
        "create trigger refuse before insert on pgqrs.q_jobs for each row execute function refuse()"
    )

    with pytest.raises(ServerError, match="refused"):
        harness.send(*[b"x" * 400] * 10, b"last")

    assert harness.ask("select count(*) from pgqrs.q_jobs") == [(0,)]


def test_keys_hold_across_the_statements_of_one_batch(harness: Harness) -> None:
    drafts = [draft(b"%d" % n * 400, idempotency_key=None if n % 3 == 0 else f"key {n % 4}") for n in range(12)]

    ids = harness.enqueue(*drafts)

    by_key: dict[Any, set[int]] = {}
    for one, number in zip(drafts, ids):
        by_key.setdefault(one.idempotency_key, set()).add(number)
    assert len(by_key.pop(None)) == 4
    assert all(len(numbers) == 1 for numbers in by_key.values())
    assert harness.ask("select count(*) from pgqrs.q_jobs") == [(4 + len(by_key),)]


def test_in_the_callers_transaction_it_is_the_callers_to_commit(harness: Harness) -> None:
    connection = harness.do(
        psycopg.connect if harness.kind == "sync" else psycopg.AsyncConnection.connect,
        harness.dsn,
    )
    harness.run_in(connection, enqueue.enqueue, harness.queue(), [draft(b"x" * 400) for _ in range(10)])
    assert harness.ask("select count(*) from pgqrs.q_jobs") == [(0,)]

    harness.do(connection.commit)

    assert harness.ask("select count(*) from pgqrs.q_jobs") == [(10,)]
    harness.do(connection.close)


def test_large_headers_count_too() -> None:
    shared = {"h": "x" * 900_000}
    alike = [draft(b"x", headers=shared) for _ in range(200)]
    own = [draft(b"x", headers=dict(shared)) for _ in range(200)]

    for drafts in (alike, own):
        parts = in_parts(drafts)
        assert [one for part in parts for one in part] == drafts
        assert len(parts) == 3


def test_small_batches_are_one_statement() -> None:
    assert len(in_parts([draft(b"x" * 6_000) for _ in range(10_000)])) == 1
    assert len(in_parts([draft(b"x" * 7_000) for _ in range(10_000)])) == 2


def test_what_postgresql_cannot_take_is_refused_by_its_size(
    open_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a body of a gigabyte, with which the server ends the session unread."""
    from pgqrs_core.drivers import faults

    harness = open_harness()
    harness.transact(schema.install, "pgqrs")
    harness.create("jobs")
    monkeypatch.setattr(faults, "MOST_BYTES", 500_000)
    ask(harness.dsn, "alter table pgqrs.q_jobs add check (length(body) < 1000)")

    with pytest.raises(InvalidArgument, match=r"statement must be below 434,464 bytes, not 900,0.. bytes"):
        harness.send(b"x" * 900_000)
