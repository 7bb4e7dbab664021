"""Paths from spans: reqpath's own come back as they were, other instrumentation's as far as it knows."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath import conventions as names
from reqpath.collect.spans import build_spans
from reqpath.path import RequestPath
from reqpath.record import AttributeValue
from reqpath.tiers import NAMES
from reqpath.traces.paths import build_paths
from reqpath.traces.span import Event, Kind, Span
from tests.factories import NOW_NS, make_path, make_shop_paths
from tests.strategies import request_paths
from tests.traces.spans import make_sdk_spans, read_back

MS = 1_000_000
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def facts_of(path: RequestPath) -> dict[str, Any]:
    """Return all that a path is made of, and what it says of itself."""
    return {
        "worker": path.worker,
        "info": path.info,
        "nginx": path.nginx,
        "retried": path.retried,
        "timing": path.timing,
        "route": path.route,
        "status": path.status,
    }


@given(path=request_paths())
@settings(max_examples=500)
def test_a_path_comes_back_from_its_spans_as_it_was(path: RequestPath) -> None:
    expected = facts_of(path)
    (found,) = build_paths(read_back(build_spans(path)))
    assert facts_of(found) == expected


@given(path=request_paths())
@settings(max_examples=200)
def test_a_path_that_came_back_gives_the_same_spans(path: RequestPath) -> None:
    service = "app" if path.info is None else path.info.service_name
    spans = read_back(build_spans(path, service_name=service))
    (found,) = build_paths(spans)
    assert read_back(build_spans(found, service_name=service)) == spans


@given(path=request_paths())
@settings(max_examples=100)
def test_the_spans_of_the_apps_own_sdk_change_nothing_in_its_path(path: RequestPath) -> None:
    expected = facts_of(path)
    spans = read_back(build_spans(path))
    (found,) = build_paths(spans + make_sdk_spans(path, spans))
    assert facts_of(found) == expected


def test_spans_of_many_requests_in_any_order_are_their_paths() -> None:
    paths = make_shop_paths(60)
    spans = [span for path in paths for span in read_back(build_spans(path))]
    found = build_paths(sorted(spans, key=lambda span: span.span_id))
    assert [path.trace_id for path in found] == [path.trace_id for path in paths]
    assert [path.timing for path in found] == [path.timing for path in paths]


def test_a_backend_that_rounds_to_microseconds_changes_no_segment() -> None:
    path = make_path(10_123_456, query_ns=1_234_567)
    spans = [
        msgspec.structs.replace(
            span, start_ns=span.start_ns // 1_000 * 1_000, end_ns=span.end_ns // 1_000 * 1_000
        )
        for span in read_back(build_spans(path))
    ]
    (found,) = build_paths(spans)
    assert found.timing.segments == path.timing.segments
    assert (found.timing.total_ns, found.timing.residual_ns) == (
        path.timing.total_ns,
        path.timing.residual_ns,
    )


def test_a_service_that_calls_another_in_one_trace_gives_two_paths() -> None:
    outer = make_path(number=1)
    inner = make_path(6 * MS, number=2, at_ns=5 * MS)
    assert outer.worker is not None
    assert inner.worker is not None
    assert inner.nginx is not None
    inner.worker.trace_id = inner.nginx.trace_id = outer.worker.trace_id
    inner.nginx.parent_id = outer.worker.span_id
    outer.worker.span_id, inner.worker.span_id = "00000000000000aa", "00000000000000bb"
    inner.nginx.parent_id = outer.worker.span_id
    found = build_paths(read_back(build_spans(outer)) + read_back(build_spans(inner)))
    assert [facts_of(path)["timing"] for path in found] == [outer.timing, inner.timing]
    assert [path.nginx for path in found] == [
        msgspec.structs.replace(path.nginx, sequence=0) for path in (outer, inner) if path.nginx is not None
    ]


def test_spans_of_a_path_that_lost_some_still_have_its_times() -> None:
    """The request's span alone: where nginx's was not stored, its end is not known."""
    path = make_path(query_ns=MS)
    (request,) = (
        span for span in read_back(build_spans(path)) if span.attributes[names.ROLE] == names.REQUEST
    )
    (found,) = build_paths([request])
    assert found.nginx is None
    assert found.worker is not None
    assert found.timing.missing == ("nginx_end",)
    assert found.timing.segments[:-1] == (*path.timing.segments[:2], None, *path.timing.segments[3:-1])


@given(path=request_paths(), data=st.data())
@settings(max_examples=100)
def test_spans_that_were_tampered_with_raise_nothing(path: RequestPath, data: st.DataObject) -> None:
    spans = read_back(build_spans(path))
    values = st.none() | st.booleans() | st.text(max_size=3) | st.integers(-5, 5) | st.just([1])
    tampered = []
    for span in spans:
        attributes = dict(span.attributes)
        for key in list(attributes):
            if data.draw(st.integers(0, 9)) == 0:
                attributes[key] = data.draw(values)  # type: ignore[assignment]  # a reader has no None
        parent_id = data.draw(st.sampled_from((span.parent_id, span.span_id, spans[0].span_id)))
        tampered.append(msgspec.structs.replace(span, attributes=attributes, parent_id=parent_id))
    for found in build_paths(tampered):
        assert found.timing.total_ns >= 0


# Other instrumentation's spans.


@dataclass
class Trace:
    """Spans of one trace as other instrumentation makes them."""

    spans: list[Span]

    def add(
        self,
        kind: Kind,
        start_ms: int,
        end_ms: int,
        parent: Span | None = None,
        *,
        scope: str = "opentelemetry.instrumentation.flask",
        events: tuple[Event, ...] = (),
        status: Any = "UNSET",
        **attributes: AttributeValue,
    ) -> Span:
        span = Span(
            TRACE_ID,
            f"{len(self.spans) + 1:016x}",
            parent.span_id if parent else "",
            "a span",
            kind,
            "shop",
            NOW_NS + start_ms * MS,
            NOW_NS + end_ms * MS,
            {key.replace("_", "."): value for key, value in attributes.items()},
            events,
            (),
            status,
            None,
            {"service.name": "shop"},
            scope,
        )
        self.spans.append(span)
        return span


def known(path: RequestPath) -> dict[str, int]:
    """Return the known segments by name."""
    return {
        name: value
        for name, value in zip(NAMES, path.timing.segments, strict=True)
        if value is not None and name != "nginx.upstream"
    }


@pytest.mark.parametrize("conventions", ["", "http", "http,database"])
def test_flasks_own_instrumentation_gives_the_app_and_its_queries(conventions: str) -> None:
    """Conventions old, new, and half of each."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.traces.plain_app"],
        env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": conventions},
        capture_output=True,
        text=True,
        check=True,
    )
    spans = msgspec.json.decode(result.stdout, type=list[Span])
    (path,) = build_paths(spans)
    assert (path.route, path.status, path.url_path) == ("GET /items/<int:number>", 200, "/items/7")
    worker = path.worker
    assert worker is not None
    assert path.info is not None
    assert (path.info.service_name, path.info.host) == ("shop", "web1")
    assert worker.host in ("localhost", "localhost:80")
    (operation,) = worker.operations
    assert operation.statement == "SELECT name FROM items WHERE id = %s"
    assert (operation.namespace, operation.server_address, operation.server_port) == ("shop", "db1", 3306)
    server = next(span for span in spans if span.kind == "server")
    query = next(span for span in spans if span.kind == "client")
    query_ns = query.end_ns - query.start_ns
    assert known(path) == {
        "wsgi.app": server.end_ns - server.start_ns - query_ns,
        "mysql.query": query_ns,
    }
    assert path.timing.residual_ns == 0
    assert path.timing.missing == ("nginx_start", "nginx_pass", "accept", "parsed", "nginx_end")


def test_queries_that_overlap_are_counted_once() -> None:
    trace = Trace([])
    server = trace.add("server", 0, 10, http_request_method="GET")
    view = trace.add("internal", 0, 10, server)
    for start_ms, end_ms in ((1, 4), (2, 5), (7, 20)):
        trace.add("client", start_ms, end_ms, view, db_system="mysql")
    (path,) = build_paths(trace.spans)
    assert known(path) == {"wsgi.app": 3 * MS, "mysql.query": 7 * MS}
    assert path.worker is not None
    assert [operation.concurrent for operation in path.worker.operations] == [False, True, True]


def test_nginxs_own_module_gives_the_total() -> None:
    trace = Trace([])
    nginx = trace.add("server", 0, 12, scope="nginx", http_method="GET", http_target="/items/7?a=1")
    trace.add("server", 2, 10, nginx, http_method="GET", http_route="/items/<int:id>")
    (path,) = build_paths(trace.spans)
    assert known(path) == {"wsgi.app": 8 * MS, "nginx.send": 2 * MS}
    assert (path.timing.total_ns, path.timing.residual_ns) == (12 * MS, 2 * MS)
    assert path.timing.missing == ("nginx_pass", "accept", "parsed")


def test_nginxs_own_module_alone_is_a_path_without_a_worker() -> None:
    trace = Trace([])
    trace.add("server", 0, 12, scope="nginx", http_method="GET", http_target="/x")
    (path,) = build_paths(trace.spans)
    assert path.route == "GET (no worker record)"
    assert path.timing.total_ns == 12 * MS


def test_an_exception_that_ended_a_request_is_read() -> None:
    trace = Trace([])
    facts: dict[str, AttributeValue] = {
        "exception.type": "ValueError",
        "exception.message": "no",
        "exception.stacktrace": "Traceback …",
    }
    trace.add(
        "server",
        0,
        9,
        http_request_method="GET",
        events=(Event("exception", NOW_NS, facts),),
        status="ERROR",
    )
    (path,) = build_paths(trace.spans)
    assert path.worker is not None
    assert path.worker.exception == ("ValueError", "no", "Traceback …")


def test_an_apps_own_instrumentation_beside_reqpaths_makes_no_second_path() -> None:
    path = make_path()
    spans = read_back(build_spans(path))
    request = next(span for span in spans if span.attributes[names.ROLE] == names.REQUEST)
    of_app = msgspec.structs.replace(
        request,
        span_id="00000000000000cc",
        parent_id=request.span_id,
        attributes={"http.request.method": "GET", "http.route": "/items/<int:id>"},
        scope="opentelemetry.instrumentation.flask",
    )
    (found,) = build_paths([*spans, of_app])
    assert found.timing == path.timing


def test_spans_of_no_request_are_no_path() -> None:
    trace = Trace([])
    trace.add("server", 0, 5, rpc_system="grpc")
    trace.add("client", 0, 5, db_system="mysql")
    assert build_paths(trace.spans) == []
