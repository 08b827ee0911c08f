"""Waiting for what other threads, processes and servers do: a test asks until it is so, with a limit; it never sleeps."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENCE", "eventually"]

T = TypeVar("T")

#: Seconds after which a test gives up waiting for what should have happened long ago.
PATIENCE = 30.0


def eventually(
    ask: Callable[[], T], patience: float = PATIENCE, *, interval: float = 0.01, what: str | None = None
) -> T:
    """Ask until the answer is true, and return it.

    Args:
        ask: called at once, and then again and again. What it raises goes through: raise to give up early.
        patience: seconds after which an answer that is still false fails the test. It is asked once at least.
        interval: seconds between two questions.
        what: what is waited for, for the message of the failure, which tells the last answer in any case.

    Raises:
        AssertionError: the answer was not true in time.
    """
    pause = threading.Event()
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        if time.monotonic() >= deadline:
            subject = f" until {what}" if what else ""
            raise AssertionError(f"waited in vain for {patience:g} s{subject}: the last answer was {answer!r}")
        pause.wait(interval)
    return answer
