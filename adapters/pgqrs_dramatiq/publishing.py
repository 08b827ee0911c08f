"""From messages to rows: one statement for each queue, one transaction if there are several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgqrs_core.effects import Op
from pgqrs_core.errors import QueueExists, QueueNotFound
from pgqrs_core.events import Draft
from pgqrs_core.forks import begin_anew_in_children
from pgqrs_core.messages import Queue, QueueOptions
from pgqrs_core.operations.enqueue import ring
from pgqrs_core.operations.queues import create_queue
from pgqrs_core.operations.settle import replace
from pgqrs_core.operations.traffic import announce, outgoing, prepared
from pgqrs_dramatiq.combining import Combiner
from pgqrs_dramatiq.plugin import ADAPTER

if TYPE_CHECKING:
    from dramatiq.message import Message

    from pgqrs_core.engine import Engine
    from pgqrs_core.plugins import Plugins
    from pgqrs_dramatiq.database import Database
    from pgqrs_dramatiq.delivery import Leased

__all__ = ["Parcel", "Publisher"]

#: Messages written by one statement.
_PAGE: Final = 5_000


class Parcel(NamedTuple):
    """A message, the delay it was enqueued with in milliseconds, and what is stored of it."""

    message: Message[Any]
    delay: int | None
    draft: Draft


class Publisher:
    """Stores messages.

    Args:
        database: where.
        is_declared: tells whether a queue is declared here, so that it may be created.
        options: how it is created.
    """

    def __init__(self, database: Database, is_declared: Callable[[str], bool], options: QueueOptions) -> None:
        self._database = database
        self._is_declared = is_declared
        self._options = options
        self.begin_anew()
        begin_anew_in_children(self)

    def begin_anew(self) -> None:
        """In a forked child: the threads that wrote are gone, and what they locked is not."""
        self._combiners: dict[str, Combiner] = {}

    def queue(self, name: str) -> Queue:
        """Return a queue, created if it is declared here and not there yet.

        Raises:
            QueueNotFound: it is neither.
        """
        self._database.prepare(own_tables=False)
        engine = self._database.engine
        try:
            return engine.queue(name)
        except QueueNotFound:
            if not self._is_declared(name):
                raise
        # Somebody may make it with other options meanwhile: they hold.
        with contextlib.suppress(QueueExists):
            engine.transact(create_queue, name, self._options)
        return engine.queue(name)

    def send(self, drafts: Sequence[Draft], connection: object = None) -> None:
        """Store messages, all or none; on the caller's ``connection``, if and when he commits."""
        if len(drafts) == 1 and connection is None:
            self._combiner(drafts[0].queue).send(drafts[0])
            return
        by_queue: dict[str, list[Draft]] = {}
        for draft in drafts:
            by_queue.setdefault(draft.queue, []).append(draft)
        groups = [(self.queue(name), group) for name, group in by_queue.items()]
        engine = self._database.engine
        if connection is not None:
            engine.run_in(connection, _write, groups, engine.plugins)
        elif len(groups) == 1 and len(drafts) <= _PAGE:
            # Not in a transaction of several statements: it is one.
            self._send_one(groups[0][0].name, groups[0][1])
        else:
            ids = engine.transact(_write, groups, engine.plugins)
            self._announce(groups, ids)

    def _combiner(self, name: str) -> Combiner:
        found = self._combiners.get(name)
        if found is None:
            found = self._combiners.setdefault(name, Combiner(partial(self._send_one, name)))
        return found

    def _send_one(self, name: str, drafts: list[Draft]) -> None:
        self._database.prepare(own_tables=False)
        engine = self._database.engine
        plugins, doorbell = engine.plugins, engine.doorbell
        try:
            engine.on(name, outgoing, drafts, plugins=plugins, adapter=ADAPTER, doorbell=doorbell)
        except QueueNotFound:
            # It is not there yet, or not any more.
            self.queue(name)
            engine.on(name, outgoing, drafts, plugins=plugins, adapter=ADAPTER, doorbell=doorbell)

    def retry(self, message: Leased, draft: Draft) -> None:
        """Put a message's retry in its own place. If its lease was lost, nothing changes: somebody else has the message."""
        engine, source = self._database.engine, message.source
        draft = prepared(source.queue.name, [draft], plugins=engine.plugins, adapter=ADAPTER)[0]
        lease = message.delivery.lease
        engine.run(replace, source.queue, lease, draft, engine.doorbell, error=message.reason())
        source.keeper.drop([lease])
        if not draft.delay:
            source.look_again()

    def _announce(self, groups: Sequence[tuple[Queue, list[Draft]]], ids: Sequence[list[int]]) -> None:
        """After the commit: wake consumers, once for each queue, and tell the plugins."""
        engine: Engine = self._database.engine
        for (queue, drafts), numbers in zip(groups, ids):
            engine.run(ring, queue, engine.doorbell, len(drafts))
            announce(queue.name, drafts, numbers, 0.0, plugins=engine.plugins, adapter=ADAPTER)


def _write(groups: Sequence[tuple[Queue, list[Draft]]], plugins: Plugins) -> Op[list[list[int]]]:
    ids: list[list[int]] = []
    for queue, drafts in groups:
        written: list[int] = []
        for start in range(0, len(drafts), _PAGE):
            page = drafts[start : start + _PAGE]
            written += yield from outgoing(queue, page, plugins=plugins, adapter=ADAPTER, doorbell=None)
        ids.append(written)
    return ids
