"""Settling a message while another transaction changes its row: what was extended is settled, what was lost is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import SyncHarness, draft, meanwhile, until

from pgqrs_core.marks import Marks
from pgqrs_core.operations import claim, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Harness

    from pgqrs_core.effects import Op
    from pgqrs_core.messages import Lease, Queue


def extend(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.extend(queue, leases, 60.0))


def nack(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.nack(queue, [settle.Failure(lease, 60.0, {"type": "E"}) for lease in leases]))


def bury(queue: Queue, leases: list[Lease]) -> Op[Any]:
    return (yield from settle.nack(queue, [settle.Failure(lease, bury=True) for lease in leases]))


def replace(queue: Queue, leases: list[Lease]) -> Op[Any]:
    answers = []
    for lease in leases:
        answers.append((yield from settle.replace(queue, lease, draft(b"new"))))  # noqa: PERF401
    return answers


SETTLERS: dict[str, Callable[[Queue, list[Lease]], Op[Any]]] = {
    "ack": settle.ack,
    "archive": settle.archive,
    "release": settle.release,
    "nack": nack,
    "bury": bury,
    "extend": extend,
    "replace": replace,
}
#: What a settled message leaves of itself: its lane, if it is still there, and whether it is archived.
LEFT = {
    "ack": (None, False),
    "archive": (None, True),
    "release": (-1, False),
    "nack": (-1, False),
    "bury": (-100, False),
    "extend": (0, False),
    "replace": (-1, False),
}


def take_over(queue: Queue, leases: list[Lease]) -> Op[Any]:
    """Claim as another consumer, after the lease has run out."""
    return (yield from claim.claim(queue, Marks(), limit=len(leases), lease=60.0))


#: What another transaction does with the row, and whether its consumer still holds it afterwards.
RIVALS: dict[str, tuple[Callable[[Queue, list[Lease]], Op[Any]], bool]] = {
    "extended": (extend, True),
    "taken over": (take_over, False),
    "released": (settle.release, False),
    "acked": (settle.ack, False),
}


@pytest.fixture
def rival(harness: Harness) -> Iterator[SyncHarness]:
    """Another process."""
    other = SyncHarness(harness.dsn)
    yield other
    other.close()


@pytest.mark.parametrize("beside", RIVALS)
@pytest.mark.parametrize("name", SETTLERS)
def test_a_message_is_settled_if_and_only_if_it_is_still_held_when_the_other_is_done(
    harness: Harness, rival: SyncHarness, name: str, beside: str
) -> None:
    queue = harness.create("busy", archive=True)
    ids = harness.send(b"1", b"2", b"3", queue="busy")
    found = harness.take(queue="busy")
    contended = found[1].lease
    op, is_held = RIVALS[beside]
    if beside == "taken over":
        harness.ask(f"update pgqrs.q_busy set lease_until = 'epoch' where message_id = {ids[1]}")
    answers: list[Any] = []
    with psycopg.connect(harness.dsn) as connection:
        rival.run_in(connection, op, queue, [contended])
        with meanwhile(
            lambda: answers.extend(harness.on("busy", SETTLERS[name], [item.lease for item in reversed(found)]))
        ):
            try:
                until(lambda: harness.ask("select 1 from pg_locks where not granted"), "it waits for the row")
            finally:
                connection.commit()

    kept = [answer not in (False, "lost") for answer in answers]
    assert kept == [True, is_held, True]
    lanes = dict(harness.ask("select message_id, lane from pgqrs.q_busy"))
    archived = {row[0] for row in harness.ask("select message_id from pgqrs.a_busy")}
    settled = [ids[0], ids[2], *([ids[1]] if is_held else [])]
    assert {number: (lanes.get(number), number in archived) for number in settled} == dict.fromkeys(settled, LEFT[name])
    if not is_held:
        token = harness.ask(f"select lane, lease_token from pgqrs.q_busy where message_id = {ids[1]}")
        assert (
            token
            == {
                "taken over": [(0, token[0][1] if token else None)],
                "released": [(-1, 0)],
                "acked": [],
            }[beside]
        )
        assert contended.token not in [row[1] for row in token]


@pytest.mark.parametrize("name", SETTLERS)
def test_a_message_that_was_extended_again_and_again_is_settled(harness: Harness, name: str) -> None:
    harness.create("busy", archive=True)
    harness.send(*[b"x"] * 20, queue="busy")
    leases = [item.lease for item in harness.take(20, queue="busy")]
    for part in (leases, leases[::2], leases[::3]):
        assert all(harness.on("busy", extend, part))

    answers = harness.on("busy", SETTLERS[name], leases)

    assert all(answer not in (False, "lost") for answer in answers)


@pytest.mark.parametrize("name", SETTLERS)
def test_a_table_that_was_written_anew_does_not_lose_its_leases(harness: Harness, name: str) -> None:
    harness.create("busy", archive=True)
    harness.send(*[b"x"] * 300, queue="busy")
    harness.on("busy", settle.ack, [item.lease for item in harness.take(200, queue="busy")])
    leases = [item.lease for item in harness.take(100, queue="busy")]
    harness.ask("vacuum full pgqrs.q_busy")

    answers = harness.on("busy", SETTLERS[name], leases)

    assert [answer not in (False, "lost") for answer in answers] == [True] * 100


def test_the_place_of_a_message_that_went_is_safe_to_ask_for(harness: Harness) -> None:
    """Another message lies there by now, held by the same consumer."""
    harness.send(b"first")
    (first,) = harness.take()
    harness.on("jobs", settle.ack, [first.lease])
    harness.ask("vacuum pgqrs.q_jobs")
    places = []
    for _ in range(20):
        harness.send(b"second")
        (second,) = harness.take()
        places.append(second.place)
        if second.place == first.place:
            break

    assert second.place == first.place, places
    assert harness.on("jobs", settle.ack, [first.lease]) == [False]
    assert harness.on("jobs", settle.ack, [second.lease]) == [True]
