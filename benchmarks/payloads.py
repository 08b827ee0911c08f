"""What the messages hold: 200 bytes, as raw bytes and as JSON."""

from __future__ import annotations

import json
import random
from typing import Any, Final

__all__ = ["BYTES", "JSON", "JSON_BYTES", "SIZE"]

#: Bytes of every body.
SIZE: Final = 200

BYTES: Final[bytes] = random.Random(200).randbytes(SIZE)


def _json() -> dict[str, Any]:
    payload: dict[str, Any] = {
        "task": "process_data",
        "id": 123456,
        "user": {"name": "Ada Lovelace", "email": "ada@example.org"},
        "tags": ["new", "urgent"],
        "text": "",
    }
    payload["text"] = "".join(random.Random(7).choices("abcdefghij ", k=SIZE - len(_text(payload))))
    return payload


def _text(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()


JSON: Final = _json()
JSON_BYTES: Final = _text(JSON)
