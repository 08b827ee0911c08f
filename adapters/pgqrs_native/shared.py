"""What both clients do without I/O: checks, options, and the marks of each queue."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pgqrs_core.backoff import Backoff, Retries
from pgqrs_core.errors import ArchiveDisabled, InvalidArgument
from pgqrs_core.logs import Logger
from pgqrs_core.marks import Marks
from pgqrs_core.messages import Lease, Queue, QueueOptions, check_number
from pgqrs_native.message import Message

if TYPE_CHECKING:
    from pgqrs_core.config import Config
    from pgqrs_core.plugins import Plugins

__all__ = [
    "Aside",
    "MarksShelf",
    "by_queue",
    "check_archives",
    "check_batch",
    "check_errors",
    "check_read",
    "check_success",
    "marker",
    "queue_options",
    "retries",
    "scatter",
    "settlement",
]

T = TypeVar("T")


class MarksShelf:
    """The low-water marks that this process has learnt, per queue; one set per claim at a time."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Marks]] = defaultdict(list)

    def take(self, queue_id: int) -> Marks:
        """Return marks for a claim. By number, for a queue that is created anew begins with low ids again."""
        free = self._free[queue_id]
        # Threads may race for the last one.
        try:
            return free.pop()
        except IndexError:
            return Marks()

    def give(self, queue_id: int, marks: Marks) -> None:
        """Keep what a claim has learnt."""
        self._free[queue_id].append(marks)


def queue_options(config: Config, options: dict[str, Any]) -> QueueOptions:
    """Build options; the lease that the configuration gives is the default.

    Raises:
        InvalidArgument: if an option is unknown or out of range.
    """
    known = QueueOptions.__struct_fields__
    for name in options:
        if name not in known:
            raise InvalidArgument("option", name, f"one of {', '.join(known)}")
    return QueueOptions(**{"lease_seconds": config.queue.default_lock_time_seconds, **options})


def check_read(
    config: Config, plugins: Plugins, type_: Any, *, count: object, lock_time: object, wait: object, mismatch: str
) -> None:
    """Raise unless these may be the arguments of a read."""
    check_number("count", count, 1, config.queue.max_batch_size, whole=True)
    if lock_time is not None:
        check_number("lock_time", lock_time, 0.1, 43_200)
    check_number("wait", wait, 0, 86_400)
    if mismatch not in ("bury", "return"):
        raise InvalidArgument("mismatch", mismatch, "'bury' or 'return'")
    plugins.serializers.check_type(type_)


def check_batch(config: Config, count: int) -> None:
    """Raise unless ``count`` messages may be enqueued at once."""
    if count > config.queue.max_batch_size:
        raise InvalidArgument("payloads", f"{count:,} payloads", f"at most {config.queue.max_batch_size:,} at once")


def check_errors(
    messages: Sequence[Message[Any]], errors: Sequence[BaseException | str | None] | None
) -> dict[int, BaseException | str | None]:
    """Return the error of each message, by the message's identity. Raise unless there are as many of them."""
    if errors is not None and len(errors) != len(messages):
        raise InvalidArgument("errors", f"{len(errors)} entries", f"one for each of {len(messages)} messages")
    return dict(zip(map(id, messages), errors or [None] * len(messages)))


def check_success(action: object) -> None:
    """Raise unless this may become of a handled message."""
    if action not in ("ack", "archive"):
        raise InvalidArgument("on_success", action, "'ack' or 'archive'")


def check_archives(queues: Iterable[Queue], action: str) -> None:
    """Raise if handled messages are to be archived in a queue that keeps no archive."""
    for queue in queues:
        if action == "archive" and not queue.options.archive:
            raise ArchiveDisabled(queue.name)


class Aside:
    """The queues that a worker cannot claim from at present, deleted ones for instance, and when to look again.

    The others must not wait for them.
    """

    def __init__(self, log: Logger, longest: float) -> None:
        self._log = log
        self._backoff = Backoff(longest, longest)
        self._again_at: dict[str, float] = {}
        self._said: dict[str, str] = {}

    def put(self, name: str, error: Exception, seconds: float) -> None:
        """Set a queue aside for some seconds, ever longer, and say why unless that was the last thing said of it."""
        self._again_at[name] = time.monotonic() + self._backoff.failed(name, first=seconds)
        if self._said.get(name) != str(error):
            self._said[name] = str(error)
            self._log.warning("cannot claim from queue %r, which is tried again: %s", name, error)

    def rest(self, name: str, seconds: float) -> None:
        """Set a queue aside for some seconds; nothing failed."""
        self._again_at[name] = time.monotonic() + seconds

    def works(self, name: str) -> None:
        """Note that a claim from a queue did not fail."""
        if self._backoff and self._backoff.succeeded(name):
            self._said.pop(name, None)

    def others(self, names: Iterable[str]) -> list[str]:
        """Return the names that are not set aside."""
        return [name for name in names if name not in self._again_at]

    def patience(self, longest: float) -> float:
        """Return for how many seconds to wait for news of the others."""
        soonest = min(self._again_at.values(), default=float("inf")) - time.monotonic()
        return max(min(longest, soonest), 0.0)

    def due(self) -> list[str]:
        """Return the queues to look at again; they are not set aside any more."""
        now = time.monotonic()
        due = [name for name, at in self._again_at.items() if at <= now]
        for name in due:
            del self._again_at[name]
        return due


def marker(messages: Sequence[Message[Any]]) -> Callable[[Lease], None]:
    """Return a function that marks the message of a lost lease."""

    def lost(lease: Lease) -> None:
        for message in messages:
            if message.lease == lease:
                message.lease_lost = True

    return lost


class Keeper(Protocol):
    """What keeps leases alive, blocking or not."""

    def drop(self, leases: Iterable[Lease]) -> None:
        """Renew these no more."""

    def settling(self, leases: Iterable[Lease], *, begun: bool = True) -> None:
        """These are about to be settled, or could not be."""


class settlement:  # noqa: N801 - it is used as a context manager, and one by a generator takes three times as long
    """Stop the renewal of messages that are settled in the block; if it raises they are held on to."""

    __slots__ = ("_keeper", "_leases")

    def __init__(self, keeper: Keeper, messages: Sequence[Message[Any]]) -> None:
        self._keeper = keeper
        self._leases = [message.lease for message in messages]

    def __enter__(self) -> None:
        self._keeper.settling(self._leases)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._keeper.drop(self._leases)
        else:
            self._keeper.settling(self._leases, begun=False)


def retries(messages: Sequence[Message[Any]]) -> Retries:
    """Return for how long the end of a ``with`` block tries to settle what its body has handled: as long as one lease."""
    return Retries(max((message.lease_seconds for message in messages), default=0.0))


def by_queue(messages: Iterable[Message[Any]]) -> list[tuple[Queue, list[Message[Any]]]]:
    """Group messages by their queue."""
    groups: dict[int, tuple[Queue, list[Message[Any]]]] = {}
    for message in messages:
        queue = message._queue
        groups.setdefault(queue.id, (queue, []))[1].append(message)
    return list(groups.values())


def scatter(messages: Sequence[Message[Any]], answers: Iterable[tuple[Sequence[Message[Any]], Sequence[T]]]) -> list[T]:
    """Put answers that came group by group into the order of ``messages``."""
    found = {id(message): answer for group, results in answers for message, answer in zip(group, results)}
    return [found[id(message)] for message in messages]
