"""Which results this process waits for, and what to do about each next. Pure: no connection, no thread, no sleep.

A result that is waited for is **registered** in the database, so that whoever stores it sends a NOTIFY, and read **once
more**. One that was being stored while it was registered may miss both, so it is read again after `FIRST_LOOK` seconds,
then at growing intervals up to `LAST_LOOK`: such a result is late by a few times what its storing took, never more. The
last interval is also the health check of the connection. Where no notification can arrive, results are read at
intervals from `FIRST_POLL` to `LAST_POLL` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["REGISTERED_SECONDS", "Interests", "Plan", "Watcher"]

FIRST_LOOK: Final = 0.05
LOOK_GROWTH: Final = 5.0
LAST_LOOK: Final = 30.0

FIRST_POLL: Final = 0.02
POLL_GROWTH: Final = 1.5
LAST_POLL: Final = 1.0

#: For how many seconds a registration is good, and after how many it is renewed.
REGISTERED_SECONDS: Final = 120.0
RENEW: Final = 60.0
#: Registrations that are not needed any more are removed when there are so many, or when there is time.
MANY: Final = 100


class Plan(NamedTuple):
    """What to do now, and for how many seconds there is nothing to do afterwards."""

    register: list[str]
    unregister: list[str]
    read: list[str]
    sleep: float


class Watcher(Protocol):
    """Somebody who waits for results."""

    def receive(self, row: Any) -> None:
        """Take a row, as ``read_results`` returns it. Must not block."""


class _Interest:
    __slots__ = ("interval", "read_at", "registered_at", "row", "watchers")

    def __init__(self) -> None:
        self.watchers: set[Watcher] = set()
        self.registered_at: float | None = None
        self.read_at = 0.0
        self.interval = 0.0
        self.row: Any = None


class Interests:
    """The results that are waited for. The caller serialises all calls."""

    def __init__(self) -> None:
        self._wanted: dict[str, _Interest] = {}
        self._done: set[str] = set()
        #: When there is something to do next, news apart.
        self._next = 0.0
        self.listening = True

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def wanted(self) -> list[str]:
        """The tasks whose results are waited for."""
        return list(self._wanted)

    def add(self, task_ids: Iterable[str], watcher: Watcher) -> None:
        """Let ``watcher`` receive the rows of these tasks, each time they have changed."""
        for task_id in task_ids:
            self._wanted.setdefault(task_id, _Interest()).watchers.add(watcher)
        self._next = 0.0

    def remove(self, task_ids: Iterable[str], watcher: Watcher) -> None:
        """Take that back."""
        for task_id in task_ids:
            interest = self._wanted.get(task_id)
            if interest is not None:
                interest.watchers.discard(watcher)
                if not interest.watchers:
                    self._drop(task_id)

    def connected(self, *, listening: bool) -> None:
        """Note a new connection: nothing is registered for it yet."""
        self.listening = listening
        self._done.clear()
        for interest in self._wanted.values():
            interest.registered_at, interest.interval, interest.read_at = None, 0.0, 0.0
        self._next = 0.0

    def plan(self, now: float, news: Collection[str]) -> Plan:
        """Return what to do now; ``news`` are the tasks of which a notification has come."""
        read = [task_id for task_id in news if task_id in self._wanted]
        if now < self._next:
            return Plan([], self._leave(MANY), read, self._next - now)
        register, self._next = [], now + LAST_LOOK
        for task_id, interest in self._wanted.items():
            if self.listening and (interest.registered_at is None or now - interest.registered_at >= RENEW):
                register.append(task_id)
                interest.registered_at = now
            if interest.read_at <= now:
                self._reschedule(interest, now)
                if task_id not in news:
                    read.append(task_id)
            self._next = min(self._next, interest.read_at)
        return Plan(register, self._leave(1), read, self._next - now)

    def rows(self, rows: Iterable[Any], is_final: Callable[[Any], bool]) -> int:
        """Hand rows that have changed to those who wait for them; return how many did."""
        changed = 0
        for row in rows:
            interest = self._wanted.get(row[0])
            if interest is None or interest.row == row:
                continue
            interest.row = row
            changed += 1
            for watcher in tuple(interest.watchers):
                watcher.receive(row)
            if is_final(row):
                self._drop(row[0])
        return changed

    def clear(self) -> list[str]:
        """Forget everything, and return what is still registered."""
        registered = [task_id for task_id, interest in self._wanted.items() if interest.registered_at is not None]
        self._wanted.clear()
        return registered + self._leave(1)

    def _leave(self, least: int) -> list[str]:
        """Return what is registered in vain, if that is worth a statement."""
        if len(self._done) < least:
            return []
        done, self._done = self._done, set()
        return sorted(done - self._wanted.keys())

    def _drop(self, task_id: str) -> None:
        if self._wanted.pop(task_id).registered_at is not None:
            self._done.add(task_id)

    def _reschedule(self, interest: _Interest, now: float) -> None:
        first, growth, last = (
            (FIRST_LOOK, LOOK_GROWTH, LAST_LOOK) if self.listening else (FIRST_POLL, POLL_GROWTH, LAST_POLL)
        )
        interest.interval = min(interest.interval * growth, last) if interest.interval else first
        interest.read_at = now + interest.interval
