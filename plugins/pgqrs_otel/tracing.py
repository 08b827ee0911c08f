"""Spans for enqueueing, receiving and handling.

==============  ========  =========================================================================
span            kind      parent and links
==============  ========  =========================================================================
enqueue QUEUE   producer  the current span; its context travels in the headers of every message
receive QUEUE   client    the current span; a link to each producer's. Only without a worker
process QUEUE   consumer  the producer's span, or for a batch a link to each producer's. Where there
                          is a current span already, that one, and a link
==============  ========  =========================================================================
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final

import msgspec
from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from pgqrs_core.hookspecs import hookimpl
from pgqrs_otel.conventions import ATTEMPT, BATCH_COUNT, ERROR_TYPE, MESSAGE_ID, about
from pgqrs_otel.passing import MOST_LINKS, headers_of, inject, links_of, links_of_headers, with_parent

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from pgqrs_core.events import Claimed, EnqueueBatch, Handling

__all__ = ["Tracing"]

#: Seconds between two questions whether there is a provider by now. Each looks into the environment.
_ASK: Final = 0.1


class Tracing:
    """A plugin that traces with one provider, the global one by default."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("pgqrs", tracer_provider=provider)
        self._collected = False
        self._ask_at = 0.0

    @hookimpl
    def pgqrs_around_enqueue(self, batch: EnqueueBatch) -> AbstractContextManager[None] | None:
        """Trace the enqueueing, and put its context into the headers of messages that carry none."""
        outer = context.get_current()
        if not outer and self._is_idle():
            # Nobody collects spans, and there is nothing to pass on.
            return None
        attributes = about(batch.queue, batch.adapter, "enqueue", "send")
        if len(batch.drafts) > 1:
            attributes[BATCH_COUNT] = len(batch.drafts)
        known = headers_of(batch.drafts)
        links = links_of_headers(known) if any(known.values()) else None
        span = self._tracer.start_span(f"enqueue {batch.queue}", outer, SpanKind.PRODUCER, attributes, links)
        inject(batch.drafts, known, span, outer)
        return _Work(span, trace.set_span_in_context(span, outer), batch)

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        """Trace what was received, unless its handlers will be traced."""
        if event.managed or self._is_idle():
            return
        ended = round(event.claimed_at * 1e9)
        attributes = about(event.queue, event.adapter, "receive", "receive")
        if len(event.deliveries) == 1:
            attributes[MESSAGE_ID] = str(event.deliveries[0].id)
        else:
            attributes[BATCH_COUNT] = len(event.deliveries)
        span = self._tracer.start_span(
            f"receive {event.queue}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links_of([delivery.raw_headers for delivery in event.deliveries]),
            start_time=ended - round(event.seconds * 1e9),
        )
        span.end(ended)

    @hookimpl
    def pgqrs_around_handler(self, handling: Handling) -> AbstractContextManager[None]:
        """Trace a call of a handler, as the current span."""
        messages = handling.messages
        attributes = about(handling.queue, handling.adapter, "process", "process")
        outer = context.get_current()
        links: list[Link] = []
        if len(messages) == 1:
            attributes[MESSAGE_ID] = str(messages[0].message_id)
            attributes[ATTEMPT] = messages[0].attempt
            if trace.get_current_span(outer).get_span_context().is_valid:
                links = links_of([messages[0].raw_headers])
            elif messages[0].raw_headers:
                outer = with_parent(messages[0].raw_headers, outer)
        else:
            attributes[BATCH_COUNT] = len(messages)
            links = links_of([message.raw_headers for message in messages])
        span = self._tracer.start_span(
            f"process {handling.queue}", outer, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        )
        return _Work(span, trace.set_span_in_context(span, outer), handling=handling)

    def _is_idle(self) -> bool:
        """Tell whether nobody collects spans. Once a provider is set, it stays."""
        if self._collected:
            return False
        now = monotonic()
        if now < self._ask_at:
            return True
        self._ask_at = now + _ASK
        provider = self._provider or trace.get_tracer_provider()
        # Not by isinstance: they are abstract, and of such it is asked in Python.
        self._collected = type(provider) not in (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
        return not self._collected


class _Work(msgspec.Struct):
    """Makes a span the current one, and ends it with what became of its work.

    Written out: a generator, as contextlib would have it, takes longer than all of this.
    """

    span: Span
    inner: Context
    batch: EnqueueBatch | None = None
    handling: Handling | None = None
    token: Token[Context] | None = None

    def __enter__(self) -> None:
        self.token = context.attach(self.inner)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        if self.token is not None:
            context.detach(self.token)
        span = self.span
        if span.is_recording():
            if self.batch is not None and len(self.batch.ids) == 1:
                span.set_attribute(MESSAGE_ID, str(self.batch.ids[0]))
            if error is not None:
                span.set_attribute(ERROR_TYPE, type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
                span.record_exception(error)
            elif self.handling is not None and self.handling.failures:
                _record_failures(span, self.handling)
        span.end()


def _record_failures(span: Span, handling: Handling) -> None:
    """Record what a batch handler returned as failed: an event for each message, the first one's type for the span."""
    failures = handling.failures
    span.set_attribute(ERROR_TYPE, type(failures[0][1]).__qualname__)
    span.set_status(Status(StatusCode.ERROR, f"{len(failures)} of {len(handling.messages)} messages failed"))
    for message_id, error in failures[:MOST_LINKS]:
        span.record_exception(error, {MESSAGE_ID: str(message_id)})
