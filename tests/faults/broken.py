"""Bugs to put into the engine of one process, by name. The checker has to notice each: see `test_checker.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, Final

from pgqrs_native import traffic

from pgqrs_core import doorbell, engine, interest, leases, marks, settling, watch
from pgqrs_core.operations import claim, settle, settle_many
from pgqrs_core.sql import Query, queries

__all__ = ["BUGS"]


def rewrite(name: str, *changes: tuple[str, str], more: dict[str, tuple[str, str]] | None = None) -> Callable[[], None]:
    """Change the text of one statement of the catalogue, and ``more`` of others."""

    def apply() -> None:
        changed = {
            name: _changed(name, changes),
            **{other: _changed(other, [one]) for other, one in (more or {}).items()},
        }
        claim.queries = settle.queries = settle_many.queries = MappingProxyType({**queries, **changed})

    return apply


def _changed(name: str, changes: Iterable[tuple[str, str]]) -> Query:
    query = queries[name]
    text = query.text
    for old, new in changes:
        assert old in text, f"{name} does not hold {old!r} any more"
        text = text.replace(old, new)
    return Query(name, text, query.flags)


def advance_at_once() -> None:
    """Marks that trust any claim, and never look back."""

    def settled(self: Any, oldest: int, reach: Any, now: float) -> bool:
        for seen in self._pending:
            for lane, top in seen.highest.items():
                self._marks[marks._PLACES[lane]] = top + 1
        self._pending.clear()
        return True

    marks.Marks._settle = settled
    marks.RESCAN = 1e9
    marks.CHEAP = 0.0


def sleep_through() -> None:
    """Producers that ring nobody, and consumers that rely on being rung."""
    doorbell.Doorbell.may_ring = lambda self, number: False
    interest.QUICK = watch.QUICK = watch.POLL = 1e9


def claim_success() -> None:
    """An ack that says yes and does nothing."""

    def ack(queue: Any, leases: Any) -> Any:
        return [True] * len(leases)
        yield

    _replace_settle("ack", ack)


def forget_failures() -> None:
    """A failed message that is thrown away."""
    remove = settle.ack

    def nack(queue: Any, failures: Any, doorbell: Any = None) -> Any:
        yield from remove(queue, [failure.lease for failure in failures])
        return ["nacked"] * len(failures)

    _replace_settle("nack", nack)


def extend_nothing() -> None:
    """A renewal that says yes and does nothing."""

    def extend(queue: Any, leases: Any, lease: float) -> Any:
        return [True] * len(leases)
        yield

    settle.extend = leases.extend = extend


def commit_alone() -> None:
    """An enqueue in the caller's transaction that is committed by itself."""
    run = engine.Engine.run

    def run_in(self: Any, connection: object, make: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, make, *args, **kwargs)

    engine.Engine.run_in = run_in


def _replace_settle(name: str, operation: Any) -> None:
    for module in (settle, traffic, settling):
        setattr(module, name, operation)


def ack_what_is_given_back() -> None:
    """What Kombu's consumer has claimed, and not delivered for want of room or of its connection, and acks all the same."""
    from pgqrs_kombu import intake

    rightly = intake.Verdict

    def wrongly(kind: Any, *rest: Any) -> Any:
        return rightly("ack" if kind == "release" else kind, *rest)

    intake.Verdict = wrongly


def forget_retries() -> None:
    """A retry of Dramatiq's that takes its message away and puts nothing in its place."""
    from pgqrs_dramatiq import publishing

    def replace(queue: Any, lease: Any, *_: Any, **__: Any) -> Any:
        yield from settle.ack(queue, [lease])
        return True

    publishing.replace = replace


#: Picks rows and comes for them a little later, by their keys instead of their places, so that those which somebody else
#: has just changed are found all the same.
_LATER_BY_KEY: Final = (
    ("ctid as place", "row(lane, message_id)::text as place"),
    (
        "where q.ctid = any (array(select place from picked))",
        "where row(q.lane, q.message_id)::text = any (array(select p.place from picked p, pg_sleep(0.02)))",
    ),
)

_ANYWHERE: Final = {"locate": (" and lease_token = a.token", "")}
_WITHOUT_FENCE: Final = (
    ("\n  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]", ""),
)

BUGS: Final[dict[str, Callable[[], None]]] = {
    "": lambda: None,
    "ack without fence": rewrite("ack", *_WITHOUT_FENCE, more=_ANYWHERE),
    "nack without fence": rewrite("nack", *_WITHOUT_FENCE, more=_ANYWHERE),
    "claim without a lock": rewrite("claim", (" for update skip locked", ""), *_LATER_BY_KEY),
    "claim that ignores leases": rewrite("claim", ("lease_until <= statement_timestamp()", "true")),
    "attempt not counted": rewrite("claim", ("set attempt = q.attempt + 1", "set attempt = greatest(q.attempt, 1)")),
    "attempt counted twice": rewrite("claim", ("set attempt = q.attempt + 1", "set attempt = q.attempt + 2")),
    "release that is charged": rewrite(
        "release", ("greatest(q.attempt - %(refund)s, 0)", "q.attempt + %(refund)s * 0")
    ),
    "lease that ends at once": rewrite("claim", ("%(lease)s::float8 * interval", "%(lease)s::float8 * 0 * interval")),
    "claim by the youngest": rewrite("claim", ("order by message_id limit", "order by message_id desc limit")),
    "mark that advances too early": advance_at_once,
    "wake-up lost without polling": sleep_through,
    "ack that does nothing": claim_success,
    "nack that deletes": forget_failures,
    "extension that does nothing": extend_nothing,
    "enqueue outside the transaction": commit_alone,
    "ack of what is given back": ack_what_is_given_back,
    "retry that is not stored": forget_retries,
}
