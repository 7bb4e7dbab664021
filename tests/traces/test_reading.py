"""Paths are read by service, and what was read is counted."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from reqpath.collect.spans import build_spans
from reqpath.path import RequestPath
from reqpath.traces.counts import TraceCounts
from reqpath.traces.reading import build_counted
from reqpath.traces.span import Span
from tests.factories import make_nginx_record, make_path, make_writer_info
from tests.traces.spans import read_back

_TRACE = "4b" * 16


def make_trace(paths: Iterable[RequestPath], service: str) -> list[Span]:
    return [span for path in paths for span in read_back(build_spans(path, service_name=service))]


def make_service(service: str, digit: str) -> RequestPath:
    """Return a path of a service, with ids of its own in the one trace."""
    path = make_path(trace_id=_TRACE)
    assert path.worker is not None
    assert path.nginx is not None
    path.worker.span_id, path.worker.parent_id, path.nginx.span_id = (
        digit * 16,
        f"{digit}a" * 8,
        f"{digit}a" * 8,
    )
    return RequestPath(path.worker, make_writer_info(service_name=service), path.nginx)


@pytest.mark.parametrize("service", ["shop", "cart"])
def test_of_a_trace_through_two_services_one_is_read(service: str) -> None:
    trace = make_trace([make_service("shop", "1"), make_service("cart", "2")], "unused")
    counts = TraceCounts()
    (path,) = build_counted(trace, service, counts)
    assert path.info is not None
    assert path.info.service_name == service
    assert counts == TraceCounts(traces=1, spans=len(trace))


def test_without_a_service_all_are_read() -> None:
    trace = make_trace([make_service("shop", "1"), make_service("cart", "2")], "unused")
    assert len(list(build_counted(trace, None, TraceCounts()))) == 2


def test_what_nginx_answered_by_itself_is_its_services() -> None:
    trace = make_trace([RequestPath(None, None, make_nginx_record(attempts=[]))], "shop")
    assert len(list(build_counted(trace, "shop", TraceCounts()))) == 1
    counts = TraceCounts()
    assert list(build_counted(trace, "cart", counts)) == []
    assert counts == TraceCounts(traces=1, spans=1, without_request=1)


def test_a_trace_without_a_request_is_counted() -> None:
    trace = make_trace([make_service("shop", "1")], "shop")
    orphans = [span for span in trace if span.kind == "client" and span.service == "shop"]
    counts = TraceCounts()
    assert list(build_counted(orphans, None, counts)) == []
    assert counts == TraceCounts(traces=1, spans=len(orphans), without_request=1)


def test_requests_of_other_instrumentation_are_counted() -> None:
    span = Span(
        _TRACE,
        "1" * 16,
        "",
        "GET /",
        "server",
        "shop",
        1_800_000_000_000_000_000,
        1_800_000_000_001_000_000,
        {"http.request.method": "GET"},
    )
    counts = TraceCounts()
    (path,) = build_counted(
        [span, msgspec.structs.replace(span, span_id="2" * 16, kind="internal")], "shop", counts
    )
    assert path.timing.total_ns == 1_000_000
    assert counts == TraceCounts(traces=1, spans=2, plain=1)
