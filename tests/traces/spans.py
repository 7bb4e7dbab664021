"""The SDK's spans as a reader of traces brings them back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id

from reqpath import conventions as names
from reqpath.collect.spans import PathSpan
from reqpath.path import RequestPath
from reqpath.traces.span import Event, Kind, Link, Span


def as_sdk_spans(spans: Iterable[PathSpan]) -> tuple[ReadableSpan, ...]:
    """Return the spans as what exporters take them for."""
    return cast(tuple[ReadableSpan, ...], tuple(spans))


def read_back(spans: Iterable[PathSpan | ReadableSpan]) -> list[Span]:
    """Return the spans as they come back from a backend that keeps nanoseconds."""
    return [read_back_one(span) for span in spans]


def read_back_one(span: PathSpan | ReadableSpan) -> Span:
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


def make_sdk_spans(path: RequestPath, spans: Iterable[Span]) -> list[Span]:
    """Return the spans that the app's own SDK sends beside `spans`, reqpath's of the path."""
    made = []
    requests = {span.span_id: span for span in spans if span.attributes[names.ROLE] == names.REQUEST}
    for worker in (path.worker, *path.retried):
        if worker is None:
            continue
        request = requests[worker.span_id]
        app_span = worker.app_span
        if app_span is not None and app_span.trace_id == worker.trace_id:
            start_ns = max(request.start_ns, worker.app_start_ns + app_span.start_ns)
            end_ns = request.end_ns
            if app_span.end_ns is not None:
                end_ns = max(start_ns, min(end_ns, worker.app_start_ns + app_span.end_ns))
            made.append(
                Span(
                    worker.trace_id,
                    app_span.span_id,
                    worker.span_id,
                    names.name_request(worker.method, worker.route),
                    "server",
                    request.service,
                    start_ns,
                    end_ns,
                    {"http.request.method": worker.method},
                )
            )
        for span_id in {each.app_span_id for each in worker.operations if each.app_span_id is not None}:
            calls = [each for each in worker.operations if each.app_span_id == span_id]
            made.append(
                Span(
                    worker.trace_id,
                    span_id,
                    worker.span_id,
                    "SELECT",
                    "client",
                    request.service,
                    worker.app_start_ns + min(each.start_ns for each in calls),
                    worker.app_start_ns + max(each.end_ns for each in calls),
                    {"db.system.name": "mysql"},
                )
            )
    return made


def _plain(attributes: Any) -> dict[str, Any]:
    """Return attributes as the wire brings them: a sequence is a list, whatever it was."""
    return {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in (attributes or {}).items()
    }
