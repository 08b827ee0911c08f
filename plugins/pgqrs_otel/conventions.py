"""The names of OpenTelemetry's semantic conventions for messaging, and ours beside them."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ADAPTER",
    "ATTEMPT",
    "BATCH_COUNT",
    "DESTINATION",
    "ERROR_TYPE",
    "MESSAGE_ID",
    "OPERATION_NAME",
    "OPERATION_TYPE",
    "OUTCOME",
    "SYSTEM",
    "about",
]

SYSTEM: Final = "messaging.system"
DESTINATION: Final = "messaging.destination.name"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGE_ID: Final = "messaging.message.id"
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
ADAPTER: Final = "pgqrs.adapter"
ATTEMPT: Final = "pgqrs.attempt"
OUTCOME: Final = "pgqrs.outcome"


def about(queue: str, adapter: str, name: str, kind: str) -> dict[str, str | int]:
    """Return the attributes that every span and every measurement has."""
    return {SYSTEM: "pgqrs", DESTINATION: queue, ADAPTER: adapter, OPERATION_NAME: name, OPERATION_TYPE: kind}
