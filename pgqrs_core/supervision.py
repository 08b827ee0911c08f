"""Threads and tasks of the background, started in one place, so that none of them ends unnoticed.

Whatever they raise – a logging handler that fails, a plugin that calls ``sys.exit`` – is logged, and they begin anew
after a pause. What they do not finish is the business of the object that they work for: it keeps its state outside of the
loop that is begun anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from pgqrs_core.logs import error_text, get_logger

__all__ = ["is_interpreter_ending", "join", "start_task", "start_thread", "start_timer"]

_log = get_logger("pgqrs.supervision")

#: Seconds to wait before a thread or task begins anew; the waits double.
_FIRST: Final = 0.05
_LONGEST: Final = 1.0
#: After a run of so many seconds the waits are short again.
_CALM: Final = 30.0
#: Seconds for which an object that is closed waits for its thread; all are daemons, so none keeps a process.
_JOIN: Final = 5.0


def start_thread(run: Callable[..., object], *args: object, name: str, restart: bool = True) -> threading.Thread:
    """Start a daemon thread that calls ``run`` until it returns.

    Args:
        run: what to do; if it raises, that is logged.
        args: its arguments.
        name: the thread's name.
        restart: whether to call it again after it has raised, after 0.05 to 1 seconds.
    """
    thread = threading.Thread(target=_run, args=(run, args, name, restart), name=name, daemon=True)
    thread.start()
    return thread


def is_interpreter_ending(error: RuntimeError) -> bool:
    """Tell whether a thread could not be started because the interpreter is ending, as from Python 3.12 on."""
    return "interpreter shutdown" in str(error)


def start_timer(seconds: float, run: Callable[[], object], *, name: str) -> None:
    """Call ``run`` once, in ``seconds``, on a thread of its own; what it raises is logged."""

    def later() -> None:
        time.sleep(seconds)
        run()

    start_thread(later, name=name, restart=False)


def join(thread: threading.Thread | None) -> None:
    """Wait a few seconds until a thread that was told to end has ended; not where it is the caller itself."""
    if thread is not None and thread is not threading.current_thread():
        thread.join(timeout=_JOIN)


def start_task(
    run: Callable[[], Coroutine[Any, Any, object]], *, name: str, restart: bool = True
) -> asyncio.Task[None]:
    """Start a task of the running event loop that awaits ``run()`` until it returns; see `start_thread`.

    Cancelling the task ends it.
    """
    return asyncio.get_running_loop().create_task(_await(run, name, restart), name=name)


class _Pauses:
    """How long to wait before the next start."""

    def __init__(self, name: str, *, restart: bool) -> None:
        self._name = name
        self._restart = restart
        self._pause = _FIRST
        self._began_at = 0.0

    def begin(self) -> None:
        self._began_at = time.monotonic()

    def after(self, error: BaseException) -> float | None:
        """Log an error; return the seconds to wait before the next start, None for no further one."""
        if time.monotonic() - self._began_at > _CALM:
            self._pause = _FIRST
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST)
        what = f"begins anew in {pause:g} s" if self._restart else "has ended"
        _log.error("%s failed and %s: %s", self._name, what, error_text(error), exc_info=error)
        return pause if self._restart else None


def _run(run: Callable[..., object], args: tuple[object, ...], name: str, restart: bool) -> None:
    pauses = _Pauses(name, restart=restart)
    while True:
        pauses.begin()
        try:
            run(*args)
        except BaseException as error:
            if type(error).__name__ == "GreenletExit":
                # Its thread is a greenlet that was killed.
                return
            pause = pauses.after(error)
        else:
            return
        if pause is None:
            return
        time.sleep(pause)


async def _await(run: Callable[[], Coroutine[Any, Any, object]], name: str, restart: bool) -> None:
    pauses = _Pauses(name, restart=restart)
    while True:
        pauses.begin()
        try:
            await run()
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            pause = pauses.after(error)
        else:
            return
        if pause is None:
            return
        await asyncio.sleep(pause)
