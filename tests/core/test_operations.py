"""Every operation, answered by hand: what it asks the database for, and what it makes of the answers."""

from __future__ import annotations

import re
import struct
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqrs_core.arrays import ByteaArray
from pgqrs_core.doorbell import QUIET, Doorbell, channel_of
from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute, Wait
from pgqrs_core.errors import (
    ArchiveDisabled,
    BodyTooLarge,
    EnqueueUnknown,
    InvalidArgument,
    InvalidQueueName,
    QueueExists,
    QueueNotFound,
    QueuesFailed,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    SchemaTooOld,
    ServerError,
    Unavailable,
)
from pgqrs_core.events import Draft
from pgqrs_core.marks import Marks, Seen
from pgqrs_core.messages import CLAIM_LANES, DEAD_LANE, Delivery, Lease, QueueOptions, check_name
from pgqrs_core.operations import (
    archives,
    claim,
    dead,
    enqueue,
    maintenance,
    metrics,
    queues,
    schema,
    settle,
    settle_many,
    uninstall,
)
from pgqrs_core.sql import MIGRATIONS, Migration, Query, queries
from pgqrs_core.testing.by_hand import NOON, array, claimed_row, elements, ints, make_queue, play, queue_row, text_of

JOBS = make_queue()


class RecordingMarks(Marks):
    """Marks that remember what each claim told them."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Seen | None, bool]] = []

    def finish(self, seen: Seen | None, *, full: bool) -> None:
        self.told.append((seen, full))
        super().finish(seen, full=full)


class Bell(Doorbell):
    """A doorbell that always rings, and notes when it could not."""

    def __init__(self) -> None:
        super().__init__("pgqrs", clock=lambda: 100.0)
        self.failures = 0

    def may_ring(self, queue_id: int) -> bool:
        return True

    def failed(self) -> None:
        self.failures += 1


def draft(body: bytes = b"x", **fields: Any) -> Draft:
    return Draft("jobs", body, "text/plain", **fields)


def stored(*ids: int, waiting: bool = False) -> list[tuple[int, bool]]:
    """What an insert answers: the ids, and whether a consumer sleeps."""
    return [(number, waiting) for number in ids]


class TestClaim:
    def run(self, *rows: tuple[Any, ...], limit: int = 10, more: tuple[Any, ...] = (), **options: Any) -> Any:
        self.marks = RecordingMarks()
        return self.run_on(*rows, limit=limit, more=more, **options)

    def run_on(self, *rows: tuple[Any, ...], limit: int = 10, more: tuple[Any, ...] = (), **options: Any) -> Any:
        """Claim once more with the same marks."""
        op = claim.claim(make_queue(**options), self.marks, limit=limit, lease=30.0)
        return play(op, list(rows), *more)

    def test_it_returns_messages_by_priority_and_age_whatever_the_order_of_the_rows(self) -> None:
        rows = [
            claimed_row(9),
            claimed_row(3),
            claimed_row(8, lane=5),
            claimed_row(7, lane=-6),
            claimed_row(1, lane=-1),
        ]

        found = self.run(*rows).result

        assert [item.id for item in found] == [7, 8, 1, 3, 9]

    def test_it_asks_for_every_lane_from_its_mark(self) -> None:
        asked = self.run().params(0)

        assert ints(array(asked["lanes"])) == list(CLAIM_LANES)
        assert len(array(asked["marks"])) == len(CLAIM_LANES)
        assert (asked["limit"], asked["lease"]) == (10, 30.0)

    def test_each_claim_has_a_token_of_its_own_that_is_eight_bytes_wide(self) -> None:
        tokens = [self.run().params(0)["token"] for _ in range(50)]

        assert len(set(tokens)) == 50
        assert all(2**62 <= token < 2**63 for token in tokens)

    def test_a_delivery_carries_what_the_row_held(self) -> None:
        row = (3, 4, 2, 3, NOON, "text/plain", '{"a":1}', b"body", 55, "(7,8)", 1, 2)

        (item,) = self.run(row).result

        assert (item.id, item.attempt, item.priority, item.body, item.headers) == (4, 2, 3, b"body", {"a": 1})
        assert item.lease == Lease(3, 4, 55, "(7,8)")
        # Codecs note there what they replace.
        assert item.stored is None

    def test_the_marks_learn_the_highest_id_of_each_lane_and_the_running_transactions(self) -> None:
        self.run(claimed_row(3, oldest=40, newest=44), claimed_row(8), claimed_row(5, lane=2))

        seen, full = self.marks.told[0]

        assert seen is not None
        assert seen.highest == {0: 8, 2: 5}
        assert (seen.oldest, seen.newest) == (40, 44)
        assert not full

    def test_the_marks_learn_that_a_claim_was_full(self) -> None:
        self.run(claimed_row(1), claimed_row(2), limit=2)

        assert self.marks.told[0][1]

    def test_the_marks_learn_that_a_claim_took_nothing(self) -> None:
        assert self.run().result == []
        assert self.marks.told == [(None, False)]

    def test_a_message_at_its_last_attempt_is_still_delivered(self) -> None:
        played = self.run(claimed_row(1, attempt=5), max_attempts=5)

        assert [item.id for item in played.result] == [1]

    def test_a_message_beyond_its_last_attempt_is_buried_with_a_reason_and_the_rest_delivered(self) -> None:
        played = self.run(
            claimed_row(1, attempt=6), claimed_row(2, attempt=5), more=([(1, DEAD_LANE)],), max_attempts=5
        )

        assert [item.id for item in played.result] == [2]
        assert played.names == ["claim", "nack"]
        burial = played.params(1)
        assert (burial["ids"], burial["burials"]) == ("{1}", "{t}")
        error = msgspec.json.decode(elements(burial["errors"])[0])
        assert error["type"] == "AttemptsExhausted"
        assert "5 times" in error["message"]

    def test_a_claim_that_only_buried_claims_again_so_that_nothing_looks_like_an_empty_queue(self) -> None:
        played = self.run(
            claimed_row(1, attempt=6),
            more=([(1, DEAD_LANE)], [claimed_row(2)]),
            limit=1,
            max_attempts=5,
        )

        assert played.names == ["claim", "nack", "claim"]
        assert [item.id for item in played.result] == [2]

    def test_a_message_on_its_last_attempt_comes_alone_and_the_others_are_given_back_uncharged(self) -> None:
        played = self.run(
            claimed_row(1, attempt=3),
            claimed_row(2, attempt=5),
            claimed_row(3, attempt=5),
            more=([(1,), (3,)],),
            max_attempts=5,
        )

        assert [item.id for item in played.result] == [2]
        assert played.names == ["claim", "release"]
        assert (played.params(1)["ids"], played.params(1)["refund"]) == ("{1,3}", 1)

    def test_after_that_as_many_messages_are_claimed_one_by_one(self) -> None:
        rows = [claimed_row(number, attempt=5) for number in (1, 2, 3)]
        self.run(*rows, more=([(2,), (3,)],), max_attempts=5)

        limits = [self.run_on(claimed_row(2, attempt=5), max_attempts=5).params(0)["limit"] for _ in range(3)]

        assert limits == [1, 1, 10]

    def test_what_comes_with_one_that_is_buried_comes_together(self) -> None:
        rows = [claimed_row(1, attempt=6), claimed_row(2), claimed_row(3)]

        played = self.run(*rows, more=([(1, DEAD_LANE)],), max_attempts=5)

        assert [item.id for item in played.result] == [2, 3]

    def test_whoever_buries_himself_is_given_what_has_used_up_its_attempts(self) -> None:
        op = claim.claim(make_queue(max_attempts=5), Marks(), limit=10, lease=30.0, bury=False)

        played = play(op, [claimed_row(1, attempt=6), claimed_row(2)])

        assert [item.attempt for item in played.result] == [6, 1]
        assert played.names == ["claim"]

    def test_an_empty_queue_ends_the_caution(self) -> None:
        self.run(claimed_row(1, attempt=5), claimed_row(2, attempt=5), more=([(2,)],), max_attempts=5)
        self.run_on()

        assert self.run_on(claimed_row(3)).params(0)["limit"] == 10

    def test_with_a_single_attempt_messages_come_together(self) -> None:
        played = self.run(claimed_row(1), claimed_row(2), max_attempts=1)

        assert [item.id for item in played.result] == [1, 2]

    @pytest.mark.parametrize(
        ("attempts", "most", "is_last"),
        [
            ([5], 5, True),
            ([2], 2, True),
            ([4], 5, False),
            ([6], 5, False),
            ([5, 5], 5, False),
            ([], 5, False),
            ([1], 1, False),
        ],
    )
    def test_only_one_that_comes_alone_for_the_last_of_several_times_is_kept_alone(
        self, attempts: list[int], most: int, is_last: bool
    ) -> None:
        found = [Delivery(*claimed_row(1, attempt=attempt)[:9]) for attempt in attempts]

        assert claim.is_last(make_queue(max_attempts=most), found) is is_last


class TestReceive:
    def op(self, patience: float) -> Any:
        return claim.receive(JOBS, Marks(), limit=1, lease=30.0, patience=patience)

    def test_unless_told_it_waits_for_nothing_and_buries_what_has_used_up_its_attempts(self) -> None:
        op = claim.receive(make_queue(max_attempts=5), Marks(), limit=1, lease=30.0)

        assert play(op, [claimed_row(1, attempt=6)], [(1, DEAD_LANE)], []).names == ["claim", "nack", "claim"]

    def test_it_waits_once_then_asks_again(self) -> None:
        op = self.op(5.0)
        first = next(op)
        assert isinstance(first, Execute)
        assert first.query.name == "claim"

        waits = op.send([])
        assert isinstance(waits, Wait)
        assert (waits.queue, waits.patience, waits.drained) == (JOBS, 5.0, False)

        again = op.send(3.5)
        assert isinstance(again, Execute)
        assert again.query.name == "claim"

    @pytest.mark.parametrize(("found", "names"), [(1, ["wait", "claim"]), (2, ["claim"])])
    def test_after_a_claim_that_took_all_there_was_it_waits_first(self, found: int, names: list[str]) -> None:
        marks = Marks()
        play(claim.receive(JOBS, marks, limit=2, lease=30.0, patience=5.0), [claimed_row(n) for n in range(found)])

        op = claim.receive(JOBS, marks, limit=2, lease=30.0, patience=5.0)
        played = play(op, *([4.0] if "wait" in names else []), [claimed_row(9)])

        assert played.names == names
        assert [effect.drained for effect in played.effects if isinstance(effect, Wait)] == [True] * (len(names) - 1)

    def test_without_patience_it_claims_first_whatever_was_there_before(self) -> None:
        marks = Marks()
        play(claim.receive(JOBS, marks, limit=2, lease=30.0), [])

        assert play(claim.receive(JOBS, marks, limit=2, lease=30.0), []).names == ["claim"]

    def test_it_waits_with_the_patience_that_is_left(self) -> None:
        played = play(self.op(5.0), [], 3.5, [], 0.0, [])

        waits = [effect for effect in played.effects if isinstance(effect, Wait)]
        assert [wait.patience for wait in waits] == [5.0, 3.5]

    def test_it_looks_once_more_when_its_patience_has_run_out(self) -> None:
        played = play(self.op(5.0), [], 0.0, [claimed_row(4)])

        assert [item.id for item in played.result] == [4]

    def test_the_least_patience_is_a_wait(self) -> None:
        assert play(self.op(0.01), [], 0.0, []).names == ["claim", "wait", "claim"]

    def test_whoever_times_its_looks_is_told_of_each(self) -> None:
        looks: list[int] = []
        op = claim.receive(JOBS, Marks(), limit=1, lease=30.0, patience=5.0, on_look=lambda: looks.append(1))

        played = play(op, [], 3.5, [], 0.0, [])

        assert len(looks) == played.names.count("claim") == 3

    def test_without_patience_it_does_not_wait(self) -> None:
        assert play(self.op(0.0), []).result == []


ORDERED_KINDS = {"ack": settle.ack, "archive": settle.archive, "release": settle.release}


class TestSettle:
    @pytest.mark.parametrize("name", ORDERED_KINDS)
    def test_it_answers_per_lease_in_the_order_asked(self, name: str) -> None:
        leases = [Lease(0, 9, 1), Lease(0, 3, 1), Lease(0, 5, 1)]

        played = play(ORDERED_KINDS[name](JOBS, leases), [(3,), (9,)], [])

        assert played.result == [True, True, False]
        assert played.names == [name, "locate"]

    @pytest.mark.parametrize("name", ORDERED_KINDS)
    def test_it_names_lane_id_and_token_of_each(self, name: str) -> None:
        played = play(ORDERED_KINDS[name](JOBS, [Lease(4, 9, 77)]), [(9,)])

        assert played.params(0).items() >= {"lanes": "{4}", "ids": "{9}", "tokens": "{77}"}.items()

    @pytest.mark.parametrize(("counts", "refund"), [(False, 1), (True, 0)])
    def test_a_release_gives_the_attempt_back_unless_it_counts(self, counts: bool, refund: int) -> None:
        played = play(settle.release(JOBS, [Lease(4, 9, 77)], counts=counts), [(9,)])

        assert played.params(0)["refund"] == refund

    @pytest.mark.parametrize("name", ORDERED_KINDS)
    def test_it_goes_to_where_each_was_claimed(self, name: str) -> None:
        leases = [Lease(0, 9, 1, "(2,1)"), Lease(1, 3, 1, "(1,7)")]

        played = play(ORDERED_KINDS[name](JOBS, leases), [(3,), (9,)])

        assert elements(played.params(0)["places"]) == ["(1,7)", "(2,1)"]
        assert played.params(0)["ids"] == "{3,9}"

    def test_what_has_moved_since_is_located_and_settled_where_it_is_now(self) -> None:
        leases = [Lease(0, number, 1, f"(1,{number})") for number in (1, 2, 3)]

        played = play(settle.ack(JOBS, leases), [(1,)], [(3, "(5,5)")], [(3,)])

        assert played.result == [True, False, True]
        assert played.names == ["ack", "locate", "ack"]
        assert played.params(1) == {"lanes": "{0,0}", "ids": "{2,3}", "tokens": "{1,1}"}
        assert played.params(2) == {"lanes": "{0}", "ids": "{3}", "tokens": "{1}", "places": '{"(5,5)"}'}

    def test_what_moves_on_and_on_is_given_up(self) -> None:
        rounds = [[], [(1, "(1,1)")]] * (settle_many._TRIES - 1)

        played = play(settle.ack(JOBS, [Lease(0, 1, 1)]), *rounds, [])

        assert played.result == [False]

    def test_ids_are_sorted_for_a_nack_searches_them(self) -> None:
        failures = [settle.Failure(Lease(lane, number, 1)) for lane, number in ((1, 2), (0, 9), (-3, 4), (0, 1))]

        asked = play(settle.nack(JOBS, failures), [], []).params(0)

        assert list(zip(ints(array(asked["lanes"])), ints(array(asked["ids"])), strict=True)) == [
            (0, 1),
            (1, 2),
            (-3, 4),
            (0, 9),
        ]

    @given(
        st.lists(
            st.builds(Lease, st.integers(-3, 3), st.integers(1, 5), st.integers(1, 3)),
            min_size=1,
            max_size=12,
        )
    )
    def test_every_round_is_in_the_order_of_ids_and_names_each_once(self, leases: list[Lease]) -> None:
        op = settle.ack(JOBS, leases)
        asked: list[Lease] = []
        effect: Any = next(op)
        try:
            while True:
                if effect.query.name == "ack":
                    fields = [ints(array(effect.params[key])) for key in ("lanes", "ids", "tokens")]
                    keys = list(zip(*fields, strict=True))
                    assert keys == sorted(keys, key=lambda key: key[1])
                    assert len({key[1] for key in keys}) == len(keys)
                    asked += [Lease(*key) for key in keys]
                effect = op.send([])
        except StopIteration:
            pass
        assert sorted(asked, key=repr) == sorted(set(leases), key=repr)

    def test_a_lease_asked_for_twice_is_settled_once_and_answered_twice(self) -> None:
        lease = Lease(0, 3, 1)

        played = play(settle.ack(JOBS, [lease, lease]), [(3,)])

        assert played.params(0)["ids"] == "{3}"
        assert played.result == [True, True]

    def test_two_tokens_of_one_message_go_in_two_statements_since_answers_name_the_id_only(self) -> None:
        stale, live = Lease(0, 3, 1), Lease(0, 3, 2)

        played = play(settle.ack(JOBS, [stale, live]), [(3,)], [], [])

        assert played.names == ["ack", "ack", "locate"]
        tokens = [played.params(place)["tokens"] for place in (0, 1)]
        assert sorted(tokens) == ["{1}", "{2}"]
        assert played.result == [tokens[0] == "{1}", tokens[0] == "{2}"]

    def test_nothing_to_settle_asks_nothing(self) -> None:
        assert play(settle.ack(JOBS, [])).result == []

    def test_archiving_is_refused_where_no_archive_is_kept(self) -> None:
        with pytest.raises(ArchiveDisabled):
            play(settle.archive(make_queue(archive=False), [Lease(0, 1, 1)]))

    @pytest.mark.parametrize("seconds", [0.0, 0.09, 43_201, float("nan"), True, "30"])
    def test_a_lease_cannot_be_extended_by_a_senseless_time(self, seconds: Any) -> None:
        with pytest.raises(InvalidArgument, match="lock_time"):
            play(settle.extend(JOBS, [Lease(0, 1, 1)], seconds))

    def test_an_extension_passes_the_seconds_on(self) -> None:
        assert play(settle.extend(JOBS, [Lease(0, 1, 1)], 10), [(1,)]).params(0)["lease"] == 10.0

    def test_a_release_rings_so_that_others_take_over_at_once(self) -> None:
        played = play(settle.release(JOBS, [Lease(0, 1, 1)], Bell()), [(1,)], [])

        assert played.names == ["release", "notify"]

    def test_a_release_that_came_too_late_for_some_rings_for_the_others(self) -> None:
        played = play(settle.release(JOBS, [Lease(0, 1, 1), Lease(0, 2, 1)], Bell()), [(1,)], [], [])

        assert played.names == ["release", "locate", "notify"]

    def test_unless_it_is_told_otherwise_a_release_gives_the_attempt_back(self) -> None:
        assert play(settle.release(JOBS, [Lease(0, 1, 1)]), [(1,)]).params(0)["refund"] == 1

    def test_the_shortest_lease_is_a_tenth_of_a_second(self) -> None:
        assert play(settle.extend(JOBS, [Lease(0, 1, 1)], 0.1), [(1,)]).result == [True]

    def test_a_release_of_nothing_but_lost_leases_does_not_ring(self) -> None:
        assert play(settle.release(JOBS, [Lease(0, 1, 1)], Bell()), [], []).result == [False]


class TestReplace:
    NEWS = Draft("jobs", b"new", "text/plain", {"n": 2}, priority=3)

    def test_it_is_fenced_and_stores_what_an_enqueue_would(self) -> None:
        played = play(settle.replace(JOBS, Lease(4, 9, 77), self.NEWS, error={"type": "E"}), [(9, False)])

        asked = played.params(0)
        assert played.result is True
        assert (asked["lane"], asked["id"], asked["token"]) == (4, 9, 77)
        assert (asked["body"], asked["headers"], asked["priority"]) == (b"new", '{"n":2}', 3)
        assert asked["error"] == '{"type":"E"}'

    def test_a_lost_lease_is_said_and_nobody_is_woken(self) -> None:
        played = play(settle.replace(JOBS, Lease(4, 9, 77), self.NEWS, Bell()), [], [])

        assert (played.result, played.names) == (False, ["replace", "locate"])

    @pytest.mark.parametrize(("delay", "names"), [(0.1, ["replace", "notify"]), (60.0, ["replace"])])
    def test_sleepers_are_woken_unless_it_is_due_much_later(self, delay: float, names: list[str]) -> None:
        news = msgspec.structs.replace(self.NEWS, delay=delay)
        answers = [[(9, True)], []][: len(names)]

        assert play(settle.replace(JOBS, Lease(4, 9, 77), news, Bell()), *answers).names == names

    def test_what_may_not_be_stored_is_refused_before_anything_is_asked(self) -> None:
        large = msgspec.structs.replace(self.NEWS, body=b"x" * (JOBS.options.max_body_bytes + 1))

        with pytest.raises(BodyTooLarge):
            play(settle.replace(JOBS, Lease(4, 9, 77), large))


class TestNack:
    def test_a_failure_cannot_be_changed_by_whoever_it_is_handed_to(self) -> None:
        with pytest.raises(AttributeError):
            settle.Failure(Lease(0, 1, 2)).delay = 5.0  # type: ignore[misc]

    @pytest.mark.parametrize(("delays", "rings"), [((3600.0, enqueue.SOON), True), ((3600.0, 3600.0), False)])
    def test_it_rings_if_any_of_them_is_due_soon(self, delays: tuple[float, ...], rings: bool) -> None:
        failures = [settle.Failure(Lease(0, number, 1), delay) for number, delay in enumerate(delays)]

        played = play(settle.nack(JOBS, failures, Bell()), [(0, -1), (1, -1)], *([[]] if rings else []))

        assert ("notify" in played.names) is rings

    def test_it_says_of_each_whether_it_returns_is_dead_or_was_lost(self) -> None:
        failures = [settle.Failure(Lease(0, number, 1)) for number in (3, 1, 2)]

        played = play(settle.nack(JOBS, failures), [(1, DEAD_LANE), (3, -1)], [])

        assert played.result == ["nacked", "dead", "lost"]

    def test_delay_burial_and_error_stay_with_their_message_when_keys_are_sorted(self) -> None:
        failures = [
            settle.Failure(Lease(0, 9, 1), delay=2.5, error={"m": "late"}),
            settle.Failure(Lease(0, 1, 1), bury=True),
        ]

        asked = play(settle.nack(JOBS, failures), [], []).params(0)

        assert (asked["ids"], asked["delays"], asked["burials"]) == ("{1,9}", "{0.0,2.5}", "{t,f}")
        assert elements(asked["errors"]) == [None, '{"m":"late"}']

    def test_the_limit_of_attempts_is_the_queues(self) -> None:
        failure = settle.Failure(Lease(0, 1, 1))

        assert play(settle.nack(make_queue(max_attempts=3), [failure]), [], []).params(0)["max_attempts"] == 3

    def test_an_error_text_with_nul_is_made_storable(self) -> None:
        failure = settle.Failure(Lease(0, 1, 1), error={"m": "a\0b"})

        (text,) = elements(play(settle.nack(JOBS, [failure]), [], []).params(0)["errors"])

        assert msgspec.json.decode(text) == {"m": "a\ufffdb"}

    @pytest.mark.parametrize("delay", [-1, float("inf"), float("nan"), 1e10])
    def test_a_senseless_delay_is_refused_before_anything_is_written(self, delay: float) -> None:
        with pytest.raises(InvalidArgument, match="delay"):
            play(settle.nack(JOBS, [settle.Failure(Lease(0, 1, 1), delay=delay)]))

    @pytest.mark.parametrize(("delay", "lane", "rings"), [(0.0, -1, True), (60.0, -1, False), (0.0, DEAD_LANE, False)])
    def test_it_rings_for_a_message_that_returns_soon(self, delay: float, lane: int, rings: bool) -> None:
        failures = [settle.Failure(Lease(0, 1, 1), delay=delay)]

        played = play(settle.nack(JOBS, failures, Bell()), [(1, lane)], *([[]] if rings else []))

        assert played.names == ["nack", "notify"][: 1 + rings]


class TestEnqueue:
    def op(self, *drafts: Draft, doorbell: Doorbell | None = None, **options: Any) -> Any:
        return enqueue.enqueue(make_queue(**options), list(drafts), doorbell)

    def test_nothing_to_store_asks_nothing(self) -> None:
        assert play(self.op()).result == []

    def test_one_message_for_now_goes_by_the_shortest_statement(self) -> None:
        played = play(self.op(draft(b"hello", priority=4)), stored(1))

        assert played.names == ["enqueue_plain"]
        assert played.result == [1]
        asked = played.params(0)
        assert (asked["priority"], asked["body"], asked["content_type"]) == (4, b"hello", "text/plain")

    @pytest.mark.parametrize(
        "fields", [{"delay": 1.0}, {"at": NOON}, {"ttl": 1.0}], ids=lambda fields: next(iter(fields))
    )
    def test_one_message_with_a_time_goes_by_the_statement_for_one(self, fields: dict[str, Any]) -> None:
        played = play(self.op(draft(b"hello", **fields)), stored(1))

        assert played.names == ["enqueue_one"]
        asked = played.params(0)
        assert {key: asked[key] for key in fields} == fields

    def test_messages_that_differ_in_their_bodies_only_go_by_the_statement_for_alike_ones(self) -> None:
        played = play(self.op(draft(b"a", ttl=5), draft(b"b", ttl=5)), stored(1, 2))

        assert played.names == ["enqueue_alike"]
        assert played.result == [1, 2]

    @pytest.mark.parametrize(
        "other",
        [{"priority": 1}, {"delay": 1.0}, {"at": NOON}, {"ttl": 1.0}, {"headers": {"a": 1}}],
        ids=lambda fields: next(iter(fields)),
    )
    def test_messages_that_differ_in_anything_else_go_by_the_statement_for_mixed_ones(
        self, other: dict[str, Any]
    ) -> None:
        assert play(self.op(draft(), draft(**other)), stored(1, 2)).names == ["enqueue_mixed"]

    def test_messages_with_headers_that_say_the_same_are_alike(self) -> None:
        played = play(self.op(draft(headers={"n": 1}), draft(headers={"n": 1})), stored(1, 2))

        assert played.names == ["enqueue_alike"]

    @pytest.mark.parametrize("other", [True, 1.0], ids=repr)
    def test_headers_that_python_takes_for_equal_but_json_does_not_are_kept_apart(self, other: object) -> None:
        played = play(self.op(draft(headers={"n": 1}), draft(headers={"n": other})), stored(1, 2))

        assert played.names == ["enqueue_mixed"]
        assert elements(played.params(0)["headers"]) == ['{"n":1}', msgspec.json.encode({"n": other}).decode()]

    @pytest.mark.parametrize("fields", [{"delay": 3.0}, {"at": NOON}])
    def test_a_delayed_message_goes_to_the_delayed_lane_of_its_priority(self, fields: dict[str, Any]) -> None:
        asked = play(self.op(draft(priority=3, **fields)), stored(1)).params(0)

        assert (asked["lane"], asked["priority"]) == (-4, 3)

    def test_a_delay_of_zero_is_no_delay(self) -> None:
        asked = play(self.op(draft(delay=0), draft(delay=0)), stored(1, 2)).params(0)

        assert (asked["lane"], asked["delay"]) == (0, None)

    def test_mixed_messages_keep_their_order(self) -> None:
        played = play(
            self.op(draft(b"a", priority=2), draft(b"b", delay=1.5), draft(b"c", headers={"k": "v"})),
            stored(4, 5, 6),
        )

        asked = played.params(0)
        assert asked["lanes"] == "{2,-1,0}"
        assert asked["priorities"] == "{2,0,0}"
        assert elements(asked["delays"]) == [None, "1.5", None]
        assert elements(asked["headers"]) == [None, None, '{"k":"v"}']
        assert played.result == [4, 5, 6]

    def test_it_rings_when_somebody_waits(self) -> None:
        played = play(self.op(draft(), doorbell=Bell()), stored(1, waiting=True), [])

        assert played.names == ["enqueue_plain", "notify"]
        assert played.params(1) == {"queue_id": 7, "count": 1, "consumer": 0, "payload": "7"}

    @pytest.mark.parametrize(("messages", "sleepers"), [(1, 1), (2, 1), (3, 2), (6, 3), (7, 4), (1000, 4)])
    def test_it_wakes_fewer_processes_than_there_are_messages_and_never_many(
        self, messages: int, sleepers: int
    ) -> None:
        drafts = [draft() for _ in range(messages)]
        played = play(self.op(*drafts, doorbell=Bell()), stored(*range(1, messages + 1), waiting=True), [])

        assert played.params(1)["count"] == sleepers

    def test_messages_for_later_wake_nobody(self) -> None:
        drafts = [draft(), *(draft(delay=3600.0) for _ in range(9))]
        played = play(self.op(*drafts, doorbell=Bell()), stored(*range(1, 11), waiting=True), [])

        assert played.params(1)["count"] == 1

    def test_it_does_not_ask_who_waits_when_it_has_just_asked(self) -> None:
        bell = Bell()
        play(self.op(draft(), doorbell=bell), stored(1))

        played = play(self.op(draft(priority=3), doorbell=bell), stored(2))

        assert played.names == ["enqueue_unasked"]
        assert played.params(0)["priority"] == 3

    def test_it_asks_again_when_the_question_was_not_answered(self) -> None:
        bell = Bell()
        with pytest.raises(EnqueueUnknown):
            play(self.op(draft(), doorbell=bell), Unavailable("lost", in_flight=True))

        assert play(self.op(draft(), doorbell=bell), stored(1)).names == ["enqueue_plain"]

    def test_it_asks_again_when_somebody_sleeps_for_whom_the_bell_was_quiet(self) -> None:
        bell = Doorbell("pgqrs", clock=lambda: 100.0)
        assert bell.may_ring(7)
        bell.clock = lambda: 100.0 + QUIET * 0.9
        play(self.op(draft(), draft(), doorbell=bell), stored(1, 2, waiting=True))
        bell.clock = lambda: 100.0 + QUIET * 1.1

        played = play(self.op(draft(), doorbell=bell), stored(3, waiting=True), [])

        assert played.names == ["enqueue_plain", "notify"]

    def test_it_does_not_ask_who_waits_when_it_has_just_rung(self) -> None:
        bell = Doorbell("pgqrs", clock=lambda: 100.0)
        play(self.op(draft(), doorbell=bell), stored(1, waiting=True), [])

        assert play(self.op(draft(), doorbell=bell), stored(2)).names == ["enqueue_unasked"]

    def test_it_always_asks_in_the_callers_transaction(self) -> None:
        names = [play(self.op(draft()), stored(number)).names for number in (1, 2)]

        assert names == [["enqueue_plain"]] * 2

    @pytest.mark.parametrize("more", [[draft(delay=1)], [draft(), draft()], [draft(ttl=1)]])
    def test_it_always_asks_with_what_is_not_one_plain_message(self, more: list[Draft]) -> None:
        bell = Bell()
        bell.learn(7, bell.clock())

        (effect,) = play(self.op(*more, doorbell=bell), stored(*range(len(more)))).effects

        assert isinstance(effect, Execute)
        assert "waiters" in effect.query.text

    def test_it_does_not_ring_when_nobody_waits(self) -> None:
        assert play(self.op(draft(), doorbell=Bell()), stored(1)).names == ["enqueue_plain"]

    @pytest.mark.parametrize(
        ("delay", "with_bell", "tells"),
        [(None, False, True), (enqueue.SOON + 1, False, False), (None, True, False), (enqueue.SOON + 1, True, False)],
    )
    def test_only_without_a_doorbell_and_for_what_is_due_soon_ringing_is_left_to_the_driver(
        self, delay: float | None, with_bell: bool, tells: bool
    ) -> None:
        bell = Bell() if with_bell else None

        (effect,) = play(self.op(draft(delay=delay), doorbell=bell), stored(1)).effects

        assert isinstance(effect, Execute)
        assert effect.tells is tells

    def test_all_queues_of_a_transaction_are_rung_for(self) -> None:
        played = play(enqueue.ring_all([(make_queue("a", 1), 1), (make_queue("b", 2), 5)], Bell()), [], [])

        assert [played.params(place)["payload"] for place in (0, 1)] == ["1", "2"]
        assert [played.params(place)["count"] for place in (0, 1)] == [1, 3]

    def test_without_a_doorbell_it_never_rings(self) -> None:
        assert play(self.op(draft()), stored(1, waiting=True)).names == ["enqueue_plain"]

    @pytest.mark.parametrize(("delay", "rings"), [(enqueue.SOON, True), (enqueue.SOON + 1, False)])
    def test_it_rings_for_a_delayed_message_only_if_that_is_due_soon(self, delay: float, rings: bool) -> None:
        played = play(self.op(draft(delay=delay), doorbell=Bell()), stored(1, waiting=True), *([[]] if rings else []))

        assert ("notify" in played.names) is rings

    def test_it_rings_for_a_batch_of_which_one_is_due_soon(self) -> None:
        op = self.op(draft(delay=3600), draft(), draft(delay=3600), doorbell=Bell())

        assert play(op, stored(1, 2, 3, waiting=True), []).names == ["enqueue_mixed", "notify"]

    @pytest.mark.parametrize("error", [ServerError("full"), Unavailable("gone", in_flight=True)], ids=repr)
    def test_a_bell_that_cannot_be_rung_does_not_fail_the_enqueue(self, error: Exception) -> None:
        bell = Bell()

        played = play(self.op(draft(), doorbell=bell), stored(1, waiting=True), error)

        assert played.result == [1]
        assert bell.failures == 1

    def test_a_connection_that_breaks_on_the_way_leaves_the_outcome_unknown(self) -> None:
        lost = Unavailable("lost the connection", target="db", in_flight=True)

        with pytest.raises(EnqueueUnknown, match="jobs") as caught:
            play(self.op(draft(), doorbell=Bell()), lost)

        assert caught.value.__cause__ is lost
        assert caught.value.target == "db"

    @pytest.mark.parametrize(
        ("keys", "remedy"),
        [(["k", "l"], "Enqueue again with"), (["k", None], "may store it"), ([None], "may store it")],
    )
    def test_an_unknown_outcome_names_the_key_as_remedy_where_all_messages_have_one(
        self, keys: list[str | None], remedy: str
    ) -> None:
        drafts = [draft(idempotency_key=key) for key in keys]

        with pytest.raises(EnqueueUnknown, match=f"lost. .*{remedy}") as caught:
            play(self.op(*drafts, doorbell=Bell()), Unavailable("lost.", in_flight=True))

        assert caught.value.keyed is (None not in keys)

    def test_messages_with_keys_are_sent_once_per_key_and_answered_by_it(self) -> None:
        drafts = [draft(b"%d" % place, idempotency_key=key) for place, key in enumerate([None, "b", "a", "b", None])]
        hashes = {key: enqueue.key_hash(JOBS, key) for key in "ab"}

        played = play(
            self.op(*drafts), [(7, False, hashes["a"]), (3, False, hashes["b"]), (8, False, None), (9, False, None)]
        )

        assert played.names == ["enqueue_keyed"]
        assert elements(played.params(0)["keys"]) == [None, f"\\x{hashes['b'].hex()}", f"\\x{hashes['a'].hex()}", None]
        assert played.result == [8, 3, 7, 3, 9]

    @pytest.mark.parametrize(
        ("durable", "relaxed"), [([True], False), ([False], True), ([False, False], True), ([False, True], False)]
    )
    def test_the_commit_waits_for_the_disk_unless_no_message_asks_for_that(
        self, durable: list[bool], relaxed: bool
    ) -> None:
        drafts = [draft(durable=one) for one in durable]

        played = play(self.op(*drafts), [(place, False) for place, _ in enumerate(drafts)])

        assert [effect.query.relaxed for effect in played.effects if isinstance(effect, Execute)] == [relaxed]

    def test_one_message_with_a_key_goes_the_same_way_and_rings(self) -> None:
        played = play(
            self.op(draft(idempotency_key="k"), doorbell=Bell()), [(4, True, enqueue.key_hash(JOBS, "k"))], []
        )

        assert (played.names, played.result) == (["enqueue_keyed", "notify"], [4])

    def test_a_connection_that_was_never_made_stored_nothing_for_certain(self) -> None:
        with pytest.raises(Unavailable) as caught:
            play(self.op(draft(), doorbell=Bell()), Unavailable("refused"))

        assert not isinstance(caught.value, EnqueueUnknown)

    def test_inside_the_callers_transaction_a_broken_connection_stored_nothing_for_certain(self) -> None:
        with pytest.raises(Unavailable) as caught:
            play(self.op(draft()), Unavailable("lost", in_flight=True))

        assert not isinstance(caught.value, EnqueueUnknown)

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            *[("priority", value) for value in (-1, 10, 1.5, True, "1")],
            *[("at", value) for value in (datetime(2030, 1, 1), "tomorrow", 0)],
            *[("idempotency_key", value) for value in ("", "k" * 256, 1)],
            *[("delay", value) for value in (-0.1, float("nan"), float("inf"), 1e10, True, "1")],
            *[("ttl", value) for value in (0, -1, float("nan"), float("inf"), 1e10, True, "1")],
        ],
    )
    def test_a_senseless_argument_is_refused_before_anything_is_stored(self, parameter: str, value: Any) -> None:
        with pytest.raises(InvalidArgument, match=parameter):
            play(self.op(draft(), draft(**{parameter: value})))

    def test_a_priority_out_of_range_is_told_the_range(self) -> None:
        with pytest.raises(InvalidArgument, match="0 to 9"):
            play(self.op(draft(priority=10)))

    def test_a_body_over_the_queues_limit_is_refused_before_anything_is_stored(self) -> None:
        with pytest.raises(BodyTooLarge) as caught:
            play(self.op(draft(b"1234"), draft(b"12345"), max_body_bytes=4))

        assert (caught.value.size, caught.value.limit) == (5, 4)


class TestDoorbell:
    def test_it_rings_once_within_its_quiet_time(self) -> None:
        now = 100.0
        bell = Doorbell("pgqrs", clock=lambda: now)
        assert bell.may_ring(1)

        now += QUIET / 2

        assert not bell.may_ring(1)

    def test_it_rings_again_after_its_quiet_time(self) -> None:
        now = 100.0
        bell = Doorbell("pgqrs", clock=lambda: now)
        assert bell.may_ring(1)

        now += QUIET * 1.01

        assert bell.may_ring(1)

    def test_an_answer_is_good_for_its_queue_and_the_quiet_time_that_began_with_the_question(self) -> None:
        bell = Doorbell("pgqrs")
        assert not bell.knows(1, 100.0)

        bell.learn(1, 100.0)

        assert bell.knows(1, 100.0 + QUIET * 0.99)
        assert not bell.knows(1, 100.0 + QUIET * 1.01)
        assert not bell.knows(2, 100.0)

    def test_queues_have_a_quiet_time_each(self) -> None:
        bell = Doorbell("pgqrs", clock=lambda: 100.0)

        assert [bell.may_ring(1), bell.may_ring(2)] == [True, True]

    def test_it_may_ring_even_when_the_clock_has_only_just_begun(self) -> None:
        assert Doorbell("pgqrs", clock=lambda: 0.0).may_ring(1)

    @given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=63))
    def test_a_channel_fits_postgresql_whatever_the_schema(self, name: str) -> None:
        assert len(channel_of(name).encode()) <= 63

    def test_long_schemas_have_channels_of_their_own(self) -> None:
        names = ["s" * 60 + "a", "s" * 60 + "b"]

        assert len({channel_of(name) for name in names}) == 2


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=255) | st.from_regex(
    r"[a-z_]{1,4}_[0-9a-f]{14,18}", fullmatch=True
)


class TestQueueNames:
    @given(NAMES)
    def test_a_suffix_is_a_short_plain_identifier(self, name: str) -> None:
        suffix = queues.table_suffix(name)

        assert re.fullmatch(r"[a-z0-9_]{1,40}", suffix)

    @given(st.lists(NAMES, min_size=2, max_size=20, unique=True))
    def test_distinct_names_have_distinct_suffixes(self, names: list[str]) -> None:
        assert len({queues.table_suffix(name) for name in names}) == len(names)

    @given(NAMES)
    def test_the_suffix_of_a_suffix_differs_unless_it_is_the_name_itself(self, name: str) -> None:
        suffix = queues.table_suffix(name)

        assert suffix == name or queues.table_suffix(suffix) != suffix

    @pytest.mark.parametrize(
        "pair",
        [("Jobs", "jobs"), ("a.b", "a-b"), ("a b", "a_b"), ("é", "e"), ("x" * 41, "x" * 42), ("a\n", "a")],
    )
    def test_names_that_look_alike_do_not_share_a_table(self, pair: tuple[str, str]) -> None:
        assert queues.table_suffix(pair[0]) != queues.table_suffix(pair[1])

    def test_a_plain_name_is_its_own_suffix_for_people_at_a_prompt(self) -> None:
        assert queues.table_suffix("emails_2026") == "emails_2026"

    @pytest.mark.parametrize("end", ["pkey", "key", "idx", "seq", "idx1", "lane_due_at_message_id_idx", "not_null"])
    def test_names_of_indexes_and_sequences_are_no_suffixes(self, end: str) -> None:
        assert re.fullmatch(rf"jobs_{end[:18]}\w*_[0-9a-f]{{16}}", queues.table_suffix(f"jobs_{end}"))

    @pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", "\ud800", 5, None, b"jobs"], ids=repr)
    def test_what_postgresql_cannot_hold_is_no_name(self, name: Any) -> None:
        with pytest.raises(InvalidQueueName):
            check_name(name)

    @given(NAMES)
    def test_any_other_text_is_a_name(self, name: str) -> None:
        assert check_name(name) == name


#: What a queue's creation is answered first, and what it learns later: the schema that it locked; the steps applied to it.
LOCKED = [("pgqrs", "")]
APPLIED = [(schema.SUPPORTED, "c", True)]


class TestQueues:
    def test_creating_builds_the_tables_of_every_migration(self) -> None:
        op = queues.create_queue("jobs", QueueOptions())

        played = play(
            op,
            LOCKED,
            [],
            [],
            [queue_row()],
            APPLIED,
            *[[] for step in MIGRATIONS for _ in step.blocks.keys() & {"queue", "archive"}],
            [(False,)],
        )

        assert played.names[1:4] == ["find_queue", "pass_queue_numbers", "insert_queue"]
        assert played.names[4:7] == ["applied_migrations", "queue", "archive"]
        assert played.result.name == "jobs"

    def test_without_an_archive_no_table_for_it_is_built(self) -> None:
        played = play(
            queues.create_queue("jobs", QueueOptions(archive=False)),
            LOCKED,
            [],
            [],
            [queue_row(archive=False)],
            APPLIED,
            *[[] for step in MIGRATIONS if "queue" in step.blocks],
            [(False,)],
        )

        assert "archive" not in played.names

    def test_creating_it_again_with_the_same_options_changes_nothing(self) -> None:
        played = play(queues.create_queue("jobs", QueueOptions()), LOCKED, [queue_row()])

        assert played.names == ["migration_pause", "find_queue"]

    def test_one_that_is_created_by_two_at_once_is_created_by_one(self) -> None:
        played = play(queues.create_queue("jobs", QueueOptions()), LOCKED, [], [], [], [queue_row()])

        assert played.names[1:] == ["find_queue", "pass_queue_numbers", "insert_queue", "find_queue"]

    def test_creating_it_again_with_other_options_shows_the_difference(self) -> None:
        with pytest.raises(QueueExists) as caught:
            play(queues.create_queue("jobs", QueueOptions(max_attempts=9)), LOCKED, [queue_row()])

        assert caught.value.differences == {"max_attempts": (5, 9)}

    def test_a_missing_queue_is_reported_with_the_nearest_names(self) -> None:
        with pytest.raises(QueueNotFound, match="did you mean 'Emails'") as caught:
            play(queues.find_queue("emial"), [], [("Emails",), ("orders",)])

        assert caught.value.similar == ("Emails",)

    def test_a_missing_queue_unlike_any_other_is_reported_without_guesses(self) -> None:
        with pytest.raises(QueueNotFound) as caught:
            play(queues.find_queue("zzz"), [], [("emails",)])

        assert caught.value.similar == ()

    def test_options_that_newer_code_stored_are_ignored(self) -> None:
        number, name, suffix, _, paused, created = queue_row()
        text = '{"max_attempts": 3, "colour": "blue"}'

        found = play(queues.find_queue("jobs"), [(number, name, suffix, text, paused, created)]).result

        assert found.options == QueueOptions(max_attempts=3)

    def test_altering_changes_what_is_named_and_keeps_the_rest(self) -> None:
        row = queue_row(lease_seconds=7.0)

        played = play(queues.alter_queue("jobs", {"max_attempts": 9}), [row], [row])

        changed = msgspec.json.decode(played.params(1)["options"], type=QueueOptions)
        assert (changed.lease_seconds, changed.max_attempts) == (7.0, 9)

    @pytest.mark.parametrize("changes", [{"colour": "blue"}, {"max_attempts": 0}, {"archive": False}], ids=repr)
    def test_a_change_that_makes_no_sense_is_refused_and_nothing_written(self, changes: dict[str, Any]) -> None:
        op = queues.alter_queue("jobs", changes)

        with pytest.raises(InvalidArgument):
            play(op, *([[queue_row()]] if "colour" not in changes else []))

    def test_deleting_drops_the_archive_only_where_there_is_one(self) -> None:
        op = queues.delete_queue("jobs")

        assert play(op, [queue_row(archive=False)], [], []).names == [
            "lock_queue",
            "drop_queue",
            "delete_queue",
        ]

    def test_purging_goes_on_until_a_page_is_empty(self) -> None:
        """One that is not full may have missed a message that changed just then."""
        page = [(number,) for number in range(5_000)]

        assert play(queues.purge_queue(JOBS), page, page[:-1], [(1,)], []).result == 10_000

    @pytest.mark.parametrize("change", [queues.pause_queue, queues.resume_queue, queues.delete_queue])
    def test_what_is_not_there_cannot_be_changed(self, change: Any) -> None:
        with pytest.raises(QueueNotFound):
            play(change("jobs"), [], [])

    @pytest.mark.parametrize("limit", [0, -1, 100_001, 1.5, True])
    def test_peeking_at_a_senseless_number_is_refused(self, limit: Any) -> None:
        with pytest.raises(InvalidArgument, match="limit"):
            play(queues.peek(JOBS, limit))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("lease_seconds", 0.05),
            ("max_attempts", 0),
            ("max_attempts", 1.5),
            ("backoff_base", -1),
            ("backoff_factor", 0.5),
            ("backoff_jitter", 1.1),
            ("archive", 1),
            ("dead_retention_seconds", -1),
            ("max_body_bytes", True),
            ("backoff_cap", float("nan")),
        ],
    )
    def test_an_option_out_of_range_is_refused(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidArgument, match=field):
            QueueOptions(**{field: value})

    @given(st.integers(1, 10**6))
    def test_back_off_grows_up_to_its_cap_and_never_overflows(self, attempt: int) -> None:
        options = QueueOptions(backoff_base=1, backoff_factor=2, backoff_cap=60)

        assert 1 <= options.backoff(attempt) <= options.backoff(attempt + 1) <= 60


LANE = (7, 0, 3, 1, 0, None, False, 0, 4.5, None)


class TestMetrics:
    def measure(self, *rows: tuple[Any, ...], archive: tuple[Any, ...] = (7, 0, None), **options: Any) -> Any:
        replies = [list(rows)] + ([[archive]] if options.get("archive", True) else [])
        (measured,) = play(metrics.measure([make_queue(**options)]), *replies).result
        return measured

    def test_no_queues_ask_nothing(self) -> None:
        assert play(metrics.measure([])).result == []

    def test_an_empty_queue_has_zeros(self) -> None:
        measured = self.measure()

        assert (measured.ready, measured.delayed, measured.in_flight, measured.dead) == (0, 0, 0, 0)
        assert measured.oldest_ready_seconds is None

    def test_a_ready_lane_is_split_into_ready_and_in_flight(self) -> None:
        measured = self.measure(LANE)

        assert (measured.ready, measured.in_flight, measured.oldest_ready_seconds) == (2, 1, 4.5)

    def test_a_delayed_lane_is_split_into_due_held_and_waiting(self) -> None:
        measured = self.measure((7, -1, 10, 2, 0, None, False, 3, 1.5, 8.5))

        assert (measured.ready, measured.in_flight, measured.delayed) == (3, 2, 5)
        assert measured.next_due_seconds == 8.5

    def test_dead_messages_are_counted_apart(self) -> None:
        assert self.measure((7, DEAD_LANE, 4, 0, 0, None, False, 0, None, None)).dead == 4

    def test_lanes_add_up(self) -> None:
        measured = self.measure(LANE, (7, 5, 4, 0, 0, None, False, 0, 9.0, None))

        assert (measured.ready, measured.oldest_ready_seconds) == (6, 9.0)

    def test_what_is_estimated_beyond_the_cap_is_added_and_said_to_be_an_estimate(self) -> None:
        samples = [[400, 800, 10_000, 0, 400], [400, 800, 10_000, 0, 400], [10, 10_000, 10_000, 0, 10]]

        measured = self.measure((7, 0, metrics.CAP + 1, 20, 0, samples, False, 0, 1.0, None))

        assert (measured.ready, measured.in_flight) == (metrics.CAP + 1 - 20 + 5_000 + 5_000 + 10, 20)
        assert measured.estimated == ("ready",)

    def test_a_sample_that_begins_in_a_burst_does_not_stand_for_its_range(self) -> None:
        plain, burst = [400, 40_000, 100_000, 0, 400], [400, 400, 100_000, 0, 400]

        measured = self.measure((7, 0, metrics.CAP + 1, 0, 0, [plain, plain, burst, plain, plain], False, 0, 1.0, None))

        assert measured.ready == metrics.CAP + 1 + 4 * 1_000 + 1_396

    def test_counts_up_to_the_cap_are_exact(self) -> None:
        measured = self.measure((7, 0, metrics.CAP, 0, 0, None, False, 0, 1.0, None))

        assert (measured.ready, measured.estimated) == (metrics.CAP, ())

    def test_what_has_expired_is_neither_ready_nor_delayed(self) -> None:
        measured = self.measure(
            (7, 0, 10, 1, 4, None, False, 0, None, None), (7, -1, 10, 0, 5, None, False, 1, None, None)
        )

        counts = (measured.ready, measured.delayed, measured.in_flight, measured.expired)
        assert counts == (5 + 1, 4, 1, 4 + 5)

    def test_expired_messages_beyond_the_cap_are_estimated_apart(self) -> None:
        samples = [[400, 400, 1_000, 300, 100]] * 4

        measured = self.measure((7, 0, metrics.CAP + 1, 0, 8_000, samples, False, 0, None, None))

        assert (measured.ready, measured.expired) == (2_001 + 1_000, 8_000 + 3_000)
        assert measured.estimated == ("expired", "ready")

    def test_more_due_messages_than_the_cap_are_ready_not_delayed(self) -> None:
        samples = [[400, 400, 1_000, 0, 400]] * 4
        lane = (7, -1, metrics.CAP + 1, 0, 0, samples, True, 9_000, 1.0, None)

        measured = self.measure(lane)

        assert (measured.ready, measured.delayed) == (9_000 + 4_000, metrics.CAP + 1 - 9_000)

    def test_a_long_archive_is_estimated(self) -> None:
        measured = self.measure(archive=(7, 10_001, [[400, 400, 10_001]]))

        assert (measured.archived, measured.estimated) == (20_002, ("archived",))

    def test_a_queue_without_archive_is_not_asked_for_one(self) -> None:
        queue = make_queue(archive=False)

        assert play(metrics.measure([queue]), [LANE]).names == ["metrics"]

    def test_answers_are_in_the_order_of_the_queues(self) -> None:
        first, second = make_queue("a", 1), make_queue("b", 2)

        measured = play(metrics.measure([second, first]), [(1, *LANE[1:])], []).result

        assert [(item.queue, item.ready) for item in measured] == [("b", 0), ("a", 2)]


class TestDeadAndArchive:
    ROW = (4, 1, 5, NOON, NOON + timedelta(1), "text/plain", '{"a":1}', '{"type":"E"}', b"x")

    def test_a_dead_message_shows_why_it_died(self) -> None:
        (found,) = play(dead.list_dead(JOBS, 10), [self.ROW]).result

        assert (found.id, found.error, found.headers) == (4, {"type": "E"}, {"a": 1})

    def test_a_message_that_is_not_dead_is_none(self) -> None:
        assert play(dead.show_dead(JOBS, 4), []).result is None

    def test_replaying_some_asks_for_each_once_and_counts_what_was_there(self) -> None:
        played = play(dead.replay_dead(JOBS, [3, 1, 3]), [(1,)], [])

        assert played.params(0) == {"ids": "{1,3}"}
        assert (played.names[1], played.params(1)) == ("renumber_free", {"lanes": "{-100}", "ids": "{3}"})
        assert played.result == 1

    def test_replaying_all_goes_page_by_page_and_rings_once(self) -> None:
        played = play(dead.replay_dead(JOBS, None, Bell()), [(1,), (5,)], [(1,), (5,)], [(9,)], [], [], [], [])

        assert played.names == [
            *("dead_ids", "replay_dead", "dead_ids", "replay_dead", "renumber_free", "dead_ids", "notify"),
        ]
        assert [played.params(place)["after"] for place in (0, 2, 5)] == [-(2**63), 5, 9]
        assert played.result == 2

    def test_purging_none_of_them_asks_nothing(self) -> None:
        assert play(dead.purge_dead(JOBS, [])).result == 0

    @pytest.mark.parametrize(
        "op",
        [archives.list_archive, archives.prune_archive, lambda queue, _: archives.replay_archive(queue, [1])],
    )
    def test_there_is_no_archive_to_use_where_none_is_kept(self, op: Any) -> None:
        with pytest.raises(ArchiveDisabled):
            play(op(make_queue(archive=False), 1))

    def test_pruning_goes_on_until_a_page_is_not_full(self) -> None:
        page = [(number,) for number in range(5_000)]

        assert play(archives.prune_archive(JOBS, 60), page, []).result == 5_000

    def test_replaying_the_archive_rings_when_something_came_back(self) -> None:
        assert play(archives.replay_archive(JOBS, [2, 1], Bell()), [(8,)], []).names == [
            "replay_archive",
            "notify",
        ]


class TestMaintenance:
    def test_a_round_removes_what_each_queue_keeps_no_longer(self) -> None:
        row = queue_row(dead_retention_seconds=5, archive_retention_seconds=6)

        played = play(maintenance.maintain("pgqrs"), [], [(1,)] * 5, [row], [(1,)], [(2,), (3,)], [(4,)], [(10,)])

        assert played.names == [
            "forget_waiters",
            "prune_keys",
            "list_queues",
            "expire",
            "prune_dead",
            "prune_archive",
            "dead_tuples",
        ]
        assert played.result == maintenance.Housekeeping(1, 2, 1, 0, 5)

    def test_what_is_kept_for_ever_is_not_touched(self) -> None:
        played = play(maintenance.maintain("pgqrs"), [], [], [queue_row()], [], [])

        assert played.names == ["forget_waiters", "prune_keys", "list_queues", "expire", "dead_tuples"]

    def test_a_table_that_autovacuum_does_not_keep_up_with_is_vacuumed(self) -> None:
        assert play(maintenance.maintain("pgqrs"), [], [], [queue_row()], [], [(50_001,)], []).result.vacuumed == 1

    @pytest.mark.parametrize(("rows", "won"), [([(5,)], True), ([], False)])
    def test_an_election_is_won_by_whoever_gets_a_row(self, rows: list[tuple[int]], won: bool) -> None:
        assert play(maintenance.elect(5, 10.0, maintenance.Process("here", 7)), rows).result is won


def step(version: int, *, checksum: str = "c", **blocks: str) -> Migration:
    return Migration(version, "step", checksum, True, {name: Query(name, text) for name, text in blocks.items()})


NO_ROLES = [(False,)]
STEPS = [
    step(1, shared="create table t"),
    step(2, shared="alter table t", queue="alter {queue}", archive="alter {archive}"),
]


class TestSchema:
    def test_a_queue_is_not_made_by_code_that_does_not_know_its_newest_step(self) -> None:
        newer = [*APPLIED, (schema.SUPPORTED + 1, "d", True)]

        with pytest.raises(SchemaTooNew):
            play(queues.create_queue("jobs", QueueOptions()), LOCKED, [], [], [queue_row()], newer)

    def test_a_missing_schema_is_created(self) -> None:
        played = play(schema.install("pgqrs", migrations=STEPS[:1]), [], [(False,)], [], [], [(1, "c", True)], [])

        assert played.names[1:4] == ["namespace_exists", "create_schema", "create_migrations"]

    def test_nothing_is_applied_twice(self) -> None:
        played = play(schema.install("pgqrs", migrations=STEPS[:1]), [], [(True,)], [], [(1, "c", True)], [])

        assert played.result == []
        assert played.names == [
            "migration_lock",
            "namespace_exists",
            "create_migrations",
            "applied_migrations",
            "outdated_queues",
        ]

    def test_a_missing_step_is_applied_to_every_queue_and_recorded(self) -> None:
        first, second = (*queue_row("a", 1), 1), (*queue_row("b", 2, archive=False), 1)

        played = play(
            schema.install("pgqrs", migrations=STEPS),
            *([], [(True,)], [], [(1, "c", True)], [], [], NO_ROLES),
            [(1, "a"), (2, "b")],
            *([first], [("q_a",), ("a_a",)], [], [], NO_ROLES, []),
            *([second], [("q_b",)], [], NO_ROLES, []),
            *([], []),
        )

        assert played.names[4:8] == ["shared", "record_migration", "roles_exist", "outdated_queues"]
        one_queue = ["lock_outdated_queue", "existing_tables", "queue", "archive", "roles_exist", "record_version"]
        assert played.names[8:14] == one_queue
        assert played.names[14:19] == [name for name in one_queue if name != "archive"]
        assert played.names[19:] == ["queue_tables", "list_queues"]
        assert played.result == ["pgqrs 0002 step"]

    def test_of_a_queue_that_lacks_a_table_the_other_one_is_upgraded(self) -> None:
        outdated = (*queue_row("a", 1), 1)

        played = play(
            schema.install("pgqrs", migrations=STEPS),
            *([], [(True,)], [], [(1, "c", True), (2, "c", True)]),
            *([(1, "a")], [outdated], [("a_a",)], [], []),
            *([], []),
        )

        assert played.names[-5:-2] == ["existing_tables", "archive", "record_version"]

    def test_a_queue_that_cannot_be_upgraded_does_not_stop_the_others(self) -> None:
        rows = [(*queue_row(name, number), 1) for number, name in enumerate("ab", 1)]
        tables = [("q_b",), ("a_b",)]

        with pytest.raises(QueuesFailed, match=r"'a'.*no room") as caught:
            play(
                schema.install("pgqrs", migrations=STEPS),
                *([], [(True,)], [], [(1, "c", True), (2, "c", True)], [(1, "a"), (2, "b")]),
                *([rows[0]], [("q_a",)], ServerError("no room")),
                *([rows[1]], tables, [], [], NO_ROLES, []),
            )

        assert caught.value.queues == ("a",)

    def test_a_step_that_was_edited_after_it_was_applied_is_refused(self) -> None:
        with pytest.raises(SchemaError, match="migration 1 of pgqrs was changed"):
            play(schema.install("pgqrs", migrations=STEPS), [], [(True,)], [], [(1, "other", True)])

    def test_installing_over_a_newer_version_is_refused(self) -> None:
        with pytest.raises(SchemaTooNew):
            play(schema.install("pgqrs", migrations=STEPS), [], [(True,)], [], [(3, "c", False)])

    def test_a_plugins_steps_do_not_touch_the_tables_of_queues(self) -> None:
        own = schema.install("pgqrs", component="own", migrations=STEPS[:1])
        played = play(own, [], [(True,)], [], [], [], [], NO_ROLES)

        assert "list_queues" not in played.names

    def test_a_database_without_our_tables_is_missing_them(self) -> None:
        with pytest.raises(SchemaMissing, match="pgqrs install"):
            play(schema.check_schema("pgqrs"), [(False,)])

    def test_an_older_version_names_both_versions(self) -> None:
        with pytest.raises(SchemaTooOld) as caught:
            play(schema.check_schema("pgqrs"), [(True,)], [(1, "c", True)])

        assert (caught.value.installed, caught.value.supported) == (1, schema.SUPPORTED)

    def test_a_newer_version_is_fine_if_every_unknown_step_is_safe(self) -> None:
        known = [(number, "c", False) for number in range(1, schema.SUPPORTED + 1)]

        play(schema.check_schema("pgqrs"), [(True,)], [*known, (schema.SUPPORTED + 1, "c", True)], [])

    def test_an_installation_that_was_interrupted_is_too_old(self) -> None:
        with pytest.raises(SchemaTooOld, match="'late'") as caught:
            play(schema.check_schema("pgqrs"), [(True,)], APPLIED, [(4, "late")])

        assert caught.value.queue == "late"

    def test_a_newer_version_with_an_unsafe_step_is_refused(self) -> None:
        new = schema.SUPPORTED + 1

        with pytest.raises(SchemaTooNew):
            play(
                schema.check_schema("pgqrs"),
                [(True,)],
                [(1, "c", True), (new, "c", False), (new + 1, "c", True)],
            )

    @pytest.mark.parametrize(
        ("replies", "number"), [([[(False,)]], 0), ([[(True,)], [(1, "c", True), (2, "c", True)]], 2)]
    )
    def test_the_installed_version_is_the_highest_applied(self, replies: list[Any], number: int) -> None:
        assert play(schema.version("pgqrs"), *replies).result == number

    def test_uninstalling_keeps_a_schema_in_which_others_have_tables(self) -> None:
        held: list[Any] = [[("migrations", "r", ""), ("queues", "r", "")], [], [], []]
        played = play(uninstall.uninstall("pgqrs"), *held, *held, [], *held, NO_ROLES, [], [(False,)])

        assert "drop_schema" not in played.names


class TestArraysAndStatements:
    @given(st.lists(st.binary(max_size=20), max_size=8))
    def test_an_array_of_bodies_is_what_postgresql_expects(self, bodies: list[bytes]) -> None:
        data = ByteaArray(bodies).data

        dimensions, nulls, oid = struct.unpack_from("!iiI", data)
        assert (dimensions, nulls, oid) == (1 if bodies else 0, 0, 17)
        rest, found = data[12:], []
        if bodies:
            count, lower = struct.unpack_from("!ii", rest)
            assert (count, lower) == (len(bodies), 1)
            rest = rest[8:]
        while rest:
            (size,) = struct.unpack_from("!i", rest)
            found.append(rest[4 : 4 + size])
            rest = rest[4 + size :]
        assert found == bodies

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
    def test_a_schema_of_any_name_stays_one_quoted_identifier(self, name: str) -> None:
        text = text_of(Execute(queries["queue_names"]), name)

        assert '"' + name.replace('"', '""') + '".queues' in text

    def test_statements_of_two_queues_are_not_mixed_up(self) -> None:
        statements = Statements("pgqrs")
        first, second = (Execute(queries["ack"], {}, make_queue(name, 1)) for name in ("a", "b"))

        texts = [statements.render(effect) for effect in (first, second, first)]

        assert texts[0] == texts[2] != texts[1]

    def test_one_statement_for_several_queues_asks_each(self) -> None:
        chosen = (make_queue("a", 1), make_queue("b", 2))

        text = text_of(Execute(queries["probe"], queues=chosen))

        assert '"q_a"' in text
        assert '"q_b"' in text
        assert text.count("::int as queue_id") == 2
