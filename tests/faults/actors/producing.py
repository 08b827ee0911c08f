"""A producer: singly and in batches, with priorities and delays, and in slow transactions that it rolls back at times."""

from __future__ import annotations

import os
import random
import time
from typing import Any, Protocol

import psycopg

from actors.options import Notes, Options, now
from pgqrs_core.drivers import patience
from pgqrs_core.errors import EnqueueUnknown

__all__ = ["Sender", "produce"]


class Sender(Protocol):
    """What a producer needs of an adapter."""

    #: What it raises when it cannot store something, and beside `EnqueueUnknown` when nobody knows whether it has.
    errors: tuple[type[Exception], ...]
    doubts: tuple[type[Exception], ...]
    #: How many messages to send at once, by chance.
    sizes: tuple[int, ...]

    def send(self, keys: list[str], priority: int, delay: float | None) -> list[int]:
        """Store messages, all or none, and return their ids; zeros if they are not told."""
        ...

    def send_within(self, connection: Any, keys: list[str]) -> list[int]:
        """Store messages in the caller's transaction."""
        ...

    def close(self) -> None: ...


class _Aborted(Exception):
    """A transaction did not reach its commit."""


def produce(sender: Sender, dsn: str, notes: Notes, name: str, options: Options) -> None:
    """Send until there is enough, or somebody calls a halt."""
    chance = random.Random(name)
    number = 0
    while number < options.count and not (options.halt and os.path.exists(options.halt)):
        keys = [f"{name}-{number + place}" for place in range(chance.choice(sender.sizes))]
        number += len(keys)
        for key in keys:
            notes("sending", key=key, at=now())
        try:
            ids = _send(sender, dsn, keys, chance, options)
        except (_Aborted, *sender.errors) as error:
            _note_failure(notes, keys, error, (EnqueueUnknown, *sender.doubts))
            time.sleep(0.05)
        else:
            for key, id_given in zip(keys, ids, strict=True):
                notes("sent", key=key, id=id_given, at=now())
        time.sleep(options.pause)


def _send(sender: Sender, dsn: str, keys: list[str], chance: random.Random, options: Options) -> list[int]:
    if options.plain:
        return sender.send(keys, 0, None)
    if chance.random() < 0.3:
        return _send_in_transaction(sender, dsn, keys, chance, options.timeout + options.grace)
    return sender.send(keys, chance.choice([0, 0, 5]), chance.choice([None, None, 0.05]))


def _note_failure(notes: Notes, keys: list[str], error: BaseException, doubts: tuple[type[Exception], ...]) -> None:
    """Nothing was stored, they say, unless somewhere among the causes stands that nobody knows."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, doubts):
        cause = cause.__cause__
    if cause is not None:
        notes("unknown", keys=keys)
        return
    if not isinstance(error, _Aborted):
        notes("refused", error=f"{type(error).__name__}: {error}")
    for key in keys:
        notes("aborted", key=key)


def _send_in_transaction(sender: Sender, dsn: str, keys: list[str], chance: random.Random, limit: float) -> list[int]:
    """Send in a transaction of the caller's that takes its time, so that ids are committed out of order."""
    try:
        connection = patience.Connection.connect(dsn, application_name="theirs")
        # Nobody but the caller can give up on a connection of the caller's; this one does.
        connection.limit = limit
    except psycopg.Error as error:
        raise _Aborted from error
    try:
        try:
            ids = sender.send_within(connection, keys)
            time.sleep(chance.random() * 0.05)
            if chance.random() < 0.3:
                connection.rollback()
                raise _Aborted
        except (psycopg.Error, *sender.errors):
            # Whatever it was, the commit was not asked for.
            raise _Aborted from None
        try:
            connection.commit()
        except psycopg.Error as error:
            raise EnqueueUnknown("", str(error)) from error
        return ids
    finally:
        connection.close()
