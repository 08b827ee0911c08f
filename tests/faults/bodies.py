"""Which message a stored body is, whoever wrote it."""

from __future__ import annotations

import json

__all__ = ["key_of"]


def key_of(body: bytes) -> str:
    """Return the key that its producer gave a message.

    The native client and Kombu store the key as it is, Celery and Dramatiq as the argument of a task. A retry of
    Dramatiq's is a message of its own, in the place of the one that failed: ``key/1``, ``key/2`` …
    """
    if body[:1] not in (b"{", b"["):
        return body.decode()
    content = json.loads(body)
    if isinstance(content, list):
        return str(content[0][0])
    retries = content["options"].get("retries", 0)
    return f"{content['args'][0]}/{retries}" if retries else str(content["args"][0])
