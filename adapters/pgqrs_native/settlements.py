"""How the blocking client settles what it has taken out. Its twin is :mod:`pgqrs_native.async_settlements`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgqrs_core.engine import Engine
from pgqrs_core.errors import LeaseLost
from pgqrs_core.leases import LeaseKeeper
from pgqrs_core.operations import settle
from pgqrs_core.operations.settle import Fate
from pgqrs_native.message import Message
from pgqrs_native.shared import by_queue, check_errors, scatter, settlement
from pgqrs_native.traffic import failing, settling

__all__ = ["Settlements"]


class Settlements:
    """Settles messages.

    This is fenced: it only takes effect while the lease that came with the message still holds. Single methods raise
    `LeaseLost` otherwise; batch methods answer per message and do the others.

    What the server refuses for a reason that passes raises an error that is ``retryable``. The message is still yours then,
    and held on to where its lease is renewed: call again.
    """

    def __init__(self, engine: Engine, keeper: LeaseKeeper) -> None:
        self._engine = engine
        self._keeper = keeper

    def dequeue(self, message: Message[Any], *, connection: object = None) -> None:
        """Remove a handled message; with ``connection``, in its transaction.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.dequeue_batch([message], connection=connection)[0]:
            raise LeaseLost(message.queue, message.id)

    def dequeue_batch(self, messages: Sequence[Message[Any]], *, connection: object = None) -> list[bool]:
        """Remove handled messages; False for those whose lease was lost."""
        return self._settle("ack", messages, connection)

    def archive(self, message: Message[Any], *, connection: object = None) -> None:
        """Move a handled message to the archive.

        Raises:
            LeaseLost: it may be somebody else's by now.
            ArchiveDisabled: the queue keeps none.
        """
        if not self.archive_batch([message], connection=connection)[0]:
            raise LeaseLost(message.queue, message.id)

    def archive_batch(self, messages: Sequence[Message[Any]], *, connection: object = None) -> list[bool]:
        """Move handled messages to the archive; False for those whose lease was lost."""
        return self._settle("archive", messages, connection)

    def release(self, message: Message[Any]) -> None:
        """Give an untried message back at once, in its old place; the attempt does not count.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.release_batch([message])[0]:
            raise LeaseLost(message.queue, message.id)

    def release_batch(self, messages: Sequence[Message[Any]]) -> list[bool]:
        """Give untried messages back at once; False for those whose lease was lost."""
        return self._settle("release", messages, None)

    def nack(
        self,
        message: Message[Any],
        *,
        delay: float | None = None,
        error: BaseException | str | None = None,
        bury: bool = False,
    ) -> Fate:
        """Give a failed message back, to be retried after ``delay`` seconds or the queue's back-off.

        Without attempts left, or with ``bury``, it is dead-lettered with ``error``. Returns ``"nacked"`` or ``"dead"``.

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        fate = self.nack_batch([message], delay=delay, errors=[error], bury=bury)[0]
        if fate == "lost":
            raise LeaseLost(message.queue, message.id)
        return fate

    def nack_batch(
        self,
        messages: Sequence[Message[Any]],
        *,
        delay: float | None = None,
        errors: Sequence[BaseException | str | None] | None = None,
        bury: bool = False,
    ) -> list[Fate]:
        """Give failed messages back; ``"nacked"``, ``"dead"`` or ``"lost"`` for each."""
        engine = self._engine
        why = check_errors(messages, errors)
        answers = []
        for queue, group in by_queue(messages):
            with settlement(self._keeper, group):
                fates = engine.run(
                    failing,
                    queue,
                    group,
                    delay=delay,
                    errors=[why[id(message)] for message in group],
                    bury=bury,
                    plugins=engine.plugins,
                    doorbell=engine.doorbell,
                )
            answers.append((group, fates))
        return scatter(messages, answers)

    def extend_lock(self, message: Message[Any], lock_time: float) -> None:
        """Keep a message for ``lock_time`` seconds from now (0.1 to 43,200).

        Raises:
            LeaseLost: it may be somebody else's by now.
        """
        if not self.extend_lock_batch([message], lock_time)[0]:
            raise LeaseLost(message.queue, message.id)

    def extend_lock_batch(self, messages: Sequence[Message[Any]], lock_time: float) -> list[bool]:
        """Keep messages for ``lock_time`` seconds from now; False for those whose lease was lost."""
        answers = [
            (group, self._engine.run(settle.extend, queue, [message.lease for message in group], lock_time))
            for queue, group in by_queue(messages)
        ]
        return scatter(messages, answers)

    def _settle(self, action: Any, messages: Sequence[Message[Any]], connection: object) -> list[bool]:
        engine = self._engine
        answers = []
        for queue, group in by_queue(messages):
            with settlement(self._keeper, group):
                if connection is None:
                    kept = engine.run(settling, queue, action, group, plugins=engine.plugins, doorbell=engine.doorbell)
                else:
                    kept = engine.run_in(
                        connection, settling, queue, action, group, plugins=engine.plugins, doorbell=None
                    )
            answers.append((group, kept))
        return scatter(messages, answers)
