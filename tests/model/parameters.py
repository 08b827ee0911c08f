"""What the parameters of statements mean."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from pgqrs_core.testing.by_hand import array, elements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqrs_core.arrays import ByteaArray

__all__ = ["leases_of", "specs_of"]


def bodies_of(parameter: ByteaArray) -> Iterator[bytes]:
    place = 20
    while place < len(parameter.data):
        (length,) = struct.unpack_from("!i", parameter.data, place)
        yield parameter.data[place + 4 : place + 4 + length]
        place += 4 + length


def specs_of(name: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of an enqueue."""
    if name in ("enqueue_plain", "enqueue_unasked"):
        return [{"body": params["body"], "priority": params["priority"]}]
    if name in ("enqueue_one", "enqueue_alike"):
        shared = {"priority": params["priority"], "delay": params["delay"] or 0.0, "ttl": params["ttl"]}
        bodies = [params["body"]] if name == "enqueue_one" else bodies_of(params["bodies"])
        return [{"body": body, **shared} for body in bodies]
    columns = {
        "body": list(bodies_of(params["bodies"])),
        "priority": [int(text) for text in array(params["priorities"])],
        "delay": [float(text) if text else 0.0 for text in elements(params["delays"])],
        "ttl": [float(text) if text else None for text in elements(params["ttls"])],
        "key": elements(params["keys"]) if "keys" in params else [None] * len(elements(params["delays"])),
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def leases_of(params: dict[str, Any]) -> list[tuple[int, int, int]]:
    columns = ([int(text) for text in array(params[name])] for name in ("lanes", "ids", "tokens"))
    return list(zip(*columns))
