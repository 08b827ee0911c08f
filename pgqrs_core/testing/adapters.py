"""What every adapter must do with its messages and with everybody's plugins, as a class of tests.

An adapter brings a driver, some ten lines that say in its own words "send", "take", "ack"::

    class TestNative(AdapterConformance):
        @contextmanager
        def adapter(self, dsn, plugins):
            with Client(dsn, plugins=plugins) as client:
                client.admin.install()
                client.admin.create_queue("jobs", lease_seconds=1)
                yield Driver(client)

Where an adapter stores more than the body, an envelope around it for instance, ``wire`` says what::

        def wire(self, body):
            return json.dumps({"body": body.decode()}).encode()

The tests take the fixture ``pgqrs_dsn`` of ``pgqrs_core.testing.postgres``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pgqrs_core.codecs import Encoded, Envelope, Stage
from pgqrs_core.events import ConsumeBatch, Consumed, EnqueueBatch, Enqueued
from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.plugins import Plugins

__all__ = ["AdapterConformance", "AdapterDriver", "Witness"]


class AdapterDriver(Protocol):
    """An adapter as the suite uses it: one queue, whose leases are short, and bodies that are bytes."""

    def send(self, bodies: Sequence[bytes]) -> None:
        """Enqueue in one go, if the adapter can."""

    def take(self, count: int) -> list[Any]:
        """Return ``count`` messages as the adapter has them, or fewer if there are none for a second."""

    def body(self, message: Any) -> bytes:
        """Return the body of a message that was taken."""

    def ack(self, messages: Sequence[Any]) -> None:
        """Settle them for good; return once that is committed."""

    def give_back(self, messages: Sequence[Any]) -> None:
        """Return them to the queue, to be delivered again."""

    def abandon(self) -> None:
        """Forget all messages that were taken, as a process that is killed does, and start anew."""

    def stored(self) -> list[bytes]:
        """Return the bodies as they lie in the database, envelopes and all, whatever their state."""


class Witness:
    """A plugin that notes what it is told, turns bodies round on their way, and refuses what asks for it.

    Args:
        wire: tells what plugins see of a body, as `AdapterConformance.wire` does.
    """

    name = "witness"
    stage: Stage = "transform"
    active = True

    def __init__(self, wire: Callable[[bytes], bytes]) -> None:
        self._veto, self._bury, self._drop = map(wire, (b"veto", b"bury", b"drop"))
        #: How many messages each hook was told of.
        self.messages: Counter[str] = Counter()
        #: How often each hook was called.
        self.calls: Counter[str] = Counter()
        self.adapters: set[str] = set()

    def wants(self, queue: str, size: int) -> bool:
        """Encode everything."""
        return True

    def required(self, queue: str) -> bool:
        """Read everything."""
        return False

    def encode(self, body: bytes, around: Envelope) -> Encoded:
        """Turn the body round."""
        return body[::-1], {"queue": around.queue}

    def decode(self, body: bytes, around: Envelope, facts: dict[str, Any]) -> bytes:
        """Turn it back; it must come from where it was sent."""
        assert facts == {"queue": around.queue}
        return body[::-1]

    @hookimpl
    def pgqrs_codecs(self) -> list[Witness]:
        """Be a codec as well."""
        return [self]

    @hookimpl
    def pgqrs_before_enqueue(self, batch: EnqueueBatch) -> None:
        """Note; refuse ``veto``."""
        self._note("before_enqueue", batch.adapter, len(batch.drafts))
        for draft in batch.drafts:
            if draft.body == self._veto:
                raise PermissionError("vetoed")

    @hookimpl
    def pgqrs_after_enqueue(self, event: Enqueued) -> None:
        """Note, and fail: nobody may notice."""
        self._note("after_enqueue", event.adapter, event.count)
        raise RuntimeError("an observer that always fails")

    @hookimpl
    def pgqrs_before_consume(self, batch: ConsumeBatch) -> None:
        """Note; bury ``bury``, drop ``drop``."""
        self._note("before_consume", batch.adapter, len(batch.deliveries))
        for delivery in batch.deliveries:
            if delivery.body == self._bury:
                batch.bury(delivery, "asked for it")
            elif delivery.body == self._drop:
                batch.drop(delivery, "asked for it")

    @hookimpl
    def pgqrs_after_consume(self, event: Consumed) -> None:
        """Note, and fail: nobody may notice."""
        self._note("after_consume", event.adapter, len(event.outcomes))
        # The columns and the outcomes must say the same; what they do not agree about is missing.
        for outcome, kind, seconds in zip(event.outcomes, event.kinds, event.seconds_in_handler):
            self.messages[outcome.kind] += (kind, seconds) == (outcome.kind, outcome.seconds_in_handler)
        raise RuntimeError("an observer that always fails")

    def _note(self, hook: str, adapter: str, count: int) -> None:
        self.calls[hook] += 1
        self.messages[hook] += count
        self.adapters.add(adapter)


class AdapterConformance:
    """The tests. ``name`` is what the adapter calls itself in hooks, ``many`` how much is many."""

    name: str
    many = 1_000

    def adapter(self, dsn: str, plugins: Plugins) -> AbstractContextManager[AdapterDriver]:
        """Return a driver on an empty database that uses ``plugins``, closed at the end of the block."""
        raise NotImplementedError

    def wire(self, body: bytes) -> bytes:
        """Return what the adapter stores for a body, before codecs; always the same for the same body."""
        return body

    def plugins(self, witness: Witness) -> Plugins:
        """Return the plugins of a test; override it to add what the adapter needs itself."""
        plugins = Plugins.core()
        plugins.register(witness, "witness")
        return plugins

    def test_what_is_sent_is_taken_once_and_gone_when_acked(self, pgqrs_dsn: str) -> None:
        """One message and many, each body as it was."""
        with self.adapter(pgqrs_dsn, Plugins.load()) as driver:
            for count in (1, self.many):
                bodies = [f"{count}-{number}".encode() for number in range(count)]
                driver.send(bodies)
                taken = driver.take(count)
                assert sorted(map(driver.body, taken)) == sorted(bodies)
                assert driver.take(1) == []
                driver.ack(taken)
            assert driver.stored() == []

    def test_what_is_given_back_comes_again(self, pgqrs_dsn: str) -> None:
        """And what was not is not touched."""
        with self.adapter(pgqrs_dsn, Plugins.load()) as driver:
            driver.send([b"a", b"b"])
            taken = driver.take(2)
            driver.give_back([one for one in taken if driver.body(one) == b"a"])
            driver.ack([one for one in taken if driver.body(one) == b"b"])
            assert [driver.body(one) for one in driver.take(1)] == [b"a"]

    def test_what_a_killed_consumer_held_comes_again(self, pgqrs_dsn: str) -> None:
        """Once its lease has run out; nothing is lost."""
        with self.adapter(pgqrs_dsn, Plugins.load()) as driver:
            driver.send([b"a", b"b"])
            driver.take(2)
            driver.abandon()
            again: list[Any] = []
            for _ in range(30):
                again += driver.take(2 - len(again))
                if len(again) == 2:
                    break
            assert sorted(map(driver.body, again)) == [b"a", b"b"]

    def test_all_hooks_run_for_one_message_and_for_many(self, pgqrs_dsn: str) -> None:
        """Once a batch, by the adapter's own name; observers that fail are not noticed."""
        witness = Witness(self.wire)
        with self.adapter(pgqrs_dsn, self.plugins(witness)) as driver:
            for count in (1, self.many):
                witness.calls.clear()
                witness.messages.clear()
                driver.send([b"x"] * count)
                driver.ack(driver.take(count))
                hooks = ("before_enqueue", "after_enqueue", "before_consume", "after_consume", "acked")
                assert {hook: witness.messages[hook] for hook in hooks} == dict.fromkeys(hooks, count)
                assert witness.calls["before_enqueue"] <= max(count // 10, 1)
        assert witness.adapters == {self.name}

    def test_codecs_encode_what_is_stored_and_nobody_sees_it(self, pgqrs_dsn: str) -> None:
        """In the database the encoded body, outside of it the plain one; also after it was given back."""
        with self.adapter(pgqrs_dsn, self.plugins(Witness(self.wire))) as driver:
            driver.send([b"abc"])
            assert driver.stored() == [self.wire(b"abc")[::-1]]
            for _ in range(2):
                taken = driver.take(1)
                assert [driver.body(one) for one in taken] == [b"abc"]
                driver.give_back(taken)
                assert driver.stored() == [self.wire(b"abc")[::-1]]

    def test_a_veto_fails_the_sender_and_nothing_is_stored(self, pgqrs_dsn: str) -> None:
        """Not even the other messages of the batch."""
        with self.adapter(pgqrs_dsn, self.plugins(Witness(self.wire))) as driver:
            try:
                driver.send([b"fine", b"veto"])
            except Exception as error:
                assert "vetoed" in str(error)  # noqa: PT017 - this module does not import pytest
            else:
                raise AssertionError("the veto was not heard")
            assert driver.stored() == []

    def test_what_a_plugin_buries_or_drops_is_not_delivered_and_the_rest_is(self, pgqrs_dsn: str) -> None:
        """The buried one is kept, among the dead."""
        with self.adapter(pgqrs_dsn, self.plugins(Witness(self.wire))) as driver:
            driver.send([b"1", b"bury", b"drop", b"2"])
            taken = driver.take(4)
            assert sorted(map(driver.body, taken)) == [b"1", b"2"]
            driver.ack(taken)
            assert driver.stored() == [self.wire(b"bury")[::-1]]
