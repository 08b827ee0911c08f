"""Locks that an exception cannot leave locked, wherever it strikes."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgqrs_core.conditions import Condition
from pgqrs_core.forks import Lock


class Struck(BaseException):
    pass


@pytest.mark.parametrize("make", [Condition, Lock])
def test_an_exception_at_any_instruction_leaves_it_free(make: Callable[[], Any]) -> None:
    """With `threading.Condition` one of some hundred leaves it locked."""
    lock = make()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with lock:
                pass

    def persist() -> None:
        while not over.is_set():
            # It may strike between any two lines here, too.
            with contextlib.suppress(BaseException):
                work()

    thread = threading.Thread(target=persist, daemon=True)
    thread.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Struck))
        time.sleep(0.000_2)
    over.set()
    thread.join(20)

    assert not thread.is_alive()
    assert lock._lock.acquire(timeout=5)


def test_threads_wait_and_are_notified() -> None:
    condition = Condition()
    seen: list[str] = []

    def wait() -> None:
        with condition:
            condition.wait_for(lambda: bool(seen), 20)
            seen.append("woken")

    thread = threading.Thread(target=wait)
    thread.start()
    with condition:
        seen.append("news")
        condition.notify_all()
    thread.join(20)

    assert seen == ["news", "woken"]
