"""What a forked child does with what it inherited.

A child has its parent's objects, and of its threads only the one that forked. Whatever belongs to one process – sockets,
threads, locks that another thread held – is put aside here, in the child, before any of its code runs. So nothing needs to
compare process ids later, when several threads of the child may do so at once.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any, Final, Protocol
from weakref import WeakSet

from pgqrs_core.logs import get_logger

__all__ = ["Inheritable", "Lock", "begin_anew_in_children", "silence"]

_log = get_logger("pgqrs")


class Inheritable(Protocol):
    """An object that a fork copies."""

    def begin_anew(self) -> None:
        """Forget what belongs to the parent process. Called in the child, while it has one thread; takes no locks."""


_all: Final[WeakSet[Any]] = WeakSet()


def begin_anew_in_children(owner: Inheritable) -> None:
    """Call ``owner.begin_anew`` in every child that is forked while the object lives."""
    _all.add(owner)


class Lock:
    """A lock that is free in a forked child, whichever thread of the parent held it. Not re-entrant."""

    def __init__(self) -> None:
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: the thread that held it is not there."""
        self._lock = threading.Lock()

    # As in conditions.py: an exception that strikes the thread cannot leave it locked.
    __enter__ = property(lambda self: self._lock.__enter__)
    __exit__ = property(lambda self: self._lock.__exit__)


def silence(descriptor: int) -> None:
    """Let an inherited socket lead nowhere.

    Its number stays taken, so whoever uses it by mistake meets an end of file and not another connection. The parent's end
    is untouched; and when the parent dies the server notices, because no child keeps the socket open.
    """
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _after_fork() -> None:
    with warnings.catch_warnings():
        # Connections are dropped, not closed: they are the parent's.
        warnings.simplefilter("ignore", ResourceWarning)
        for owner in list(_all):
            try:
                owner.begin_anew()
            except Exception:
                _log.exception("a forked child could not put aside what it inherited")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
