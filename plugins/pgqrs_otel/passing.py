"""Trace contexts in the headers of messages: written when they are enqueued, read when they come out.

What they look like is up to the global propagator. By default that is W3C's, and what it mostly writes – one short line –
is written and read here directly, in a tenth of the time: it happens for every message. Baggage, a trace state, another
propagator, a header written by other means: whatever is not that line goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pgqrs_core.messages import decode_headers

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span

    from pgqrs_core.events import Draft

__all__ = ["MOST_LINKS", "headers_of", "inject", "links_of", "links_of_headers", "with_parent"]

#: Links per span; the SDK keeps as many unless told otherwise.
MOST_LINKS: Final = 128
_EMPTY: Final = context.Context()
_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()
#: What propagators write by default.
_W3C: Final = frozenset({"traceparent", "tracestate", "baggage"})
_LINE: Final = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch


class _Headers(msgspec.Struct, gc=False):
    """Those of stored headers that W3C's propagators know."""

    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""


_decode: Final = msgspec.json.Decoder(_Headers).decode


def headers_of(drafts: Iterable[Draft]) -> dict[int, dict[str, Any] | None]:
    """Return the different headers of drafts by identity: those of one batch mostly share theirs."""
    return {id(draft.headers): draft.headers for draft in drafts}


def inject(drafts: Sequence[Draft], known: dict[int, dict[str, Any] | None], span: Span, outer: Context) -> None:
    """Put a span's context into the headers that carry none. Drafts that shared their headers share them still.

    Args:
        drafts: what is about to be enqueued.
        known: their different headers.
        span: what they are to name.
        outer: the context around it, for baggage and for propagators of other kinds.
    """
    carrier = _carrier(span, outer)
    if not carrier:
        return
    changed = {place: _merged(headers, carrier) if headers else carrier for place, headers in known.items()}
    for draft in drafts:
        # What is known keeps the old headers, so no identity is used twice.
        draft.headers = changed[id(draft.headers)]


def links_of_headers(known: dict[int, dict[str, Any] | None]) -> list[Link]:
    """Return links to the trace contexts that headers carry before they are stored."""
    return _links(_extract(headers) for headers in known.values() if headers and _is_bound(headers))


def links_of(stored: Iterable[str | None]) -> list[Link]:
    """Return links to the contexts that stored headers carry, each once: a batch that was sent together has one."""
    return _links(_line(text) or _extract(_texts(text)) for text in dict.fromkeys(stored) if text)


def with_parent(stored: str, outer: Context) -> Context:
    """Return a context with all that stored headers carry, the span that is to be the parent among it."""
    if (line := _line(stored)) is not None:
        return trace.set_span_in_context(NonRecordingSpan(line), outer)
    return propagate.extract(_texts(stored), outer)


def _carrier(span: Span, outer: Context) -> dict[str, Any]:
    carrier: dict[str, Any] = {}
    if not _is_w3c(propagate.get_global_textmap()) or (outer and baggage.get_all(outer)):
        propagate.inject(carrier, trace.set_span_in_context(span, outer))
    elif (at := span.get_span_context()).is_valid:
        carrier["traceparent"] = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
        if at.trace_state:
            carrier["tracestate"] = at.trace_state.to_header()
    return carrier


def _merged(headers: dict[str, Any], carrier: dict[str, Any]) -> dict[str, Any]:
    return headers if _is_bound(headers) else {**headers, **carrier}


def _is_bound(headers: dict[str, Any]) -> bool:
    """Tell whether headers carry a context already."""
    return not _fields(propagate.get_global_textmap()).isdisjoint(headers)


def _links(found: Iterable[SpanContext]) -> list[Link]:
    distinct: dict[tuple[int, int], Link] = {}
    for one in found:
        if one.is_valid:
            distinct[one.trace_id, one.span_id] = Link(one)
            if len(distinct) == MOST_LINKS:
                break
    return list(distinct.values())


def _line(stored: str) -> SpanContext | None:
    """Return what is read without a propagator: W3C's default line, alone."""
    if not _is_w3c(propagate.get_global_textmap()):
        return None
    try:
        found = _decode(stored)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    parts = _LINE(found.traceparent)
    if parts is None or found.tracestate or found.baggage:
        return None
    trace_id, span_id, flags = parts.groups()
    one = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    return one if one.is_valid else None


def _extract(headers: dict[str, Any]) -> SpanContext:
    every = propagate.get_global_textmap()
    # Of W3C's propagators the one that knows spans is enough.
    found = (_TRACE_CONTEXT if _is_w3c(every) else every).extract(headers, _EMPTY)
    return trace.get_current_span(found).get_span_context()


def _texts(stored: str) -> dict[str, str]:
    """Return the headers that are texts; others may be anything, if they were written by other means."""
    try:
        headers = decode_headers(stored)
        return {key: value for key, value in headers.items() if isinstance(value, str)}
    except (ValueError, AttributeError):
        return {}


@lru_cache(maxsize=4)
def _fields(propagator: TextMapPropagator) -> frozenset[str]:
    """Return the headers that a propagator writes. It puts them together anew at each call."""
    return frozenset(propagator.fields)


@lru_cache(maxsize=4)
def _is_w3c(propagator: TextMapPropagator) -> bool:
    """Tell whether a propagator writes what propagators write by default."""
    return _fields(propagator) == _W3C
