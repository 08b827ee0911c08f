"""The checker, checked: by histories written by hand, and by bugs put into the engine of running processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgqrs_native import Client

from pgqrs_core.engine import Engine
from pgqrs_core.errors import QueueNotFound, SchemaError
from pgqrs_core.marks import Marks
from pgqrs_core.operations import claim
from pgqrs_core.sql import Query, queries

from .actors.options import QUEUES
from .broken import BUGS
from .crowd import Crowd, ask, until
from .history import check, read


def sound() -> list[dict[str, Any]]:
    """A history in which all is well: one message of each fate."""

    def claimed(key: str, number: int, token: int, attempt: int, at: float) -> dict[str, Any]:
        return {
            "op": "claimed",
            "key": key,
            "id": number,
            "token": token,
            "attempt": attempt,
            "lane": 0,
            "lease": 1.0,
            "began": at,
            "ended": at + 0.01,
        }

    def settled(what: str, number: int, token: int, at: float, *, ok: bool = True) -> list[dict[str, Any]]:
        asked = {"what": what, "lane": 0, "id": number, "token": token, "began": at}
        return [{"op": "settling", **asked}, {"op": "settled", **asked, "ok": ok, "ended": at + 0.01}]

    def handled(key: str, token: int, attempt: int, at: float) -> list[dict[str, Any]]:
        run = {"key": key, "attempt": attempt, "token": token}
        return [{"op": "started", **run, "at": at}, {"op": "finished", **run, "at": at + 0.02}]

    sends = [
        {"op": op, "key": key, "at": place / 100 - 1 + later}
        for op, later in (("sending", 0.0), ("sent", 0.005))
        for place, key in enumerate(["a", "b", "c", "d", "e", "f", "f/1"])
    ]
    return [
        *sends,
        {"op": "sending", "key": "never", "at": -0.5},
        {"op": "aborted", "key": "never"},
        claimed("a", 1, 11, 1, 0.0),
        *settled("ack", 1, 11, 0.1),
        claimed("b", 2, 21, 1, 0.0),
        *settled("nack", 2, 21, 0.1),
        claimed("b", 2, 22, 2, 0.2),
        *settled("archive", 2, 22, 0.3),
        claimed("c", 3, 31, 1, 0.0),
        claimed("c", 3, 32, 2, 1.5),
        *settled("ack", 3, 31, 1.6, ok=False),
        *settled("ack", 3, 32, 1.7),
        claimed("d", 4, 41, 1, 0.0),
        *settled("release", 4, 41, 0.1),
        claimed("d", 4, 42, 1, 0.2),
        {**claimed("f", 6, 61, 1, 0.0), "handled": True},
        handled("f", 61, 1, 0.02)[0],
        *settled("replace", 6, 61, 0.1),
        {**claimed("f/1", 7, 71, 1, 0.2), "handled": True},
        *handled("f/1", 71, 1, 0.22),
        *settled("ack", 7, 71, 0.3),
    ]


LEFT = ["d", "e"]


def changed(**wanted: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Change the claims or answers with this token."""
    token, op = wanted.pop("token"), wanted.pop("op")

    def change(history: list[dict[str, Any]]) -> None:
        found = [event for event in history if event["op"] == op and event["token"] == token]
        assert found
        for event in found:
            event.update(wanted)

    return change


def without(op: str, token: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(history: list[dict[str, Any]]) -> None:
        history[:] = [event for event in history if not (event["op"] == op and event.get("token") == token)]

    return change


def again(op: str, of: int, **fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Let something happen a second time, with a difference."""

    def change(history: list[dict[str, Any]]) -> None:
        history += [{**event, **fields} for event in history if event["op"] == op and event["token"] == of]

    return change


def both(*changes: Callable[[list[dict[str, Any]]], None]) -> Callable[[list[dict[str, Any]]], None]:
    def change(history: list[dict[str, Any]]) -> None:
        for one in changes:
            one(history)

    return change


class TestChecker:
    def test_it_finds_nothing_wrong_with_a_sound_history(self) -> None:
        assert check(sound(), LEFT) == []

    @pytest.mark.parametrize(
        ("verdict", "change", "left"),
        [
            ("LOST e", lambda _: None, ["d"]),
            ("LOST a", changed(op="settled", token=11, ok=False), LEFT),
            ("UNEXPECTED z", lambda _: None, [*LEFT, "z"]),
            ("PHANTOM never", lambda _: None, [*LEFT, "never"]),
            ("STORED TWICE e", lambda _: None, [*LEFT, "e"]),
            ("STORED TWICE b", changed(op="claimed", token=22, id=9), [*LEFT, "b"]),
            ("DOUBLED c", changed(op="claimed", token=32, began=0.5, ended=0.6), LEFT),
            ("DOUBLED b", both(without("settling", 21), without("settled", 21)), LEFT),
            ("STALE LEASE ACCEPTED c", changed(op="settled", token=31, ok=True), LEFT),
            ("SETTLED TWICE a", again("settled", 11, what="release"), LEFT),
            ("RESURRECTED a", lambda _: None, [*LEFT, "a"]),
            ("RESURRECTED a", again("claimed", 11, token=12, attempt=2, began=5.0, ended=5.1), LEFT),
            ("ATTEMPTS c", changed(op="claimed", token=32, attempt=1), LEFT),
            ("ATTEMPTS", changed(op="claimed", token=32, attempt=3), LEFT),
            ("ATTEMPTS", changed(op="claimed", token=42, attempt=2), LEFT),
            ("LOST f/1", both(without("settling", 71), without("settled", 71)), LEFT),
            ("RESURRECTED f", again("claimed", 61, token=62, attempt=2, began=5.0, ended=5.1), LEFT),
            ("UNHANDLED f/1", without("finished", 71), LEFT),
            ("UNHANDLED f/1", changed(op="finished", token=71, at=0.4), LEFT),
            ("RUN TWICE f/1", again("started", 71, at=0.25), LEFT),
        ],
        ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
    )
    def test_it_finds_what_is_wrong_with_a_broken_one(
        self, verdict: str, change: Callable[[list[dict[str, Any]]], None], left: list[str]
    ) -> None:
        history = sound()
        change(history)

        found = check(history, left)

        assert any(line.startswith(verdict) for line in found), found

    @pytest.mark.parametrize(
        ("change", "left"),
        [
            pytest.param(without("settled", 22), LEFT, id="an ack whose answer it did not live to see"),
            pytest.param(
                both(
                    without("settling", 32),
                    without("settled", 32),
                    again("claimed", 32, token=33, attempt=3, began=9.0, ended=9.1),
                ),
                [*LEFT, "c"],
                id="a lease that it took with it",
            ),
        ],
    )
    def test_it_allows_for_what_the_dead_did_not_do(
        self, change: Callable[[list[dict[str, Any]]], None], left: list[str]
    ) -> None:
        history = sound()
        change(history)

        assert check(history, left) == []

    def test_it_allows_for_claims_that_the_dead_did_not_note(self) -> None:
        history = sound()
        changed(op="claimed", token=32, attempt=3)(history)

        assert check([*history, {"op": "unnoted", "claims": 1}], LEFT) == []

    def test_a_claim_whose_answer_was_late_is_no_second_delivery(self) -> None:
        history = sound()
        # The process stood still between its claim and its note, for longer than its lease.
        changed(op="claimed", token=31, ended=1.55)(history)

        assert check(history, LEFT) == []

    def test_a_line_that_was_cut_off_is_no_event(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(json.dumps({"op": "sent", "key": "a"}) + '\n{"op": "se')

        assert read(tmp_path) == [{"op": "sent", "key": "a"}]


#: Workers that hold much for long, stand still beyond their leases, and lose their connections meanwhile.
CELERY: dict[str, Any] = {"adapter": "celery", "disturbed": True}
DRAMATIQ: dict[str, Any] = {"adapter": "dramatiq", "disturbed": True}

#: What each bug looks like to the checker, and how its crowd must be to show it.
CAUGHT: dict[str, tuple[set[str], dict[str, Any]]] = {
    "ack without fence": ({"STALE LEASE ACCEPTED", "SETTLED TWICE"}, {}),
    "nack without fence": ({"STALE LEASE ACCEPTED", "SETTLED TWICE", "DOUBLED"}, {}),
    "claim without a lock": ({"DOUBLED"}, {}),
    "claim that ignores leases": ({"DOUBLED"}, {}),
    "attempt not counted": ({"ATTEMPTS"}, {}),
    "attempt counted twice": ({"ATTEMPTS"}, {}),
    "release that is charged": ({"ATTEMPTS"}, {}),
    "lease that ends at once": ({"DOUBLED"}, {}),
    "claim by the youngest": ({"ORDER"}, {"plain": True, "consumers": 1}),
    "mark that advances too early": ({"STUCK"}, {"slow": 0.0}),
    "wake-up lost without polling": ({"STUCK"}, {"plain": True, "wait": 60.0}),
    "ack that does nothing": ({"RESURRECTED"}, {}),
    "nack that deletes": ({"LOST"}, {}),
    "extension that does nothing": ({"DOUBLED"}, {}),
    "enqueue outside the transaction": ({"PHANTOM"}, {}),
    "ack of what is given back": ({"UNHANDLED"}, CELERY),
    "retry that is not stored": ({"LOST"}, DRAMATIQ),
}

#: Bugs in the engine that are caught through the frameworks, too.
CAUGHT_THROUGH: list[tuple[str, dict[str, Any]]] = [
    # Slow enough for a lease to be overtaken while somebody works on.
    (bug, {**options, "slow": 0.4})
    for options in (CELERY, DRAMATIQ)
    for bug in (
        "ack without fence",
        "claim that ignores leases",
        "attempt counted twice",
        "extension that does nothing",
        "enqueue outside the transaction",
    )
]


def run_crowd(
    crowd: Crowd,
    *,
    bug: str = "",
    adapter: str = "native",
    consumers: int = 2,
    plain: bool = False,
    wait: float = 0.05,
    slow: float = 0.2,
    disturbed: bool = False,
    limit: float = 12,
) -> set[str]:
    """Return the kinds of what the checker finds once the queue is drained, or after ``limit`` seconds."""
    pause = 0.02 if wait > 1 else 0.002
    crowd.options.update(bug=bug, adapter=adapter, plain=plain)
    for _ in range(2 if consumers > 1 else 1):
        crowd.start("producer", count=150, pause=pause)
    for _ in range(consumers):
        crowd.start("consumer", wait=wait, lease=0.3, slow=slow)
    crowd.release()
    try:
        if disturbed:
            disturb(crowd)
        found = crowd.finish_within(limit, alone=consumers == 1)
    finally:
        crowd.close()
    return {line.partition(":")[0].rstrip("0123456789-/").removesuffix(" producer") for line in found}


def disturb(crowd: Crowd) -> None:
    """Let each consumer in turn stand still for longer than its lease, and break off all connections."""
    crowd.flow(20)
    for one in crowd.of("consumer"):
        one.stop()
        time.sleep(1.3)
        one.go_on()
        break_off = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        ask(crowd.direct, f"{break_off} and pid <> pg_backend_pid()")


def test_every_bug_is_expected_to_be_caught() -> None:
    assert CAUGHT.keys() == BUGS.keys() - {""}


@pytest.mark.faults
@pytest.mark.parametrize("bug", CAUGHT)
def test_a_bug_in_the_engine_is_caught(bug: str, gather: Callable[..., Crowd], pgqrs_dsn: str) -> None:
    expected, options = CAUGHT[bug]

    assert is_caught(bug, expected, options, gather, pgqrs_dsn)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("bug", "options"), CAUGHT_THROUGH, ids=[f"{bug}-{options['adapter']}" for bug, options in CAUGHT_THROUGH]
)
def test_a_bug_in_the_engine_is_caught_through_workers(
    bug: str, options: dict[str, Any], gather: Callable[..., Crowd], pgqrs_dsn: str
) -> None:
    assert is_caught(bug, CAUGHT[bug][0], options, gather, pgqrs_dsn)


def is_caught(bug: str, expected: set[str], options: dict[str, Any], gather: Callable[..., Crowd], dsn: str) -> bool:
    def try_it() -> bool:
        with Client(dsn) as client:
            for name in set(QUEUES.values()):
                with suppress(QueueNotFound, SchemaError):
                    client.admin.delete_queue(name)
        return bool(run_crowd(gather(dsn), bug=bug, **options) & expected)

    # It takes a race to show some of them, and not every crowd on a busy machine has one.
    return any(try_it() for _ in range(6))


def test_a_claim_that_does_not_skip_locked_rows_waits_and_doubles_nothing(
    pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So this is no bug for the checker to find: what makes a claim exclusive is the lock.

    Once the first claim is committed, PostgreSQL asks anew whether its row is to be had by the second, and it is not.
    """
    text = queries["claim"].text.replace(" for update skip locked", " for update")
    waiting = Query("claim", text, queries["claim"].flags)
    monkeypatch.setattr(claim, "queries", {**queries, "claim": waiting})
    with Client(pgqrs_dsn) as client:
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.batch_enqueue("jobs", [b"a", b"b", b"c"])
    with Engine(pgqrs_dsn) as engine, psycopg.connect(pgqrs_dsn) as one, psycopg.connect(pgqrs_dsn) as two:
        queue = engine.queue("jobs")

        def take(connection: psycopg.Connection[Any], limit: int) -> list[bytes]:
            found = engine.run_in(connection, claim.claim, queue, Marks(), limit=limit, lease=60.0)
            return [delivery.body for delivery in found]

        with ThreadPoolExecutor(1) as pool:
            assert take(one, 2) == [b"a", b"b"]
            second = pool.submit(take, two, 3)
            waits = "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
            until(lambda: ask(pgqrs_dsn, waits, two.info.backend_pid), "the second claim waits")
            one.commit()

            assert second.result() == [b"c"]


@pytest.mark.faults
@pytest.mark.parametrize(
    "options",
    [{}, {"plain": True, "consumers": 1}, CELERY, DRAMATIQ],
    ids=["a crowd", "one consumer", "Celery's workers", "Dramatiq's workers"],
)
def test_without_a_bug_nothing_is_found(options: dict[str, Any], crowd: Crowd) -> None:
    assert run_crowd(crowd, limit=60, **options) == set()
