"""How actors behave, and where they write what they did."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["QUEUES", "Notes", "Options", "now"]

#: Where the actors of each adapter meet. A worker of Celery's or Dramatiq's runs nothing but its own framework's messages.
QUEUES: Final = {"native": "jobs", "kombu": "jobs", "celery": "tasks", "dramatiq": "actors"}

now = time.monotonic


@dataclass(frozen=True)
class Options:
    """How an actor behaves."""

    #: One of `QUEUES`.
    adapter: str = "native"
    #: Where it meets others, if not where its adapter's actors do.
    queue: str = ""
    #: The most messages that a producer sends.
    count: int = 1_000_000
    #: Seconds between two sends.
    pause: float = 0.0
    #: Seconds of a lease; of any adapter but the native one, one second at least.
    lease: float = 0.6
    #: The most messages in a claim, or that a worker prefetches.
    batch: int = 8
    #: The pool of a Celery worker, and of how many it or Dramatiq's worker makes use.
    pool: str = "threads"
    concurrency: int = 4
    #: How often it is slower than its lease.
    slow: float = 0.02
    #: Whether it dies by itself now and then.
    mortal: bool = False
    #: Whether it only acks, at once, instead of doing all that is allowed.
    plain: bool = False
    #: Seconds for which it waits for messages.
    wait: float = 0.05
    #: Seconds without a message after which it believes that there are none, beside two leases.
    idle: float = 0.3
    #: Seconds until a statement is given up, and until a server that does not even say so is.
    timeout: float = 2.0
    grace: float = 0.5
    #: Whether each line that pgqrs logs ends in `SystemExit`.
    hostile: bool = False
    #: A bug to put into the engine: see `broken`.
    bug: str = ""
    #: Files whose existence tells producers to end, and consumers to end once they find nothing.
    halt: str = ""
    done: str = ""

    @property
    def meets_at(self) -> str:
        """The queue."""
        return self.queue or QUEUES[self.adapter]

    @property
    def held_for(self) -> float:
        """Seconds of a lease of those adapters that allow no shorter one than a second."""
        return max(self.lease, 1.0)


class Notes:
    """A file to which each event goes at once, so that a death loses at most the one being written."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, op: str, **fields: Any) -> None:
        os.write(self._file, (json.dumps({"op": op, **fields}) + "\n").encode())
