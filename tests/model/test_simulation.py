"""Hundreds of actors interleaved without I/O, thousands of schedules: nothing is lost, doubled, hidden or slept over.

A schedule that fails is repeated by its number: ``python tests/model/schedules.py NUMBER``.
"""

from __future__ import annotations

import logging
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from fake import FakeServer
from judge import JudgedMarks, Violation
from schedules import play_schedule
from table import DEAD

from pgqrs_core import interest, marks, watch
from pgqrs_core.errors import EnqueueUnknown
from pgqrs_core.operations import claim, enqueue, settle, settle_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Seconds that the normal run spends on schedules; a quick machine plays more of them.
BUDGET = float(os.environ.get("PGQRS_SCHEDULES", "20"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Bells that cannot be rung are said in the log, with a traceback each."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_schedules_that_once_failed_do_not_fail_again() -> None:
    """208: marks passed a message whose transaction had drawn its id and not begun to be seen."""
    play_all((208, 354, 634, 2317, 3116, 3268))


def test_no_schedule_breaks_a_promise() -> None:
    """Other ones at each run; the number of one that fails is in its message."""
    first = random.SystemRandom().randrange(1_000_000_000)
    deadline = time.monotonic() + BUDGET
    delivered = played = 0
    while time.monotonic() < deadline:
        delivered += play_schedule(first + played).delivered.total()
        played += 1
    assert played > 50
    assert delivered > 20 * played


def test_hundreds_of_actors_at_once() -> None:
    assert play_schedule(1, crowd=100).delivered.total() > 2000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_schedules() -> None:
    play_all(range(20_000))


def test_a_number_repeats_its_schedule() -> None:
    first, again, other = (play_schedule(seed) for seed in (7, 7, 8))

    assert first.delivered == again.delivered
    assert first.server.fates == again.server.fates
    assert first.world.now == again.world.now
    assert first.delivered != other.delivered


def play_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        play_schedule(seed)


# Seeded bugs: each must be caught, and named.


def marks_go_early(patch: pytest.MonkeyPatch) -> None:
    """A claim's ids become marks although transactions are open."""
    patch.setattr(marks, "LAG", 0.0)


def marks_trust_the_claims_own_snapshot(patch: pytest.MonkeyPatch) -> None:
    """As they did: those who had drawn an id and no number were forgotten."""
    original = marks.Marks.finish

    def finish(self: Any, seen: Any, *, full: bool) -> None:
        original(self, seen, full=full)
        if seen is not None and self._pending:
            self._pending[-1].newest = seen.newest

    patch.setattr(marks.Marks, "finish", finish)


def marks_hear_of_no_writers(patch: pytest.MonkeyPatch) -> None:
    """Whoever holds a mark back is believed not to write to the queue."""
    patch.setattr(FakeServer, "_oldest_writer", lambda self, *_: [(self.next_xid,)])


def marks_go_too_far(patch: pytest.MonkeyPatch) -> None:
    original = claim.highest_ids
    patch.setattr(claim, "highest_ids", lambda places: {lane: top + 2 for lane, top in original(list(places)).items()})


def nobody_rescans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(marks, "RESCAN", 1e9)
    patch.setattr(marks, "CHEAP", 0.0)


def nobody_polls(patch: pytest.MonkeyPatch) -> None:
    """Notifications alone wake consumers, and some are lost."""
    patch.setattr(watch, "POLL", 1e9)
    patch.setattr(watch, "QUICK", 1e9)
    patch.setattr(interest, "QUICK", 1e9)


def answers_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    """Two leases on one message in one statement, whose answer names the message only."""
    for module in (settle, settle_many):
        patch.setattr(module, "in_rounds", lambda leases: [sorted(set(leases), key=settle_many._key)])


def a_claim_forgets_its_last(patch: pytest.MonkeyPatch) -> None:
    original = claim.claim

    def forgetful(*arguments: Any, **how: Any) -> Any:
        found = yield from original(*arguments, **how)
        return found[:-1] or found

    patch.setattr(claim, "claim", forgetful)


def the_unknown_is_taken_for_stored(patch: pytest.MonkeyPatch) -> None:
    """An enqueue whose connection broke says that all is well."""
    original = enqueue.enqueue

    def hopeful(queue: Any, drafts: Any, doorbell: Any = None) -> Any:
        try:
            return (yield from original(queue, drafts, doorbell))
        except EnqueueUnknown:
            return [10**9 + place for place, _ in enumerate(drafts)]

    patch.setattr("actors.enqueue", hopeful)


def keys_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("table.Table.known", lambda self, key: None)


def leases_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """Whoever had a lease may use it, whatever became of it."""
    patch.setattr("table.Table.held", lambda self, lease: self.rows.get(lease[1]))


def claims_take_what_others_hold(patch: pytest.MonkeyPatch) -> None:
    def is_free(self: Any, row: Any) -> bool:
        return not row.hidden and row.lane != DEAD and (row.due_at is None or row.due_at <= self.now)

    patch.setattr("table.Table.is_free", is_free)


def rolled_back_messages_are_seen(patch: pytest.MonkeyPatch) -> None:
    original = FakeServer._insert

    def insert(self: Any, *arguments: Any) -> Any:
        row = original(self, *arguments)
        row.hidden = False
        return row

    patch.setattr(FakeServer, "_insert", insert)


def a_nack_loses_its_message(patch: pytest.MonkeyPatch) -> None:
    def nack(self: Any, row: Any, *_: Any, **__: Any) -> str:
        del self.rows[row.id]
        return "nacked"

    patch.setattr("table.Table.nack", nack)


BUGS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    marks_go_early: "a mark passed",
    marks_trust_the_claims_own_snapshot: "a mark passed",
    marks_hear_of_no_writers: "a mark passed",
    marks_go_too_far: "a mark passed|overtaken|stuck|came after",
    nobody_rescans: "a rescan was due|stuck",
    nobody_polls: "beside a sleeping consumer",
    answers_are_mixed_up: "confirmed and not done",
    a_claim_forgets_its_last: "neither delivered nor buried|was delivered at attempt",
    the_unknown_is_taken_for_stored: "acknowledged and is not stored|answered with",
    keys_are_not_looked_at: "answered with|under one key",
    leases_are_not_fenced: "acked twice|done and denied|neither|never committed|confirmed|at attempt",
    claims_take_what_others_hold: "while somebody held",
    rolled_back_messages_are_seen: "never committed|a mark passed",
    a_nack_loses_its_message: "is lost",
}


@pytest.mark.parametrize(("bug", "verdict"), BUGS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_seeded_bug_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)

    with pytest.raises(Violation, match=verdict):
        play_all([208, *range(2000)])


def test_the_judge_looks_at_the_marks_that_consumers_use() -> None:
    assert issubclass(JudgedMarks, marks.Marks)
