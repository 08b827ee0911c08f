"""Chords, as operations: counting the header's tasks, and who publishes the body."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pgqrs_celery.sql import queries
from pgqrs_core.effects import Execute, Op, Rows

__all__ = [
    "Claimed",
    "Part",
    "abandoned",
    "add_to_chord",
    "claim_chord",
    "extend_claim",
    "finish_chord",
    "keep_body",
    "return_part",
    "size_chord",
    "start_chord",
]


class Part(Struct, frozen=True):
    """What one header task returned; ``result`` is encoded."""

    group_id: str
    place: int
    task_id: str
    status: str
    result: bytes
    content_type: str


class Claimed(Struct, frozen=True):
    """A complete chord, and all that its claimer needs. ``parts``: place, task id, status, result, content type."""

    group_id: str
    claim: int
    header: bytes | None
    content_type: str | None
    parts: Rows
    body: bytes | None = None
    body_type: str | None = None


def start_chord(group_id: str, header: bytes | None, content_type: str, expires: float | None) -> Op[None]:
    """Note a chord that is about to be sent, with the structure of its header's results where groups are nested.

    One of the same id that is over begins anew, for which a producer lacks the right; one on its way goes on.
    """
    params = {"group_id": group_id, "header": header, "content_type": content_type, "expires": expires}
    if not (yield Execute(queries["start_chord"], params)):
        found = yield Execute(queries["look_at_chord"], {"group_id": group_id})
        if not found or found[0][1]:
            yield Execute(queries["restart_chord"], params)


def size_chord(group_id: str, size: int, expires: float | None) -> Op[None]:
    """Say how many header tasks there are. To change it afterwards takes the rights of a consumer."""
    params = {"group_id": group_id, "size": size, "expires": expires}
    if not (yield Execute(queries["size_new_chord"], params)):
        found = yield Execute(queries["look_at_chord"], {"group_id": group_id})
        if [tuple(row) for row in found] != [(size, False)]:
            yield Execute(queries["size_chord"], params)


def add_to_chord(group_id: str, expires: float | None) -> Op[None]:
    """Count one header task more."""
    yield Execute(queries["add_to_chord"], {"group_id": group_id, "expires": expires})


def return_part(part: Part, *, claim: int, seconds: float, expires: float | None) -> Op[Claimed | None]:
    """Count a header task that returned.

    Args:
        part: what it returned.
        claim: a random number; who completes the chord gets it under this number.
        seconds: for how long.
        expires: seconds for which an unfinished chord is kept; None for ever.

    Returns:
        The chord, if this completed it, or if it was complete and nobody has come to publish its body.
    """
    values = {name: getattr(part, name) for name in Part.__struct_fields__}
    rows = yield Execute(queries["return_part"], {**values, "claim": claim, "seconds": seconds, "expires": expires})
    if not rows:
        return (yield from claim_chord(part.group_id, claim=claim, seconds=seconds))
    claimed, header, content_type = rows[0]
    if not claimed:
        return None
    parts = yield Execute(queries["read_parts"], {"group_id": part.group_id})
    return Claimed(part.group_id, claim, header, content_type, parts)


def claim_chord(group_id: str, *, claim: int, seconds: float) -> Op[Claimed | None]:
    """Take over a complete chord whose claimer did not finish it in time; None if there is nothing to take over."""
    rows = yield Execute(queries["claim_chord"], {"group_id": group_id, "claim": claim, "seconds": seconds})
    if not rows:
        return None
    header, content_type, body, body_type = rows[0]
    parts = yield Execute(queries["read_parts"], {"group_id": group_id})
    return Claimed(group_id, claim, header, content_type, parts, body, body_type)


def keep_body(chord: Claimed, body: bytes, body_type: str) -> Op[None]:
    """Leave the body for whoever may have to take over."""
    params: dict[str, Any] = {"group_id": chord.group_id, "claim": chord.claim}
    yield Execute(queries["keep_body"], {**params, "body": body, "body_type": body_type})


def extend_claim(chord: Claimed, seconds: float) -> Op[bool]:
    """Keep the claim for a while longer; False when somebody else has taken over."""
    params = {"group_id": chord.group_id, "claim": chord.claim, "seconds": seconds}
    rows = yield Execute(queries["extend_claim"], params)
    return bool(rows)


def finish_chord(chord: Claimed) -> Op[None]:
    """Note that the chord is over. Without effect for a claim that has passed on."""
    yield Execute(queries["finish_chord"], {"group_id": chord.group_id, "claim": chord.claim})


def abandoned(limit: int = 100) -> Op[list[str]]:
    """Return the chords whose claim has run out, the oldest first."""
    rows = yield Execute(queries["abandoned_chords"], {"limit": limit})
    return [row[0] for row in rows]
