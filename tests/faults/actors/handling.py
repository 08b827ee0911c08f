"""What workers run for each message, and how they come to their ends."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Final

from actors.options import Notes, Options, now

__all__ = ["Failed", "Handler", "end_when_idle"]

#: How often a handler fails.
_FAILING: Final = 0.1


class Failed(Exception):
    """The handler failed, as handlers do; it is to be tried again."""


class Handler:
    """Notes that it runs, and is slow, fails or kills its process at times."""

    def __init__(self, notes: Notes, options: Options) -> None:
        self._notes = notes
        self._options = options
        # Pools fork; these numbers are not the same in all of the children.
        self._chance = random.SystemRandom()

    def __call__(self, key: str, attempt: int) -> None:
        """Handle a message.

        Raises:
            Failed: it is to be tried again.
        """
        options, chance = self._options, self._chance
        self._notes("started", key=key, attempt=attempt, at=now())
        if options.mortal and chance.random() < 0.02:
            os._exit(9)
        if not options.plain:
            if chance.random() < options.slow:
                time.sleep(1.5 * options.held_for)
            if chance.random() < _FAILING:
                raise Failed
        self._notes("finished", key=key, attempt=attempt, at=now())


def end_when_idle(options: Options, notes: Path) -> None:
    """Stop this process as an operator does, once there is nothing to do for anybody and it is allowed to end."""
    quiet = 2 * options.held_for + options.idle

    def watch() -> None:
        while True:
            time.sleep(0.1)
            # Leases that are renewed are noted too, so whoever holds something is not quiet.
            newest = max((one.stat().st_mtime for one in notes.parent.glob("*.jsonl")), default=0.0)
            if os.path.exists(options.done) and time.time() - newest > quiet:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
