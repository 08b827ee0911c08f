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

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.messages import decode_headers
from pgqrs_otel.conventions import ATTEMPT, BATCH_COUNT, ERROR_TYPE, MESSAGE_ID, about

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import TracerProvider

    from pgqrs_core.events import Claimed, Draft, EnqueueBatch, Handling

__all__ = ["Tracing"]

#: Links per span; the SDK keeps as many unless told otherwise.
_MOST: Final = 128
_EMPTY: Final = context.Context()
_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()
#: What propagators write by default.
_W3C: Final = frozenset({"traceparent", "tracestate", "baggage"})


class Tracing:
    """A plugin that traces with one provider, the global one by default."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("pgqrs", tracer_provider=provider)

    @hookimpl
    def pgqrs_around_enqueue(self, batch: EnqueueBatch) -> AbstractContextManager[None] | None:
        """Trace the enqueueing, and put its context into the headers of messages that carry none."""
        if not context.get_current() and self._is_idle():
            # Nobody collects spans, and there is nothing to pass on.
            return None
        attributes = about(batch.queue, batch.adapter, "enqueue", "send")
        if len(batch.drafts) > 1:
            attributes[BATCH_COUNT] = len(batch.drafts)
        known, links = _known(batch.drafts)
        span = self._tracer.start_span(
            f"enqueue {batch.queue}", kind=SpanKind.PRODUCER, attributes=attributes, links=links
        )
        inner = trace.set_span_in_context(span)
        _inject(batch.drafts, known, inner)
        return _Work(span, inner, batch)

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
            links=_links(delivery.raw_headers for delivery in event.deliveries),
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
                links = _links([messages[0].raw_headers])
            elif messages[0].raw_headers:
                outer = propagate.extract(_texts(messages[0].raw_headers), outer)
        else:
            attributes[BATCH_COUNT] = len(messages)
            links = _links(message.raw_headers for message in messages)
        span = self._tracer.start_span(
            f"process {handling.queue}", outer, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        )
        return _Work(span, trace.set_span_in_context(span, outer), handling=handling)

    def _is_idle(self) -> bool:
        """Tell whether nobody collects spans."""
        provider = self._provider or trace.get_tracer_provider()
        return isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))


class _Work(AbstractContextManager[None]):
    """Makes a span the current one, and ends it with what became of its work.

    Written out: a generator, as contextlib would have it, takes longer than all of this.
    """

    __slots__ = ("_batch", "_handling", "_inner", "_span", "_token")

    def __init__(
        self, span: Span, inner: Context, batch: EnqueueBatch | None = None, handling: Handling | None = None
    ) -> None:
        self._span = span
        self._inner = inner
        self._batch = batch
        self._handling = handling

    def __enter__(self) -> None:
        self._token = context.attach(self._inner)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        context.detach(self._token)
        span = self._span
        if span.is_recording():
            if self._batch is not None and len(self._batch.ids) == 1:
                span.set_attribute(MESSAGE_ID, str(self._batch.ids[0]))
            if error is not None:
                span.set_attribute(ERROR_TYPE, type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
                span.record_exception(error)
            elif self._handling is not None and self._handling.failures:
                _record_failures(span, self._handling)
        span.end()


def _record_failures(span: Span, handling: Handling) -> None:
    """Record what a batch handler returned as failed: an event for each message, the first one's type for the span."""
    failures = handling.failures
    span.set_attribute(ERROR_TYPE, type(failures[0][1]).__qualname__)
    span.set_status(Status(StatusCode.ERROR, f"{len(failures)} of {len(handling.messages)} messages failed"))
    for message_id, error in failures[:_MOST]:
        span.record_exception(error, {MESSAGE_ID: str(message_id)})


def _known(drafts: Iterable[Draft]) -> tuple[dict[int, dict[str, Any] | None], list[Link]]:
    """Return the different headers of drafts by identity, and links to the trace contexts that some carry already."""
    known = {id(draft.headers): draft.headers for draft in drafts}
    fields = _fields(propagate.get_global_textmap())
    found: dict[tuple[int, int], SpanContext] = {}
    for headers in known.values():
        if headers is not None and not fields.isdisjoint(headers) and len(found) < _MOST:
            _note(headers, found)
    return known, [Link(one) for one in found.values()]


@lru_cache(maxsize=4)
def _fields(propagator: TextMapPropagator) -> frozenset[str]:
    """Return the headers that a propagator writes. It puts them together anew at each call."""
    return frozenset(propagator.fields)


def _inject(drafts: Iterable[Draft], known: dict[int, dict[str, Any] | None], inner: Context) -> None:
    """Put a trace context into the headers that carry none. Drafts that shared their headers share them still."""
    carrier: dict[str, Any] = {}
    (propagate if baggage.get_all(inner) else _for_spans()).inject(carrier, inner)
    if not carrier:
        return
    fields = _fields(propagate.get_global_textmap())
    changed: dict[int, dict[str, Any]] = {}
    for place, headers in known.items():
        if headers is None:
            changed[place] = carrier
        else:
            changed[place] = {**headers, **carrier} if fields.isdisjoint(headers) else headers
    for draft in drafts:
        # What is known keeps the old headers, so no identity is used twice.
        draft.headers = changed[id(draft.headers)]


def _links(stored: Iterable[str | None]) -> list[Link]:
    """Return links to the contexts that stored headers carry, each once: a batch that was sent together has one."""
    found: dict[tuple[int, int], SpanContext] = {}
    for text in dict.fromkeys(stored):
        if text and len(found) < _MOST:
            _note(_texts(text), found)
    return [Link(one) for one in found.values()]


def _for_spans() -> TextMapPropagator:
    """Return what is enough to pass on a span: of W3C's propagators the one that knows spans, at half the price."""
    every = propagate.get_global_textmap()
    return _TRACE_CONTEXT if _fields(every) == _W3C else every


def _note(headers: dict[str, Any], found: dict[tuple[int, int], SpanContext]) -> None:
    one = trace.get_current_span(_for_spans().extract(headers, _EMPTY)).get_span_context()
    if one.is_valid:
        found[one.trace_id, one.span_id] = one


def _texts(stored: str) -> dict[str, str]:
    """Return the headers that are texts; others may be anything, if they were written by other means."""
    try:
        headers = decode_headers(stored)
        return {key: value for key, value in headers.items() if isinstance(value, str)}
    except (ValueError, AttributeError):
        return {}
