"""``transport_options``, checked: an unknown one is an error, and so is a wrong type; those of other brokers are named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.leftovers import find_leftovers, tell_leftovers
from pgqrs_core.messages import MAX_BODY_BYTES
from pgqrs_core.wording import show_number

__all__ = ["Options"]

#: Options that Kombu itself reads or adds.
_KOMBUS: Final = frozenset(
    [
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
        "connect_retries_timeout",
        "errback",
        "callback",
        "retry_errors",
        "on_revive",
        "client_name",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a connection may be told beside its address."""

    #: The schema that holds the tables.
    schema: str = "pgqrs"
    #: Install pgqrs where the schema does not exist or holds nothing.
    create_schema: bool = True
    #: Seconds for which a delivered message is hidden from others; renewed while its consumer lives.
    lease: float = 30.0
    #: Deliveries before a message is dead-lettered; for queues that are declared with these options.
    max_attempts: int = 20
    #: The most connections of this process to the server, the listening one included.
    max_connections: int = 10
    #: Seconds after which the server cancels a statement; 0 for never.
    query_timeout: float = 30.0
    #: The largest body that queues declared with these options take, in bytes.
    max_body_bytes: int = 16 * 1024 * 1024
    #: Hold messages with an ``eta`` in the database until they are due.
    hold_eta: bool = True
    #: Let Celery's workers listen to each other's events, at the price of statements even when idle.
    gossip: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        _number("lease", self.lease, 1, 43_200)
        _number("max_attempts", self.max_attempts, 1, 1_000_000, whole=True)
        _number("max_connections", self.max_connections, 3, 1_000, whole=True)
        _number("query_timeout", self.query_timeout, 0, 86_400)
        _number("max_body_bytes", self.max_body_bytes, 1, MAX_BODY_BYTES, whole=True)
        for name in ("hold_eta", "gossip"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, "True or False")
        if not isinstance(self.create_schema, bool):
            raise _wrong("create_schema", "True or False")
        if not isinstance(self.schema, str) or not 1 <= len(self.schema) <= 63:
            raise _wrong("schema", "a name of 1 to 63 characters")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any] | None) -> Options:
        """Take ``transport_options``. Those of Redis, RabbitMQ and SQS have no effect, and are named in the log.

        Raises:
            ConfigurationError: naming the options that do not exist, and the nearest that do.
        """
        known = {field.name for field in fields(cls)}
        chosen = {key: value for key, value in (given or {}).items() if key not in _KOMBUS}
        leftovers = find_leftovers(chosen, known)
        tell_leftovers("transport options (broker_transport_options)", leftovers)
        chosen = {key: value for key, value in chosen.items() if key not in leftovers}
        if unknown := [str(key) for key in chosen if key not in known]:
            near = [match for key in unknown for match in difflib.get_close_matches(key, known, n=1)]
            hint = f"did you mean {' and '.join(map(repr, near))}?" if near else f"there are {', '.join(sorted(known))}"
            what = f"option {unknown[0]!r} is" if len(unknown) == 1 else f"options {', '.join(map(repr, unknown))} are"
            raise ConfigurationError(f"transport {what} unknown; {hint}", key=unknown[0])
        return cls(**chosen)


def _number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        raise _wrong(name, f"{kind} from {show_number(low)} to {show_number(high)}")


def _wrong(name: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"transport option {name!r} must be {expected}", key=name)
