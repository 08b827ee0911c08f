"""The application that the tests' real ``dramatiq`` processes run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.encoder import PickleEncoder
from dramatiq.middleware import AsyncIO, CurrentMessage, GroupCallbacks, Middleware
from dramatiq.results import Results
from pgqrs_dramatiq import PgqrsBroker, PgqrsRateLimiterBackend, PgqrsResultBackend

DSN = os.environ["TEST_DSN"]

if os.environ.get("TEST_ENCODER") == "pickle":
    dramatiq.set_encoder(PickleEncoder())


def forked() -> int:
    """Run beside the workers, as a fork."""
    note("fork")
    signal.pause()
    return 0


class Forks(Middleware):
    """Starts a process of its own with the workers."""

    @property
    def forks(self) -> list[Any]:
        return [forked]


lease = os.environ.get("TEST_LEASE")
broker = PgqrsBroker(DSN, lease=float(lease) if lease else None)
broker.add_middleware(Results(backend=PgqrsResultBackend(DSN)))
broker.add_middleware(GroupCallbacks(PgqrsRateLimiterBackend(DSN)))
broker.add_middleware(CurrentMessage())
broker.add_middleware(AsyncIO())
if os.environ.get("TEST_FORKS"):
    broker.add_middleware(Forks())
if os.environ.get("TEST_PROMETHEUS"):
    from dramatiq.middleware.prometheus import Prometheus

    # Dramatiq 1 has it by default.
    if not any(isinstance(one, Prometheus) for one in broker.middleware):
        broker.add_middleware(Prometheus())
dramatiq.set_broker(broker)


def note(line: str) -> None:
    """Note something where the test can read it; what is written so is never torn apart."""
    with Path(os.environ["TEST_NOTES"]).open("a") as file:
        file.write(f"{line}\n")


@dramatiq.actor
def say(word: str) -> None:
    note(word)


@dramatiq.actor(queue_name="other")
def say_other(word: str) -> None:
    note(f"other {word}")


@dramatiq.actor
def work(word: str, seconds: float) -> None:
    note(f"begin {word} {os.getpid()}")
    time.sleep(seconds)
    note(f"end {word}")


@dramatiq.actor(max_retries=11, min_backoff=0, max_backoff=0)
def fail(word: str) -> None:
    note(f"{word} {time.time()}")
    raise ValueError(word)


@dramatiq.actor
def again(word: str) -> None:
    note(f"{word} {time.time()}")
    if not CurrentMessage.get_current_message().options.get("retries"):
        raise dramatiq.Retry(delay=100)


@dramatiq.actor(store_results=True)
async def add(x: int, y: int) -> int:
    await asyncio.sleep(0.01)
    return x + y


@dramatiq.actor(store_results=True, max_retries=0)
def broken() -> None:
    raise ValueError("broken")


@dramatiq.actor
def die(word: str) -> None:
    note(word)
    os.kill(os.getpid(), signal.SIGKILL)
