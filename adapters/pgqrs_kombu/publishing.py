"""From a published message to the rows it becomes: one for each durable queue, and one statement for all ephemeral ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pgqrs_core.effects import Op
from pgqrs_core.errors import QueueNotFound, ServerError
from pgqrs_core.events import Draft
from pgqrs_core.messages import Queue, check_text
from pgqrs_core.operations.enqueue import ring
from pgqrs_core.operations.traffic import announce, outgoing, prepared
from pgqrs_kombu import mail
from pgqrs_kombu.compression import check_expanded
from pgqrs_kombu.envelope import compose
from pgqrs_kombu.errors import not_found
from pgqrs_kombu.outbox import current_scope
from pgqrs_kombu.plugin import ADAPTER

if TYPE_CHECKING:
    from pgqrs_core.engine import Engine
    from pgqrs_core.plugins import Plugins
    from pgqrs_kombu.directory import Directory
    from pgqrs_kombu.routing import Route

__all__ = ["Parcel", "Publisher"]


class Post(NamedTuple):
    """A message for ephemeral queues: for those bound to an exchange, or for the one of that name."""

    draft: Draft
    exchange: str
    routing_key: str


class Parcel(NamedTuple):
    """Where one message goes."""

    drafts: list[Draft]
    post: Post | None

    @property
    def is_empty(self) -> bool:
        """Whether it reaches nobody, by what is known."""
        return not self.drafts and self.post is None


class Publisher:
    """Routes and writes the messages of this process to one broker."""

    def __init__(
        self,
        engine: Engine,
        directory: Directory,
        *,
        restore: Callable[[str], bool],
        stored: Callable[[Iterable[str]], None],
        hold_eta: bool,
        most_bytes: Callable[[Queue], int],
    ) -> None:
        self._engine = engine
        self._directory = directory
        self._restore = restore
        self._stored = stored
        self._hold_eta = hold_eta
        self._most_bytes = most_bytes

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str) -> bool:
        """Store a message in every queue it is routed to, and tell whether there was one; in a batch, at its end.

        Raises:
            NotFound: there is no such exchange.
            InvalidArgument, BodyTooLarge: it cannot be stored, nowhere.
            Unavailable, EnqueueUnknown: the server is away.
        """
        parcel = self.route(message, exchange, routing_key)
        scope = current_scope(_task_id(message))
        if scope is not None:
            if parcel.is_empty:
                return False
            if scope.batch is None:
                return self.send([parcel], scope.connection) > 0
            scope.batch.add(self, parcel)
            return True
        if parcel.post is None and len(parcel.drafts) == 1:
            return self._send_one(parcel.drafts[0])
        if parcel.post is not None and not parcel.drafts:
            return self._engine.run(_post, parcel.post, self._engine.plugins, self._engine.doorbell.channel) > 0
        return not parcel.is_empty and self.send([parcel]) > 0

    def send(self, parcels: Sequence[Parcel], connection: object = None) -> int:
        """Store many messages, all or none, on the caller's ``connection`` or ours; return how many rows that made."""
        engine = self._engine
        drafts = [draft for parcel in parcels for draft in parcel.drafts]
        by_queue: dict[str, list[Draft]] = {}
        for draft in drafts:
            by_queue.setdefault(draft.queue, []).append(draft)
        groups = self._groups(by_queue)
        posts = [parcel.post for parcel in parcels if parcel.post is not None]
        if connection is not None:
            ids, count = engine.run_in(connection, _write, groups, posts, engine.plugins, engine.doorbell.channel)
            return sum(map(len, ids)) + count
        began = time.perf_counter()
        try:
            ids, count = engine.transact(_write, groups, posts, engine.plugins, engine.doorbell.channel)
        except ServerError as error:
            if error.sqlstate != "42P01":
                raise
            # Nothing was stored. A queue was deleted, and this process has not heard of it.
            for name in by_queue:
                engine.forget(name)
            groups = self._groups(by_queue)
            ids, count = engine.transact(_write, groups, posts, engine.plugins, engine.doorbell.channel)
        self._announce(groups, ids, time.perf_counter() - began)
        self._stored(by_queue)
        return sum(map(len, ids)) + count

    def move(self, parcels: Mapping[int, Parcel], take_out: Callable[[], Op[set[int]]]) -> None:
        """Store messages of ours elsewhere, each by its id, in the transaction that takes them out of their queue.

        Those that ``take_out`` does not answer with are somebody else's by now, and are not stored.
        """
        engine = self._engine
        places = {draft.queue: self._queue(draft.queue) for parcel in parcels.values() for draft in parcel.drafts}
        moved: list[tuple[Queue, list[Draft]]] = []

        def operation() -> Op[tuple[list[list[int]], int]]:
            gone = yield from take_out()
            chosen = [parcel for number, parcel in parcels.items() if number in gone]
            groups: dict[str, list[Draft]] = {}
            for parcel in chosen:
                for draft in parcel.drafts:
                    groups.setdefault(draft.queue, []).append(draft)
            # Each time: a transaction may be run again.
            moved[:] = [(queue, drafts) for name, drafts in groups.items() if (queue := places[name]) is not None]
            posts = [parcel.post for parcel in chosen if parcel.post is not None]
            return (yield from _write(moved, posts, engine.plugins, engine.doorbell.channel))

        began = time.perf_counter()
        ids, _ = engine.transact(operation)
        self._announce(moved, ids, time.perf_counter() - began)

    def route(self, message: dict[str, Any], exchange: str, routing_key: str) -> Parcel:
        """Find out where a message goes.

        Raises:
            NotFound: there is no such exchange.
            InvalidArgument: it cannot be stored, or it is compressed and consumers there would not expand it.
        """
        parcel = self.route_as_it_is(message, exchange, routing_key)
        compression = message["headers"].get("compression")
        if compression:
            body = message["body"]
            body = body.encode() if isinstance(body, str) else bytes(body)
            queues = [queue for draft in parcel.drafts if (queue := self._queue(draft.queue)) is not None]
            if queues:
                least = min(queues, key=self._most_bytes)
                check_expanded(least.name, body, compression, self._most_bytes(least))
        return parcel

    def route_as_it_is(self, message: dict[str, Any], exchange: str, routing_key: str) -> Parcel:
        """Find out where a message goes, whatever its body is."""
        check_text("exchange", exchange)
        check_text("routing_key", routing_key)
        if not exchange:
            return self._route_direct(message, routing_key)
        table, fresh = self._directory.table(exchange)
        if table is None:
            raise not_found("exchange", exchange)
        routes = _matching(table.routes, table.kind, routing_key)
        if not routes and not table.has_mailboxes and not fresh:
            table = self._directory.read(exchange)
            if table is None:
                raise not_found("exchange", exchange)
            routes = _matching(table.routes, table.kind, routing_key)
        drafts = [
            compose(name, message, exchange, routing_key, message_ttl=ttl, hold_eta=self._hold_eta)
            for name, ttl in routes.items()
        ]
        post = None
        if table.has_mailboxes:
            post = Post(compose(exchange, message, exchange, routing_key, hold_eta=False), exchange, routing_key)
        return Parcel(drafts, post)

    def _route_direct(self, message: dict[str, Any], name: str) -> Parcel:
        known = self._directory.queue(name)
        if known is None:
            return Parcel([], None)
        if known.mailbox is not None:
            return Parcel([], Post(compose(name, message, "", name, hold_eta=False), "", name))
        return Parcel(
            [compose(name, message, "", name, message_ttl=known.message_ttl, hold_eta=self._hold_eta)],
            None,
        )

    def _send_one(self, draft: Draft) -> bool:
        engine = self._engine
        for restored in (False, True):
            try:
                engine.on(
                    draft.queue, outgoing, [draft], plugins=engine.plugins, adapter=ADAPTER, doorbell=engine.doorbell
                )
            except QueueNotFound:
                self._directory.forget(draft.queue)
                if restored or not self._restore(draft.queue):
                    return False
            else:
                self._stored((draft.queue,))
                return True
        return False

    def _groups(self, by_queue: Mapping[str, list[Draft]]) -> list[tuple[Queue, list[Draft]]]:
        return [(queue, group) for name, group in by_queue.items() if (queue := self._queue(name)) is not None]

    def _queue(self, name: str) -> Queue | None:
        try:
            return self._engine.queue(name)
        except QueueNotFound:
            self._directory.forget(name)
            return self._engine.queue(name) if self._restore(name) else None

    def _announce(self, groups: Sequence[tuple[Queue, list[Draft]]], ids: Sequence[list[int]], seconds: float) -> None:
        """After the commit: wake consumers, once for each queue, and tell the plugins."""
        engine = self._engine
        for (queue, drafts), numbers in zip(groups, ids):
            engine.run(ring, queue, engine.doorbell, len(drafts))
            announce(queue.name, drafts, numbers, seconds, plugins=engine.plugins, adapter=ADAPTER)


def _task_id(message: dict[str, Any]) -> str | None:
    """Return the id of the task that a message asks for, as Celery writes it beside every task."""
    found = message["properties"].get("correlation_id")
    return found if isinstance(found, str) else None


def _matching(routes: Sequence[Route], kind: str, routing_key: str) -> dict[str, float | None]:
    """Return the queues that match, each once, with their times to live."""
    return {route.queue: route.message_ttl for route in routes if route.matches(kind, routing_key)}


def _write(
    groups: Sequence[tuple[Queue, list[Draft]]], posts: Sequence[Post], plugins: Plugins, channel: str
) -> Op[tuple[list[list[int]], int]]:
    ids: list[list[int]] = []
    for queue, drafts in groups:
        ids.append((yield from outgoing(queue, list(drafts), plugins=plugins, adapter=ADAPTER, doorbell=None)))
    count = 0
    for post in posts:
        count += yield from _post(post, plugins, channel)
    return ids, count


def _post(post: Post, plugins: Plugins, channel: str) -> Op[int]:
    draft = prepared(post.draft.queue, [post.draft], plugins=plugins, adapter=ADAPTER, encode=False)[0]
    codecs = plugins.hooks.codecs
    if not codecs.is_idle(draft):
        kind, count = yield from mail.post_sealed(draft, post.exchange, post.routing_key, channel, codecs)
    elif not post.exchange:
        return (yield from mail.post_to(draft, post.routing_key, channel))
    else:
        kind, count = yield from mail.post(draft, post.exchange, post.routing_key, channel)
    if kind is None:
        raise not_found("exchange", post.exchange)
    return count
