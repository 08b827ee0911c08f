"""The data that operations take and return. No I/O here.

Lanes place a message inside its queue's table and are the first column of its only wide index:

=============  ===================================================================
``0 … 9``      ready, by priority; 9 is claimed first
``-1 … -10``   delayed, of priority ``-1 - lane``; claimable once ``due_at`` has passed
``-100``       dead
=============  ===================================================================

A lane is entered at enqueue, retry and replay, never at claim, so a claim touches no index.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

import msgspec

from pgqrs_core.errors import InvalidArgument, InvalidQueueName
from pgqrs_core.headers import decode_headers, discreet, encode_headers, show_headers
from pgqrs_core.wording import show_number

__all__ = [
    "CLAIM_LANES",
    "DEAD_LANE",
    "MAX_BODY_BYTES",
    "MAX_PRIORITY",
    "ArchivedMessage",
    "DeadMessage",
    "Delivery",
    "InspectedMessage",
    "Lease",
    "Metrics",
    "Queue",
    "QueueOptions",
    "Snapshot",
    "check_key",
    "check_name",
    "check_number",
    "check_text",
    "decode_headers",
    "delayed_lane",
    "discreet",
    "encode_headers",
    "read_label",
    "show_headers",
]

_LABEL: Final = re.compile(r"pgqrs queue (\d{1,9}): (.*)", re.DOTALL)

MAX_PRIORITY: Final = 9
DEAD_LANE: Final = -100
#: The most that a queue can be told to take as one body.
MAX_BODY_BYTES: Final = 268_435_456
MAX_SECONDS: Final = 10 * 365 * 86_400


def delayed_lane(priority: int) -> int:
    """Return the lane of delayed messages of ``priority``."""
    return -1 - priority


#: Every lane that a claim looks into, in order: by priority, and among equals those that had to wait first.
CLAIM_LANES: Final[tuple[int, ...]] = tuple(
    lane for priority in range(MAX_PRIORITY, -1, -1) for lane in (delayed_lane(priority), priority)
)


def check_name(name: object) -> str:
    """Return ``name`` if a queue may be called so.

    Any text of 1 to 255 characters will do, NUL and lone surrogates excepted: PostgreSQL's text cannot hold them.

    Raises:
        InvalidQueueName: if it may not.
    """
    expected = _flaw(name)
    if expected is not None:
        raise InvalidQueueName(name, expected)
    return name  # type: ignore[return-value]


def check_key(key: object) -> None:
    """Raise `InvalidArgument` unless ``key`` may be an idempotency key: the same texts as names of queues."""
    expected = _flaw(key)
    if expected is not None:
        raise InvalidArgument("idempotency_key", key, expected)


def check_text(parameter: str, text: object) -> None:
    """Raise `InvalidArgument` unless ``text`` is one that PostgreSQL can hold."""
    expected = "a text" if not isinstance(text, str) else _unstorable(text)
    if expected is not None:
        raise InvalidArgument(parameter, text, expected)


def _flaw(text: object) -> str | None:
    """Tell what a short text should be and is not."""
    if not isinstance(text, str) or not 1 <= len(text) <= 255:
        return "a text of 1 to 255 characters"
    return _unstorable(text)


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "free of NUL characters"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "valid Unicode, free of lone surrogates"
    return None


class QueueOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a queue treats its messages. Fixed per queue, stored beside its name."""

    #: How long a claimed message is hidden from others unless the lease is renewed, in seconds (0.1 to 43,200).
    lease_seconds: float = 30.0
    #: Deliveries before a message is dead-lettered (1 to 1,000,000). Counted at claim, so crashes count.
    max_attempts: int = 5
    #: The delay before the second attempt, in seconds (0 to 86,400).
    backoff_base: float = 1.0
    #: By what each further delay is multiplied (1 to 100).
    backoff_factor: float = 2.0
    #: The longest delay, in seconds (0 to 2,592,000).
    backoff_cap: float = 3600.0
    #: The part of a delay that is drawn at random, so that messages which failed together do not return together
    #: (0 to 1): 0.2 spreads a delay of 10 s over 8 to 10 s.
    backoff_jitter: float = 0.2
    #: Whether there is an archive table for ``archive()`` to move messages to.
    archive: bool = True
    #: After how many seconds archived messages are removed; None keeps them.
    archive_retention_seconds: float | None = None
    #: After how many seconds dead messages are removed; None keeps them.
    dead_retention_seconds: float | None = None
    #: For how many seconds an idempotency key is known (1 to 315,360,000).
    idempotency_seconds: float = 86_400.0
    #: The largest serialised body, in bytes (1 to 268,435,456).
    max_body_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        """Check every range, so that what is stored is sound."""
        check_number("lease_seconds", self.lease_seconds, 0.1, 43_200)
        check_number("max_attempts", self.max_attempts, 1, 1_000_000, whole=True)
        check_number("backoff_base", self.backoff_base, 0, 86_400)
        check_number("backoff_factor", self.backoff_factor, 1, 100)
        check_number("backoff_cap", self.backoff_cap, 0, 2_592_000)
        check_number("backoff_jitter", self.backoff_jitter, 0, 1)
        check_number("idempotency_seconds", self.idempotency_seconds, 1, MAX_SECONDS)
        check_number("max_body_bytes", self.max_body_bytes, 1, MAX_BODY_BYTES, whole=True)
        if not isinstance(self.archive, bool):
            raise InvalidArgument("archive", self.archive, "True or False")
        for name in ("archive_retention_seconds", "dead_retention_seconds"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, MAX_SECONDS)

    def backoff(self, attempt: int) -> float:
        """Return the longest delay before the attempt after ``attempt``, in seconds, before jitter."""
        # A factor to the power of a large attempt overflows; by then the cap is long reached.
        try:
            delay = self.backoff_base * self.backoff_factor ** max(attempt - 1, 0)
        except OverflowError:
            delay = self.backoff_cap
        return min(delay, self.backoff_cap)


def check_number(
    parameter: str, value: object, low: float, high: float, *, whole: bool = False, above: bool = False
) -> None:
    """Raise `InvalidArgument` unless ``value`` is a number from ``low`` to ``high`` (``above``: greater than low)."""
    kind = "a whole number" if whole else "a number"
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    # NaN fails both comparisons and so is refused as well.
    if not right or not (low < value if above else low <= value) or not value <= high:  # type: ignore[operator]
        span = (
            f"above {show_number(low)} and at most {show_number(high)}"
            if above
            else f"from {show_number(low)} to {show_number(high)}"
        )
        raise InvalidArgument(parameter, value, f"{kind} {span}")


class Queue(msgspec.Struct, frozen=True):
    """A queue as stored: its number, its name, the suffix of its tables, its options.

    Attributes:
        unusable: Which stored options cannot be used, because somebody changed them by hand, and what is wrong with each.
            Their defaults hold.
    """

    id: int
    name: str
    suffix: str
    options: QueueOptions
    paused_at: datetime | None = None
    created_at: datetime | None = None
    unusable: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """What stands as a comment on its table, so that the table alone tells whose it is; see `read_label`."""
        return f"pgqrs queue {self.id}: {self.name}"


def read_label(comment: str) -> tuple[int, str] | None:
    """Return the number and the name of a queue out of the comment on its table; None if it is another one."""
    found = _LABEL.fullmatch(comment)
    return (int(found[1]), found[2]) if found else None


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The right to settle one delivery: where the message lies, and the token that fences it.

    The token is random and made by the claiming client: after an asynchronous failover PostgreSQL may give the
    same message id to another message, and a counter to another claim.
    """

    lane: int
    message_id: int
    token: int
    #: Where the row was when it was claimed, as PostgreSQL writes a ``tid``. A hint: rows move when leases are extended.
    place: str | None = None


class Delivery(msgspec.Struct, gc=False):
    """One message as claimed, its body still bytes. Transforming plugins may change headers and body.

    ``stored`` holds the headers and the body as they lie in the table, where codecs have replaced them.
    """

    lane: int
    id: int
    attempt: int
    priority: int
    enqueued_at: datetime
    content_type: str
    raw_headers: str | None
    body: bytes
    token: int = 0
    place: str | None = None
    stored: tuple[str | None, bytes] | None = None

    __repr__ = discreet

    @property
    def lease(self) -> Lease:
        """What settles this delivery."""
        return Lease(self.lane, self.id, self.token, self.place)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, parsed at each access; assign to change them."""
        return decode_headers(self.raw_headers)

    @headers.setter
    def headers(self, value: dict[str, Any] | None) -> None:
        self.raw_headers = encode_headers(value)


class Snapshot(msgspec.Struct, frozen=True):
    """One message as seen without claiming it."""

    id: int
    state: str
    priority: int
    attempt: int
    enqueued_at: datetime
    due_at: datetime | None
    expires_at: datetime | None
    content_type: str
    headers: dict[str, Any]
    body: bytes

    __repr__ = discreet


class InspectedMessage(msgspec.Struct, frozen=True):
    """One message in any state, as seen without claiming it. ``error`` is that of its last failure; empty without one."""

    id: int
    state: str
    priority: int
    attempt: int
    enqueued_at: datetime
    #: Of a delayed message when it is due, of a dead one when it died.
    due_at: datetime | None
    expires_at: datetime | None
    #: Until when a consumer holds it, or held it last.
    leased_until: datetime | None
    content_type: str
    headers: dict[str, Any]
    error: dict[str, Any]
    body: bytes

    __repr__ = discreet


class DeadMessage(msgspec.Struct, frozen=True):
    """A dead-lettered message: what it was, and why it died."""

    id: int
    priority: int
    attempt: int
    enqueued_at: datetime
    died_at: datetime
    content_type: str
    headers: dict[str, Any]
    error: dict[str, Any]
    body: bytes

    __repr__ = discreet


class ArchivedMessage(msgspec.Struct, frozen=True):
    """A message that was handled and kept."""

    id: int
    attempt: int
    enqueued_at: datetime
    archived_at: datetime
    content_type: str
    headers: dict[str, Any]
    body: bytes

    __repr__ = discreet


class Metrics(msgspec.Struct, frozen=True):
    """The state of one queue. Counts above 10,000 are estimates; ``estimated`` names them."""

    queue: str
    #: Claimable now, delayed messages that have come due included.
    ready: int
    #: Waiting for their time.
    delayed: int
    #: Held by a consumer.
    in_flight: int
    #: Past their time to live and held by no consumer: never delivered, removed by the next maintenance.
    expired: int
    dead: int
    archived: int
    #: Seconds since the oldest ready message was enqueued; None when there is none.
    oldest_ready_seconds: float | None
    #: Seconds until the next delayed message is due; None when there is none.
    next_due_seconds: float | None
    paused: bool
    estimated: tuple[str, ...] = ()
    #: Why the queue could not be read: its table is missing, say. Then all figures are zero, and mean nothing.
    error: str | None = None
