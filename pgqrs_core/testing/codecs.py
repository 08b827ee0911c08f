"""What every codec must do, as a class of tests: derive from it and return a codec.

::

    class TestZstd(CodecConformance):
        def make(self):
            return ZstdCodec(lambda queue: True, min_bytes=0)
"""

from __future__ import annotations

from typing import Any

from pgqrs_core.codecs import ENCODING, STAGES, Codec, CodecStack, Envelope
from pgqrs_core.events import ConsumeBatch, Draft
from pgqrs_core.messages import Delivery, encode_headers
from pgqrs_core.testing.by_hand import NOON

__all__ = ["CodecConformance", "received", "sent"]

_BODIES = (b"", b"x", b"{}" * 2_000, bytes(range(256)) * 16)


def sent(stack: CodecStack, body: bytes, headers: dict[str, Any] | None = None, *, queue: str = "jobs") -> Draft:
    """Return a draft as ``stack`` leaves it to be written."""
    draft = Draft(queue, body, "text/plain", headers)
    stack.encode([draft])
    return draft


def received(stack: CodecStack, draft: Draft, *, queue: str | None = None) -> ConsumeBatch:
    """Return a batch of one as ``stack`` leaves it, of a draft that was written."""
    raw = encode_headers(draft.headers)
    delivery = Delivery(0, 1, 1, 0, NOON, draft.content_type, raw, draft.body)
    batch = ConsumeBatch(queue or draft.queue, "test", [delivery])
    stack.decode(batch)
    return batch


class CodecConformance:
    """The tests. ``binds`` says whether a body that was changed or moved must be refused."""

    binds = False

    def make(self) -> Codec:
        """Return a codec that encodes whatever it can."""
        raise NotImplementedError

    def test_it_is_a_codec_of_a_known_stage(self) -> None:
        """It has all members."""
        codec = self.make()
        assert isinstance(codec, Codec)
        assert codec.stage in STAGES

    def test_what_goes_in_comes_out_with_its_headers(self) -> None:
        """Whatever the body; the header of the encoding is gone again."""
        stack = CodecStack([("tested", self.make())])
        for body in _BODIES:
            for headers in (None, {"message_type": "mail", "nested": {"a": [1.5, None, "ü"]}}):
                draft = sent(stack, body, headers)
                [delivery] = received(stack, draft).deliveries
                assert (delivery.body, delivery.headers) == (body, headers or {})

    def test_two_of_its_layers_are_undone_in_turn(self) -> None:
        """As when a message is sent on as it is stored."""
        codec, around = self.make(), Envelope("jobs", "text/plain", {})
        body, layers = b"abc" * 1_000, []
        for _ in range(2):
            encoded = codec.encode(body, around)
            if encoded is not None:
                body = encoded[0]
                layers.append(encoded[1])
        for facts in reversed(layers):
            body = codec.decode(body, around, facts)
        assert body == b"abc" * 1_000

    def test_damage_is_noticed_or_harmless(self) -> None:
        """A flipped bit or a cut body buries the message, or gives bytes; nothing else happens."""
        stack = CodecStack([("tested", self.make())])
        draft = sent(stack, b"{}" * 2_000)
        whole = draft.body
        for place in range(0, len(whole), max(len(whole) // 50, 1)):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
                draft.body = damaged
                batch = received(stack, draft)
                assert len(batch.deliveries) + len(batch.buried) == 1
                assert not (self.binds and batch.deliveries)

    def test_what_is_bound_cannot_be_moved(self) -> None:
        """To another queue, type or header."""
        stack = CodecStack([("tested", self.make())])
        draft = sent(stack, b"x" * 2_000, {"message_type": "mail"})
        moved = received(stack, draft, queue="other")
        draft.headers = {**(draft.headers or {}), "message_type": "note"}
        changed = received(stack, draft)
        if self.binds:
            assert (moved.deliveries, changed.deliveries) == ([], [])

    def test_facts_of_somebody_else_bury_the_message_or_give_bytes(self) -> None:
        """Headers can hold anything."""
        codec = self.make()
        stack = CodecStack([("tested", codec)])
        for facts in ({}, {"key": 5}, {"key": "other"}, {"size": -1}, {"surprise": [1]}):
            draft = Draft("jobs", b"not of this codec", "text/plain", {ENCODING: [{"codec": codec.name, **facts}]})
            batch = received(stack, draft)
            assert len(batch.deliveries) + len(batch.buried) + len(batch.postponed) == 1
            assert not (self.binds and batch.deliveries)
