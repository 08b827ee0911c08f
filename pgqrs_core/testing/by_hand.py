"""Answering an operation by hand: no server, no mock."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pgqrs_core.drivers.statements import Statements
from pgqrs_core.effects import Execute, Transact
from pgqrs_core.errors import PgqrsError
from pgqrs_core.messages import CLAIM_LANES, Queue, QueueOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgqrs_core.effects import Effect, Op

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


class Played(NamedTuple):
    """What an operation asked for, and what it returned in the end."""

    effects: list[Effect]
    result: Any

    @property
    def names(self) -> list[str]:
        """The statements it ran, by name; a wait is called ``wait``."""
        return [effect.query.name if isinstance(effect, Execute) else "wait" for effect in self.effects]

    def params(self, place: int) -> dict[str, Any]:
        """The parameters of its n-th statement."""
        effect = self.effects[place]
        assert isinstance(effect, Execute)
        return dict(effect.params)


def play(op: Op[Any], *replies: Any) -> Played:
    """Run an operation to its end; an error among the replies is thrown at it.

    It must ask for exactly as many effects as there are replies; what it does in a transaction of its own counts as if it
    did it itself. What it raises passes through.
    """
    op = _inline(op)
    effects: list[Effect] = []
    waiting = list(replies)
    try:
        effects.append(next(op))
        while True:
            assert waiting, f"nobody expected it to ask for {effects[-1]}"
            reply = waiting.pop(0)
            effects.append(op.throw(reply) if isinstance(reply, PgqrsError) else op.send(reply))
    except StopIteration as end:
        assert not waiting, f"it never asked for what should be answered with {waiting}"
        return Played(effects, end.value)


def _inline(op: Op[Any]) -> Op[Any]:
    """Run the transactions of an operation as parts of it."""
    try:
        effect = next(op)
        while True:
            try:
                reply = (yield from _inline(effect.make())) if isinstance(effect, Transact) else (yield effect)
            except PgqrsError as error:
                effect = op.throw(error)
            else:
                effect = op.send(reply)
    except StopIteration as end:
        return end.value


def elements(literal: str) -> list[str | None]:
    """Return the elements of an array literal of texts; its quoting is that of JSON."""
    found: list[str | None] = msgspec.json.decode("[" + literal[1:-1].replace("NULL", "null") + "]")
    return found


def make_queue(name: str = "jobs", number: int = 7, **options: Any) -> Queue:
    """A queue as if it had been read from its table."""
    return Queue(number, name, name, QueueOptions(**options))


def queue_row(name: str = "jobs", number: int = 7, **options: Any) -> tuple[Any, ...]:
    """The row of a queue."""
    text = msgspec.json.encode(QueueOptions(**options)).decode()
    return (number, name, name, text, None, NOON)


def claimed_row(
    message_id: int, *, lane: int = 0, attempt: int = 1, token: int = 99, oldest: int = 100, newest: int = 100
) -> tuple[Any, ...]:
    """A row as the claim returns it."""
    priority = lane if lane >= 0 else -1 - lane
    return (
        lane,
        message_id,
        attempt,
        priority,
        NOON,
        "text/plain",
        None,
        b"x",
        token,
        f"(0,{message_id})",
        oldest,
        newest,
    )


def array(text: object) -> list[str]:
    """The elements of an array literal."""
    assert isinstance(text, str)
    inside = text.removeprefix("{").removesuffix("}")
    return inside.split(",") if inside else []


def starts(text: str) -> dict[int, int]:
    """Where a claim starts to read, by lane."""
    return dict(zip(CLAIM_LANES, map(int, array(text)), strict=True))


def text_of(effect: Execute, schema: str = "pgqrs") -> str:
    """The statement as the server gets it."""
    return Statements(schema).render(effect).named.decode()


def ints(values: Iterable[str]) -> list[int]:
    """Numbers from their texts."""
    return [int(value) for value in values]
