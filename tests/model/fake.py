"""A server for the simulation: answers the catalogue's statements by name, from the model, with transactions and snapshots.

What it believes of each statement the state machine compares with PostgreSQL. What it adds is what no server repeats: an id
is drawn before its transaction has a number, and that before the commit, with as much time in between as the simulation
likes; whoever needs a row or key that an open transaction has changed waits.
"""

from __future__ import annotations

import random
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from parameters import leases_of, specs_of
from table import Row, Table

from pgqrs_core.effects import Execute
from pgqrs_core.testing.by_hand import array, elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqrs_core.messages import Queue

__all__ = ["Blocked", "Claim", "FakeServer", "Transaction"]


class Blocked(Exception):
    """The statement waits for another transaction: run it again later."""


@dataclass
class Transaction:
    """What is to happen when it ends."""

    xid: int | None = None
    #: Whether it has locked the queue to write.
    writes: bool = False
    on_commit: list[Callable[[], None]] = field(default_factory=list)
    on_rollback: list[Callable[[], None]] = field(default_factory=list)


@dataclass
class Claim:
    """What one claim took, for the judge."""

    token: int
    ids: list[int]
    #: Messages that it could have taken and that were before one that it took, as they were.
    overtaken: list[Row]
    #: Those that somebody held at the time.
    stolen: list[int]


class FakeServer:
    """One queue, its transactions, and who listens."""

    def __init__(self, queue: Queue, chance: random.Random) -> None:
        self.queue = queue
        self.chance = chance
        self.table = Table(max_attempts=queue.options.max_attempts, key_seconds=queue.options.idempotency_seconds)
        self.next_xid = 1000
        self.running: dict[int, Transaction] = {}
        self.drawn_at: dict[int, float] = {}
        self.taken_keys: dict[str, Transaction] = {}
        #: Until when each process sleeps, and which of them live.
        self.waiters: dict[int, float] = {}
        self.living: set[int] = set()
        #: What is said to whom.
        self.notifications: list[tuple[int, str]] = []
        #: What became of messages: id, and how it went.
        self.fates: dict[int, str] = {}
        self.committed: dict[int, bytes] = {}
        self.applied: set[tuple[str, tuple[int, int, int]]] = set()
        self.claims: dict[int, Claim] = {}

    # Transactions.

    def register(self, transaction: Transaction) -> None:
        """Give it a number: from now on snapshots show that it runs."""
        if transaction.xid is None:
            transaction.xid = self.next_xid
            self.next_xid += 1
            self.running[transaction.xid] = transaction

    def end(self, transaction: Transaction, *, commits: bool) -> None:
        for action in transaction.on_commit if commits else transaction.on_rollback:
            action()
        if transaction.xid is not None:
            self.running.pop(transaction.xid, None)
        for key in [key for key, holder in self.taken_keys.items() if holder is transaction]:
            del self.taken_keys[key]

    # Enqueue, in the steps between which others may run.

    def draw(self, effect: Execute, transaction: Transaction) -> list[tuple[Any, ...]]:
        """Insert rows that nobody else sees until the transaction commits."""
        transaction.writes = True
        specs = specs_of(effect.query.name, dict(effect.params))
        keys = [spec["key"] for spec in specs if spec.get("key")]
        if keys:
            # This statement takes its number first.
            self.register(transaction)
        if any(self.taken_keys.get(key, transaction) is not transaction for key in keys):
            raise Blocked
        asked = effect.query.name != "enqueue_unasked"
        awaited = asked and any(until > self.table.now for until in self.waiters.values())
        keyed: list[tuple[Any, ...]] = []
        others = []
        for spec in specs:
            key = spec.pop("key", None)
            known = self.table.known(key) if key else None
            if known is not None:
                keyed.append((known, awaited, key))
                continue
            row = self._insert(transaction, spec)
            if key:
                self._take_key(transaction, key, row.id)
                keyed.append((row.id, awaited, key))
            else:
                others.append((row.id, awaited, None))
        keyed = [(number, told, bytes.fromhex(key.removeprefix("\\x"))) for number, told, key in keyed]
        return [*keyed, *others] if keys else [row[:2] for row in others]

    def _insert(self, transaction: Transaction, spec: dict[str, Any]) -> Row:
        row = self.table.insert(self.table.draw(), spec.pop("body"), **spec)
        row.hidden = True
        self.drawn_at[row.id] = self.table.now

        def appear() -> None:
            row.hidden = False
            row.free_since = max(row.free_since, self.table.now)
            self.committed[row.id] = row.body

        transaction.on_commit.append(appear)
        transaction.on_rollback.append(lambda: self.table.remove(row))
        return row

    def _take_key(self, transaction: Transaction, key: str, message_id: int) -> None:
        before = self.table.keys.get(key)
        self.taken_keys[key] = transaction
        self.table.remember(key, message_id)

        def forget() -> None:
            del self.table.keys[key]
            if before is not None:
                self.table.keys[key] = before

        transaction.on_rollback.append(forget)

    # All other statements: each is over at once, unless in a transaction.

    def perform(self, effect: Execute, transaction: Transaction) -> list[tuple[Any, ...]]:
        """Run a statement.

        Raises:
            Blocked: it has to wait.
        """
        transaction.writes = True
        rows: list[tuple[Any, ...]] = getattr(self, f"_{effect.query.name}")(dict(effect.params), transaction)
        return rows

    def _claim(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        starts = dict(zip(map(int, array(params["lanes"])), map(int, array(params["marks"])), strict=True))
        oldest, newest = min(self.running, default=self.next_xid), self.next_xid
        self.next_xid += 1
        free = self.table.candidates()
        leased = {row.id for row in self.table.rows.values() if row.lease_until > self.table.now}
        taken = self.table.claim(params["limit"], params["lease"], params["token"], starts)
        last = max((free.index(row) for row in taken if row in free), default=-1)
        overtaken = [copy(row) for row in free[: last + 1] if row not in taken]
        ids = [row.id for row in taken]
        self.claims[params["token"]] = Claim(params["token"], ids, overtaken, [one for one in ids if one in leased])
        rows = [
            (
                *(*row.lease[:2], row.attempt, row.priority, row.enqueued_at, "", None, row.body, row.token),
                *(row.place, oldest, newest),
            )
            for row in taken
        ]
        # What an UPDATE returns has no order.
        self.chance.shuffle(rows)
        return rows

    def _oldest_writer(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        writers = (xid for xid, transaction in self.running.items() if transaction.writes)
        return [(min(writers, default=self.next_xid),)]

    def _held(self, params: dict[str, Any], name: str) -> list[tuple[int, Row]]:
        found = []
        # An extension looks for the rows by itself.
        places = None if name == "extend" else elements(params["places"])
        for place, lease in enumerate(leases_of(params)):
            row = self.table.held(lease)
            if row is not None and (places is None or places[place] == row.place):
                if row.locked:
                    raise Blocked
                found.append((place, row))
                self.applied.add((name, lease))
        return found

    def _ack(self, params: dict[str, Any], transaction: Transaction, *, name: str = "ack") -> list[tuple[Any, ...]]:
        rows = [row for _, row in self._held(params, name)]
        for row in rows:
            row.locked = True
            transaction.on_commit.append(lambda row=row: self._settle(row, name))  # type: ignore[misc]
            transaction.on_rollback.append(lambda row=row: self._spare(row, name))  # type: ignore[misc]
        return [(row.id,) for row in rows]

    def _spare(self, row: Row, name: str) -> None:
        row.locked = False
        self.applied.discard((name, row.lease))
        row.free_since = max(row.free_since, self.table.now)

    def _settle(self, row: Row, name: str) -> None:
        self.fates[row.id] = name
        row.locked = False
        (self.table.remove if name == "ack" else self.table.put_away)(row)

    def _archive(self, params: dict[str, Any], transaction: Transaction) -> list[tuple[Any, ...]]:
        return self._ack(params, transaction, name="archive")

    def _nack(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        delays = [float(text) for text in array(params["delays"])]
        burials = [text == "t" for text in array(params["burials"])]
        errors = [msgspec.json.decode(text)["type"] if text else None for text in elements(params["errors"])]
        self.table.max_attempts = params["max_attempts"]
        rows = []
        for place, row in self._held(params, "nack"):
            self.table.nack(row, delays[place], bury=burials[place], error=errors[place])
            rows.append((row.id, row.lane))
        return rows

    def _release(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        rows = [row for _, row in self._held(params, "release")]
        for row in rows:
            self.table.release(row, refund=bool(params["refund"]))
        return [(row.id,) for row in rows]

    def _locate(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        found = [self.table.held(lease) for lease in leases_of(params)]
        return [(row.id, row.place) for row in found if row is not None]

    def _extend(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        rows = [row for _, row in self._held(params, "extend")]
        for row in rows:
            self.table.extend(row, params["lease"])
        return [(row.id,) for row in rows]

    # Wake-ups.

    def _watch(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        me = params["consumer"]
        others = self._sleepers(me)
        first = sum(number < me for number in others)
        died = len(self.waiters.keys() - {me}) > len(others)
        self.waiters = {number: self.waiters[number] for number in others}
        self.waiters[me] = self.table.now + params["seconds"]
        if died or (params["fresh"] and (len(others) == 1 or first < 2)):
            self._tell_first_two(others)
        return [(self.queue.id, len(others), first, 0)]

    def _unwatch(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        self.waiters.pop(params["consumer"], None)
        if params["polled"]:
            self._tell_first_two(self._sleepers(params["consumer"]))
        return []

    def _sleepers(self, but: int) -> list[int]:
        """The processes that sleep and live, in the order of their numbers."""
        now = self.table.now
        return sorted(
            number for number, until in self.waiters.items() if until > now and number in self.living and number != but
        )

    def _tell_first_two(self, sleepers: list[int]) -> None:
        self.notifications += [(number, f"{self.queue.id} poll") for number in sleepers[:2]]

    def _probe(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        found = [] if self.table.paused else self.table.candidates()
        first = (found[0].id, self.table.now - found[0].free_since) if found else (None, None)
        return [(self.queue.id, bool(found), self.table.figures().next_due, *first)]

    def _notify(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        sleepers = self._sleepers(params["consumer"])
        chosen = self.chance.sample(sleepers, min(params["count"], len(sleepers)))
        self.notifications += [(number, params["payload"]) for number in chosen]
        return [("",)] * len(chosen)

    # Housekeeping and administrators.

    def _forget_waiters(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        return []

    def _list_queues(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        queue = self.queue
        return [(queue.id, queue.name, queue.suffix, msgspec.json.encode(queue.options).decode(), None, None)]

    def _expire(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        before = set(self.table.rows)
        count = self.table.expire()
        self.fates.update(dict.fromkeys(before - set(self.table.rows), "expired"))
        return [(0,)] * count

    def _prune_keys(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        return [(1,)] * self.table.prune_keys()

    def _dead_tuples(self, _: dict[str, Any], __: Transaction) -> list[tuple[Any, ...]]:
        return [(0,)]

    def _dead_ids(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        ids = sorted(row.id for row in self.table.dead() if row.id > params["after"])
        return [(number,) for number in ids[: params["limit"]]]

    def _replay_dead(self, params: dict[str, Any], _: Transaction) -> list[tuple[Any, ...]]:
        ids = {int(text) for text in array(params["ids"])}
        rows = [row for row in self.table.dead() if row.id in ids]
        for row in rows:
            self.table.revive(row)
        return [(row.id,) for row in rows]
