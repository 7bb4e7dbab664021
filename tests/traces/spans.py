"""The SDK's spans as a reader of traces brings them back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id

from reqpath.traces.span import Event, Kind, Link, Span


def read_back(spans: Iterable[ReadableSpan]) -> list[Span]:
    """Return the spans as they come back from a backend that keeps nanoseconds."""
    return [read_back_one(span) for span in spans]


def read_back_one(span: ReadableSpan) -> Span:
    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.instrumentation_scope is not None
    resource = _plain(span.resource.attributes)
    return Span(
        format_trace_id(span.context.trace_id),
        format_span_id(span.context.span_id),
        "" if span.parent is None else format_span_id(span.parent.span_id),
        span.name,
        cast(Kind, span.kind.name.lower()),
        str(resource["service.name"]),
        span.start_time,
        span.end_time,
        _plain(span.attributes),
        tuple(Event(event.name, event.timestamp, _plain(event.attributes)) for event in span.events),
        tuple(
            Link(
                format_trace_id(link.context.trace_id),
                format_span_id(link.context.span_id),
                _plain(link.attributes),
            )
            for link in span.links
        ),
        cast(Any, span.status.status_code.name),
        span.status.description,
        resource,
        span.instrumentation_scope.name,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    """Return attributes as the wire brings them: a sequence is a list, whatever it was."""
    return {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in (attributes or {}).items()
    }
