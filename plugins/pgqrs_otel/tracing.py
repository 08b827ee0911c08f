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

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from pgqrs_core.hookspecs import hookimpl
from pgqrs_core.messages import decode_headers
from pgqrs_otel.conventions import ATTEMPT, BATCH_COUNT, ERROR_TYPE, MESSAGE_ID, about

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from pgqrs_core.events import Claimed, Draft, EnqueueBatch, Handling

__all__ = ["Tracing"]

#: Links per span; the SDK keeps as many unless told otherwise.
_MOST: Final = 128
_EMPTY: Final = context.Context()


class Tracing:
    """A plugin that traces with one provider, the global one by default."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("pgqrs", tracer_provider=provider)

    @hookimpl
    @contextmanager
    def pgqrs_around_enqueue(self, batch: EnqueueBatch) -> Iterator[None]:
        """Trace the enqueueing, and put its context into the headers of messages that carry none."""
        attributes = about(batch.queue, batch.adapter, "enqueue", "send")
        if len(batch.drafts) > 1:
            attributes[BATCH_COUNT] = len(batch.drafts)
        bare, links = _sort(batch.drafts)
        span = self._tracer.start_span(
            f"enqueue {batch.queue}", kind=SpanKind.PRODUCER, attributes=attributes, links=links
        )
        inner = trace.set_span_in_context(span)
        _inject(bare, inner)
        with _running(span, inner):
            yield
            if len(batch.ids) == 1:
                span.set_attribute(MESSAGE_ID, str(batch.ids[0]))

    @hookimpl
    def pgqrs_after_claim(self, event: Claimed) -> None:
        """Trace what was received, unless its handlers will be traced."""
        if event.managed or self._is_idle():
            return
        ended = round(event.claimed_at * 1e9)
        attributes = about(event.queue, event.adapter, "receive", "receive")
        attributes[BATCH_COUNT] = len(event.deliveries)
        if len(event.deliveries) == 1:
            attributes[MESSAGE_ID] = str(event.deliveries[0].id)
        span = self._tracer.start_span(
            f"receive {event.queue}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=_links(delivery.raw_headers for delivery in event.deliveries),
            start_time=ended - round(event.seconds * 1e9),
        )
        span.end(ended)

    @hookimpl
    @contextmanager
    def pgqrs_around_handler(self, handling: Handling) -> Iterator[None]:
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
        with _running(span, trace.set_span_in_context(span, outer)):
            yield

    def _is_idle(self) -> bool:
        """Tell whether nobody collects spans."""
        provider = self._provider or trace.get_tracer_provider()
        return isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))


@contextmanager
def _running(span: Span, inner: Context) -> Iterator[None]:
    """Make a span the current one, and note how its work ends."""
    token = context.attach(inner)
    try:
        yield
    except BaseException as error:
        if span.is_recording():
            span.set_attribute(ERROR_TYPE, type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            span.record_exception(error)
        raise
    finally:
        context.detach(token)
        span.end()


def _sort(drafts: Iterable[Draft]) -> tuple[list[Draft], list[Link]]:
    """Return the drafts that carry no trace context yet, and links to the contexts that the others carry."""
    fields = propagate.get_global_textmap().fields
    bare: list[Draft] = []
    found: dict[SpanContext, None] = {}
    for draft in drafts:
        headers = draft.headers
        if headers is None or fields.isdisjoint(headers):
            bare.append(draft)
        elif len(found) < _MOST:
            found[_context_of(headers)] = None
    return bare, [Link(one) for one in found if one.is_valid]


def _inject(drafts: Iterable[Draft], inner: Context) -> None:
    """Put a trace context into the headers of drafts. Those that shared their headers share them still."""
    carrier: dict[str, Any] = {}
    propagate.inject(carrier, inner)
    if not carrier:
        return
    # By identity, which holds as long as the old headers are kept.
    changed: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for draft in drafts:
        headers = draft.headers
        if headers is None:
            draft.headers = carrier
            continue
        pair = changed.get(id(headers))
        if pair is None:
            pair = changed[id(headers)] = headers, {**headers, **carrier}
        draft.headers = pair[1]


def _links(stored: Iterable[str | None]) -> list[Link]:
    """Return links to the contexts that stored headers carry, each once: a batch that was sent together has one."""
    found: dict[SpanContext, None] = {}
    for text in dict.fromkeys(stored):
        if text and len(found) < _MOST:
            found[_context_of(_texts(text))] = None
    return [Link(one) for one in found if one.is_valid]


def _context_of(headers: dict[str, Any]) -> SpanContext:
    return trace.get_current_span(propagate.extract(headers, _EMPTY)).get_span_context()


def _texts(stored: str) -> dict[str, str]:
    """Return the headers that are texts; others may be anything, if they were written by other means."""
    try:
        headers = decode_headers(stored)
        return {key: value for key, value in headers.items() if isinstance(value, str)}
    except (ValueError, AttributeError):
        return {}
