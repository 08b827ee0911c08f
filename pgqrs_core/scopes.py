"""Blocks that change what publishing does: in the caller's transaction, or together with other messages.

A block is found through a context variable. Contexts are copied, however: an asyncio task, a callback or a thread that is
started in a block inherits it, runs beside it and outlives it. So a scope counts only for the code that entered it, and
only until it ends. Everything else publishes as if there were no scope.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["Caller", "Scope", "Scopes"]


class Caller(NamedTuple):
    """Which thread, greenlet or task is running."""

    thread: int
    greenlet: Any
    task: Any

    @classmethod
    def current(cls) -> Caller:
        """Return the one that runs now."""
        greenlet: Any = sys.modules.get("greenlet")
        return cls(threading.get_ident(), greenlet.getcurrent() if greenlet is not None else None, _task())

    def is_within(self, other: Caller) -> bool:
        """Tell whether what this one runs is part of what ``other`` runs."""
        if other.task is not None:
            # Whatever greenlet it runs in: SQLAlchemy's run_sync makes one for each call.
            return self.task is other.task
        # A task of this thread is run by the block itself, by asyncio.run for instance.
        if self.thread != other.thread:
            return False
        return self.greenlet is other.greenlet or (other.greenlet is None and self.greenlet.parent is None)


class Scope:
    """One block.

    Attributes:
        key: whose publishing it changes.
        connection: the caller's connection to publish on, or None.
        batch: what gathers messages, or None.
        members: the ids of the messages that belong to it; None if all do.
        outer: the scope in which it was entered.
    """

    __slots__ = ("batch", "caller", "connection", "key", "members", "outer")

    def __init__(
        self, key: object, connection: object, batch: Any, members: Container[str] | None, outer: Scope | None
    ) -> None:
        self.key = key
        self.connection = connection
        self.batch = batch
        self.members = members
        self.caller: Caller | None = Caller.current()
        self.outer = outer

    @property
    def is_open(self) -> bool:
        """Whether its block has not ended."""
        return self.caller is not None

    def close(self) -> None:
        """End it, also for code that still holds it in a copy of the context."""
        # Such a copy may live as long as the process.
        self.key = self.connection = self.batch = self.members = self.caller = None


class Scopes:
    """All blocks of one adapter. Make it once, in a module: a context variable is never collected.

    Args:
        name: of the context variable.
    """

    def __init__(self, name: str) -> None:
        self._current: ContextVar[Scope | None] = ContextVar(name, default=None)

    @contextmanager
    def enter(
        self, key: object, *, connection: object = None, batch: Any = None, members: Container[str] | None = None
    ) -> Iterator[Scope]:
        """Let a scope hold until the end of the block, for the thread, greenlet or task that enters it."""
        scope = Scope(key, connection, batch, members, self._innermost())
        self._current.set(scope)
        try:
            yield scope
        finally:
            scope.close()
            # Not by the token: blocks in generators end in any order, and in other contexts than they began in.
            if self._current.get() is scope:
                self._current.set(self._innermost())

    def find(self, key: object, member: str | None = None) -> Scope | None:
        """Return the innermost scope that counts for the running code.

        Args:
            key: whose publishing it must change.
            member: the id of a message; a scope that takes certain messages only must take this one.
        """
        scope = self._current.get()
        if scope is None:
            return None
        here = Caller.current()
        while scope is not None:
            if (
                scope.key is key
                and scope.caller is not None
                and here.is_within(scope.caller)
                and (scope.members is None or (member is not None and member in scope.members))
            ):
                return scope
            scope = scope.outer
        return None

    def _innermost(self) -> Scope | None:
        """Return the innermost scope that is open, whoever entered it: those that have ended are let go."""
        scope = self._current.get()
        while scope is not None and not scope.is_open:
            scope = scope.outer
        return scope


def _task() -> Any:
    """Return the asynchronous task that runs, or None."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return asyncio.current_task()
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            return trio.lowlevel.current_task()
        except RuntimeError:
            return None
    return None
