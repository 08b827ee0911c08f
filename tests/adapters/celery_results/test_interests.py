"""What is waited for, decided by hand: no server, no thread, no clock."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("celery")

from pgqrs_celery.interests import FIRST_LOOK, FIRST_POLL, LAST_LOOK, LAST_POLL, MANY, RENEW, Interests


class Waiting:
    def __init__(self) -> None:
        self.rows: list[Any] = []

    def receive(self, row: Any) -> None:
        self.rows.append(row)


def is_final(row: Any) -> bool:
    return bool(row[1] == "SUCCESS")


def test_what_is_new_is_registered_and_read_at_once() -> None:
    interests = Interests()
    interests.add(["a", "b"], Waiting())

    plan = interests.plan(0.0, ())

    assert (plan.register, plan.read, plan.sleep) == (["a", "b"], ["a", "b"], FIRST_LOOK)


def test_what_was_being_stored_meanwhile_is_found_by_looks_that_grow_rare() -> None:
    interests = Interests()
    interests.add(["a"], Waiting())
    now, looks = 0.0, []
    for _ in range(7):
        plan = interests.plan(now, ())
        looks.append(plan.sleep)
        now += plan.sleep

    assert looks == sorted(looks)
    assert (looks[0], looks[-1]) == pytest.approx((FIRST_LOOK, LAST_LOOK))
    assert sum(looks[:4]) < 10


def test_a_notification_leads_to_one_read_of_that_task_alone() -> None:
    interests = Interests()
    interests.add(["a", "b"], Waiting())
    interests.plan(0.0, ())

    assert interests.plan(0.01, {"b", "somebody else's"}).read == ["b"]


def test_a_row_goes_once_to_everybody_who_waits_for_it() -> None:
    interests, one, other = Interests(), Waiting(), Waiting()
    interests.add(["a"], one)
    interests.add(["a"], other)

    assert interests.rows([("a", "STARTED")], is_final) == 1
    assert interests.rows([("a", "STARTED")], is_final) == 0
    assert interests.rows([("a", "SUCCESS")], is_final) == 1

    assert one.rows == other.rows == [("a", "STARTED"), ("a", "SUCCESS")]
    assert len(interests) == 0


def test_registrations_are_renewed_before_they_run_out() -> None:
    interests = Interests()
    interests.add(["a"], Waiting())
    interests.plan(0.0, ())

    assert interests.plan(RENEW - 1, ()).register == []
    assert interests.plan(RENEW + LAST_LOOK, ()).register == ["a"]


def test_on_a_new_connection_everything_is_registered_and_read_again() -> None:
    interests = Interests()
    interests.add(["a"], Waiting())
    interests.plan(0.0, ())

    interests.connected(listening=True)

    assert interests.plan(0.01, ())[:3] == (["a"], [], ["a"])


def test_without_notifications_results_are_polled_ever_more_slowly() -> None:
    interests = Interests()
    interests.connected(listening=False)
    interests.add(["a"], Waiting())
    now, polls = 0.0, []
    for _ in range(20):
        plan = interests.plan(now, ())
        assert plan.register == plan.unregister == []
        polls.append(plan.sleep)
        now += plan.sleep

    assert (polls[0], polls[-1]) == pytest.approx((FIRST_POLL, LAST_POLL))
    assert [round(one, 6) for one in polls] == sorted(round(one, 6) for one in polls)


def test_registrations_are_taken_back_in_bulk() -> None:
    interests, waiting = Interests(), Waiting()
    names = [f"t{number}" for number in range(MANY)]
    interests.add(names, waiting)
    interests.plan(0.0, ())
    interests.rows([(name, "SUCCESS") for name in names[:-1]], is_final)

    assert interests.plan(0.01, ()).unregister == []
    interests.remove(names[-1:], waiting)
    assert interests.plan(0.01, ()).unregister == sorted(names)


def test_what_is_wanted_again_is_not_taken_back() -> None:
    interests, waiting = Interests(), Waiting()
    interests.add(["a"], waiting)
    interests.plan(0.0, ())
    interests.rows([("a", "SUCCESS")], is_final)
    interests.add(["a"], waiting)

    plan = interests.plan(0.01, ())

    assert (plan.register, plan.unregister) == (["a"], [])


def test_clearing_says_what_is_registered_still() -> None:
    interests, waiting = Interests(), Waiting()
    interests.add(["a", "b"], waiting)
    interests.plan(0.0, ())
    interests.rows([("a", "SUCCESS")], is_final)
    interests.add(["new"], waiting)

    assert sorted(interests.clear()) == ["a", "b"]
    assert len(interests) == 0
