"""Moves what has fallen out of queues to their dead-letter exchanges, and keeps queues within their lengths.

One process does it for all queues, once a second: the elected one. A process in which a message falls, because it was
rejected or because a queue is too long, does it for that queue at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from amqp.exceptions import ChannelError

from pgqrs_core.conditions import Condition
from pgqrs_core.errors import NotPermitted, PgqrsError, QueueNotFound, Unavailable
from pgqrs_core.logs import get_logger
from pgqrs_core.operations import maintenance
from pgqrs_core.outages import OUTAGES
from pgqrs_core.supervision import join, start_thread
from pgqrs_core.this_process import this_process
from pgqrs_kombu import dead_letters
from pgqrs_kombu.dead_letters import Fallen

if TYPE_CHECKING:
    from pgqrs_core.messages import Queue
    from pgqrs_kombu.arguments import Rules
    from pgqrs_kombu.broker import Broker
    from pgqrs_kombu.publishing import Parcel

__all__ = ["Forwarder"]

_log = get_logger("pgqrs.kombu")

_ROLE: Final = "kombu dead letters"
#: Seconds between two rounds of the elected process, and for how many it is elected.
_ROUND: Final = 1.0
_TERM: Final = 6.0
#: Seconds for which the others wait, and for which it is known which queues there are; more where there is none.
_STAND_BY: Final = 5.0
_NONE: Final = 30.0
#: Seconds between two looks at all dead letters of a queue: those that nobody would have are among them. In between only
#: those are looked at that died since, and as long before as a transaction may take that lets one die.
_ALL: Final = 30.0
_SLACK: Final = 60.0
_EVER: Final = 3e9
#: Up to this length a queue is kept to it with each message. Longer ones are counted for this part of the time at most.
_EXACT: Final = 1_000
_COUNT_SHARE: Final = 0.05
#: Messages moved by one transaction.
_PAGE: Final = 100


class Forwarder:
    """Runs in a thread, from the first time that there may be something to do."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._changed = Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._rules: dict[str, Rules] = {}
        self._read_at = 0.0
        self._elected_until = 0.0
        self._urgent: set[str] = set()
        #: When a look at all dead letters of a queue began that left none to be moved.
        self._clean_at: dict[str, float] = {}
        #: When a long queue may be counted again.
        self._count_at: dict[str, float] = {}

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._changed:
            if self._thread is None and not self._closing:
                self._thread = start_thread(self._run, name="pgqrs-kombu-dead-letters")

    def learn(self, name: str, rules: Rules) -> None:
        """A queue was declared here with these rules."""
        if rules:
            self.start()
            with self._changed:
                self._clean_at.pop(name, None)
                self._rules = {**self._rules, name: rules}
                self._read_at = 0.0
                self._changed.notify()

    def changed(self) -> None:
        """Something was declared by somebody."""
        self._read_at = 0.0

    def has_rules(self, name: str) -> bool:
        """Tell whether a queue is known to have a dead-letter exchange or a greatest length."""
        return name in self._rules

    def stored(self, names: Iterable[str]) -> None:
        """Messages were stored in these queues: those that have a length are kept to it at once."""
        for name in names:
            rules = self._rules.get(name)
            if rules is None or rules.length is None:
                continue
            try:
                self._shorten(self._broker.engine.queue(name), rules)
            except NotPermitted:
                # A process that only publishes. The elected one does it.
                self._rules = {other: rules for other, rules in self._rules.items() if other != name}
            except PgqrsError as error:
                # What was stored is stored. The next round does it.
                _log.warning("queue %r could not be kept to %d messages yet: %s", name, rules.length, error)
            if rules.exchange is not None:
                self.hurry(name)

    def hurry(self, name: str) -> None:
        """Something has fallen out of a queue, or it may be too long."""
        with self._changed:
            self._urgent.add(name)
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        join(self._thread)

    def _run(self) -> None:
        while True:
            try:
                pause = self._round()
            except (PgqrsError, ChannelError) as error:
                text = "dead letters could not be passed on, and are tried again: %s"
                OUTAGES.warn(self._broker.engine.connections.target, error, _log, text)
                pause = _STAND_BY
            with self._changed:
                if not self._urgent and not self._closing:
                    self._changed.wait(pause)
                if self._closing:
                    return

    def _round(self) -> float:
        engine = self._broker.engine
        now = time.monotonic()
        if now - self._read_at > (_STAND_BY if self._rules else _NONE):
            self._rules = engine.run(dead_letters.queues_with_rules)
            self._read_at = now
        with self._changed:
            urgent, self._urgent = self._urgent & self._rules.keys(), set()
        if urgent:
            self._broker.flush()
        for name in urgent:
            self._serve(name)
        if not self._rules:
            return _NONE
        if now > self._elected_until - _TERM / 2:
            if not engine.run(maintenance.elect, self._broker.consumer, _TERM, this_process(), role=_ROLE):
                return _STAND_BY
            self._elected_until = now + _TERM
        for name in sorted(self._rules.keys() - urgent):
            self._serve(name)
        return _ROUND

    def _serve(self, name: str) -> None:
        """Do for one queue what there is to do; a queue that fails does not stop the others."""
        rules = self._rules[name]
        try:
            queue = self._broker.engine.queue(name)
            if rules.length is not None:
                self._shorten(queue, rules)
            if rules.exchange is not None:
                self._forward_all(queue, rules)
        except QueueNotFound:
            self._read_at = 0.0
        except (PgqrsError, ChannelError) as error:
            self._broker.engine.forget(name)
            text = "dead letters of queue %r could not be passed on, and are tried again: %s"
            OUTAGES.warn(self._broker.engine.connections.target, error, _log, text, name)

    def _shorten(self, queue: Queue, rules: Rules) -> None:
        engine, length = self._broker.engine, rules.length
        assert length is not None
        began = time.monotonic()
        if length > _EXACT and began < self._count_at.get(queue.name, 0.0):
            return
        page = _PAGE if length <= _EXACT else 10 * _PAGE
        while places := engine.run(dead_letters.beyond_length, queue, length, page):
            if rules.exchange is None:
                engine.run(dead_letters.take_out, queue, places)
            else:
                engine.run(dead_letters.put_aside, queue, places, "MaxLength", f"the queue holds {length} messages")
            if len(places) < page:
                break
        now = time.monotonic()
        self._count_at[queue.name] = now + (now - began) / _COUNT_SHARE

    def _forward_all(self, queue: Queue, rules: Rules) -> None:
        began = time.monotonic()
        since = began - self._clean_at.get(queue.name, -_EVER)
        seconds = since + _SLACK if since < _ALL else _EVER
        while self._forward(queue, rules, seconds) >= _PAGE:
            pass
        if seconds == _EVER:
            self._clean_at[queue.name] = began

    def _forward(self, queue: Queue, rules: Rules, seconds: float) -> int:
        """Move a page of messages; return how many there were."""
        engine = self._broker.engine
        found = engine.run(dead_letters.fallen, queue, _PAGE, seconds)
        if not found:
            return 0
        readable = {one.delivery.id: one for one in dead_letters.opened(queue.name, found, engine.plugins)}
        parcels: dict[int, Parcel] = {}
        for number, one in readable.items():
            parcel = self._route(queue.name, one, rules)
            if parcel is not None:
                parcels[number] = parcel
        going = [one.delivery for one in found if one.delivery.id in parcels]
        if going:
            places = [(delivery.lane, delivery.id) for delivery in going]
            self._broker.publisher.move(parcels, lambda: dead_letters.take_out(queue, places))
        left = [one.delivery for one in found if one.delivery.id not in parcels]
        if left:
            reason = f"the dead-letter exchange {rules.exchange!r} routes it to no queue"
            _log.warning(
                "%d messages stay in queue %r as dead letters, the first of them %d: %s",
                len(left),
                queue.name,
                left[0].id,
                reason,
            )
            engine.run(dead_letters.put_aside, queue, [(each.lane, each.id) for each in left], "Unroutable", reason)
        return len(found)

    def _route(self, name: str, one: Fallen, rules: Rules) -> Parcel | None:
        try:
            message, routing_key = dead_letters.dead_lettered(name, one, rules)
            parcel = self._broker.publisher.route_as_it_is(message, rules.exchange or "", routing_key)
        except ChannelError:
            return None
        except Unavailable:
            raise
        except Exception as error:
            # Another program wrote what Kombu cannot read, or could not have published. It must not hold up the others.
            problem = str(error) if isinstance(error, PgqrsError) else repr(error)
            _log.warning("message %d of queue %r cannot be passed on: %s", one.delivery.id, name, problem)
            return None
        drafts = [draft for draft in parcel.drafts if dead_letters.may_go_to(draft.queue, message, one.reason)]
        parcel = self._trusted(name, one, parcel._replace(drafts=drafts))
        return None if parcel.is_empty else parcel

    def _trusted(self, name: str, one: Fallen, parcel: Parcel) -> Parcel:
        """Leave out the queues for which a message would be sealed here that was not sealed by those who sent it."""
        codecs = self._broker.engine.plugins.hooks.codecs
        if not codecs.is_active:
            return parcel
        wanting = {draft.queue: dead_letters.lacking(one, codecs.required(draft.queue)) for draft in parcel.drafts}
        if parcel.post is not None:
            # Which ephemeral queues it would reach is not known yet.
            to = parcel.post.exchange or parcel.post.routing_key
            wanting[to] = dead_letters.lacking(one, {*codecs.required(to), *codecs.strict})
        refused = {to: missing for to, missing in wanting.items() if missing}
        for to, missing in refused.items():
            text = "message %d of queue %r is not passed on to %r: it lacks what is required there: %s"
            _log.warning(text, one.delivery.id, name, to, ", ".join(missing))
        post = parcel.post
        return parcel._replace(
            drafts=[draft for draft in parcel.drafts if draft.queue not in refused],
            post=None if post is not None and (post.exchange or post.routing_key) in refused else post,
        )
