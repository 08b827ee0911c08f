"""Dramatiq: a producer that sends messages, and the command ``dramatiq``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq import cli
from dramatiq.errors import BrokerError
from dramatiq.middleware import CurrentMessage
from pgqrs_dramatiq import PgqrsBroker

from actors.handling import Handler
from actors.options import Notes, Options
from pgqrs_core.config import Config
from pgqrs_core.errors import PgqrsError

__all__ = ["Dramatiq", "work"]


def _nobody(key: str, attempt: int) -> None:
    """What handles messages in a process that only sends them."""


def _broker(dsn: str, options: Options, handle: Callable[[str, int], None] = _nobody) -> tuple[PgqrsBroker, Any]:
    config = Config.load(url=dsn, query_timeout_seconds=options.timeout, max_connections=4)
    broker = PgqrsBroker(config, lease=options.held_for)
    broker.add_middleware(CurrentMessage())
    dramatiq.set_broker(broker)

    # It fails until it works: what is tried out here is not when Dramatiq gives up.
    @dramatiq.actor(queue_name=options.meets_at, max_retries=1_000, min_backoff=0, max_backoff=100)
    def actor(key: str) -> None:
        message: Any = CurrentMessage.get_current_message()
        retries = message.options.get("retries", 0)
        handle(f"{key}/{retries}" if retries else key, message.delivery.attempt)

    return broker, actor


class Dramatiq:
    """Sends messages."""

    errors = (PgqrsError, OSError, BrokerError)
    doubts = ()
    sizes = (1, 1, 3, 20)

    def __init__(self, dsn: str, options: Options) -> None:
        self._broker, self._actor = _broker(dsn, options)

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        """Send a message for each key; several are stored at once or not at all."""
        messages = [self._actor.message_with_options(args=(key,), broker_priority=priority) for key in keys]
        milliseconds = None if delay is None else int(delay * 1000)
        if len(messages) == 1:
            self._broker.enqueue(messages[0], delay=milliseconds)
        else:
            self._broker.enqueue_many(messages, delay=milliseconds)
        return [0] * len(keys)

    def send_within(self, connection: Any, keys: list[str]) -> list[int]:
        """Send messages in the caller's transaction."""
        with self._broker.transaction(connection):
            return self.send(keys, 0, None)

    def close(self) -> None:
        self._broker.close()


def work(name: str, dsn: str, options: Options, notes: Notes) -> None:
    """Be a Dramatiq worker, a process above and one that works, until it is stopped."""
    _broker(dsn, options, Handler(notes, options))
    # The process that works is a fork of this one, and finds this module and its broker.
    command = f"{__name__} --processes 1 --threads {options.concurrency}"
    sys.exit(cli.main(cli.make_argument_parser().parse_args(command.split())))
