"""The spans of a path: one connected trace, children within their parents, in the conventions' terms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from reqpath import conventions as names
from reqpath.collect.clocks import ClockOffset
from reqpath.collect.spans import build_spans
from reqpath.path import RequestPath
from reqpath.record import AppSpan, Attempt, Operation, SpanEvent
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.traces.span import Span
from tests.factories import (
    NGINX_SPAN_ID,
    NOW_NS,
    make_nginx_record,
    make_path,
    make_worker_record,
    make_writer_info,
)
from tests.strategies import request_paths
from tests.traces.spans import as_sdk_spans, make_sdk_spans, read_back

US = 1_000
MS = 1_000_000
VIEW = WORKER_SEGMENTS.index("flask.view")
TEMPLATE = WORKER_SEGMENTS.index("flask.template")
QUERY = WORKER_SEGMENTS.index("mysql.query")


def spans_of(path: RequestPath, **arguments: Any) -> list[Span]:
    return read_back(build_spans(path, **arguments))


def by_role(spans: list[Span]) -> dict[str, Span]:
    """Return the spans by their role; of several with one, the last."""
    return {str(span.attributes[names.ROLE]): span for span in spans}


def outline(spans: list[Span]) -> list[str]:
    """Return the trace as a tree: service, name, from and to in ms after `NOW_NS`."""
    known = {span.span_id for span in spans}
    lines = []

    def walk(parent_id: str, depth: int) -> None:
        for span in spans:
            if span.parent_id == parent_id or (not depth and span.parent_id not in known):
                start_ms, end_ms = (span.start_ns - NOW_NS) / MS, (span.end_ns - NOW_NS) / MS
                lines.append(f"{'  ' * depth}{span.service}: {span.name} {start_ms:g} to {end_ms:g}")
                walk(span.span_id, depth + 1)

    walk("", 0)
    return lines


def check_tree(spans: list[Span]) -> None:
    """Hold that there is one root, that all hang on it, and that no child sticks out of its parent."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "two spans have one id"
    roots = [span for span in spans if span.parent_id not in by_id]
    assert len({span.parent_id for span in roots}) == 1
    if any(span.attributes.get(names.ROLE) == names.NGINX for span in spans):
        assert len(roots) == 1
    for span in spans:
        assert span.trace_id == spans[0].trace_id
        assert 0 < span.start_ns <= span.end_ns
        parent = by_id.get(span.parent_id)
        if parent is not None:
            assert parent.start_ns <= span.start_ns
            assert span.end_ns <= parent.end_ns


@given(path=request_paths())
@settings(max_examples=400)
def test_every_path_is_one_connected_tree_with_children_inside_their_parents(path: RequestPath) -> None:
    spans = build_spans(path)
    found = read_back(spans)
    check_tree(found + make_sdk_spans(path, found))
    encode_spans(as_sdk_spans(spans)).SerializeToString()


def test_a_whole_path_is_a_trace_through_four_services() -> None:
    spans = spans_of(make_path(query_ns=3 * MS))
    assert outline(spans) == [
        "shop-nginx: GET /items/<int:id> 0 to 12",
        "  shop-nginx: GET upstream 0.5 to 11.5",
        "    shop-uwsgi: queue 0.5 to 2.5",
        "    shop-uwsgi: GET /items/<int:id> 2.5 to 11.5",
        "      shop-uwsgi: gil 3 to 4",
        "      shop: GET /items/<int:id> 4 to 11.5",
        "        shop: view 4.2 to 11.3",
        "          shop: SELECT shop 4.5 to 7.5",
        "            shop-mysql: SELECT shop 4.5 to 7.2",
    ]
    kinds = {span.attributes[names.ROLE]: span.kind for span in spans}
    assert kinds == {
        "nginx": "server",
        "attempt": "client",
        "queue": "internal",
        "uwsgi": "server",
        "gil": "internal",
        "request": "server",
        "view": "internal",
        "operation": "client",
        "server": "server",
    }
    assert {span.status for span in spans} == {"UNSET"}


def make_path_with_sdk(**overrides: Any) -> RequestPath:
    """Return a path whose app has instrumentations of Flask and PyMySQL of its own."""
    path = make_path(query_ns=3 * MS, **overrides)
    assert path.worker is not None
    path.worker.app_span = AppSpan(path.trace_id, "aa" * 8, 100 * US, 7_400 * US)
    path.worker.operations[0].app_span_id = "dd" * 8
    return path


def test_where_the_apps_own_sdk_makes_spans_reqpath_makes_what_is_around_and_below_them() -> None:
    path = make_path_with_sdk()
    spans = spans_of(path)
    everything = spans + make_sdk_spans(path, spans)
    check_tree(everything)
    assert outline(everything)[3:] == [
        "    shop-uwsgi: GET /items/<int:id> 2.5 to 11.5",
        "      shop-uwsgi: gil 3 to 4",
        "      shop: wsgi 4 to 11.5",
        "        shop: GET /items/<int:id> 4.1 to 11.4",
        "          shop: view 4.2 to 11.3",
        "        shop: SELECT 4.5 to 7.5",
        "          shop-mysql: SELECT shop 4.5 to 7.2",
    ]
    assert by_role(spans)["request"].kind == "internal"


def test_an_sdks_span_that_begins_before_reqpath_is_within_the_call() -> None:
    path = make_path_with_sdk()
    assert path.worker is not None
    path.worker.app_span = AppSpan(path.trace_id, "aa" * 8, -40 * US, None)
    spans = spans_of(path)
    check_tree(spans + make_sdk_spans(path, spans))
    request = by_role(spans)["request"]
    assert request.start_ns == path.worker.app_start_ns - 40 * US
    assert request.attributes[names.APP_START] == 40 * US


def test_an_sdks_span_in_a_trace_of_its_own_is_linked() -> None:
    path = make_path_with_sdk()
    assert path.worker is not None
    path.worker.app_span = AppSpan("cd" * 16, "aa" * 8, 0, None)
    request = by_role(spans_of(path))["request"]
    assert (request.name, request.kind) == ("GET /items/<int:id>", "server")
    assert [(link.trace_id, link.span_id) for link in request.links] == [("cd" * 16, "aa" * 8)]


def test_the_ids_are_those_that_were_current_in_nginx_and_in_the_app() -> None:
    path = make_path()
    assert path.worker is not None
    found = by_role(spans_of(path))
    assert found["nginx"].span_id == path.worker.parent_id
    assert found["request"].span_id == path.worker.span_id
    assert found["request"].trace_id == path.worker.trace_id


def test_exporting_a_path_again_gives_the_same_spans() -> None:
    assert spans_of(make_path(query_ns=MS)) == spans_of(make_path(query_ns=MS))


def test_the_requests_span_has_the_time_of_every_known_segment() -> None:
    path = make_path(query_ns=3 * MS)
    attributes = by_role(spans_of(path))["request"].attributes
    timing = path.timing
    for key, value in zip(names.SEGMENT_KEYS, timing.segments, strict=True):
        assert attributes.get(key) == value
    assert attributes[names.TOTAL] == timing.total_ns == 12 * MS
    assert attributes[names.RESIDUAL] == timing.residual_ns
    assert attributes[names.RESOLUTION] == US


def test_the_requests_span_follows_the_conventions_for_http() -> None:
    path = make_path(host="shop.example:8080", method="BREW", status=503, request_bytes=12)
    span = by_role(spans_of(path))["request"]
    assert span.name == "HTTP /items/<int:id>"
    expected = {
        "http.request.method": "_OTHER",
        "http.request.method_original": "BREW",
        "http.route": "/items/<int:id>",
        "http.response.status_code": 503,
        "http.request.body.size": 12,
        "http.response.body.size": 5_120,
        "url.path": "/items/7",
        "server.address": "shop.example",
        "server.port": 8080,
        "error.type": "503",
    }
    assert {key: span.attributes[key] for key in expected} == expected


def test_an_operation_follows_the_conventions_for_databases() -> None:
    operations = [
        Operation(
            "query",
            MS,
            3 * MS,
            2 * MS,
            "INSERT INTO t VALUES (?)",
            100,
            "IntegrityError: 1062",
            "tcp",
            "db1",
            3306,
            "shop",
            100,
            connection=4,
            fetch_ns=5,
        )
    ]
    span = by_role(spans_of(make_path(operations=operations)))["operation"]
    assert (span.name, span.kind, span.status) == ("INSERT shop", "client", "ERROR")
    assert span.attributes == {
        "reqpath.span": "operation",
        "reqpath.kind": "query",
        "reqpath.connection": 4,
        "reqpath.fetch_ns": 5,
        "reqpath.first_byte_ns": MS,
        "reqpath.affected_rows": 100,
        "db.system.name": "mysql",
        "db.namespace": "shop",
        "db.operation.name": "INSERT",
        "db.operation.batch.size": 100,
        "db.query.text": "INSERT INTO t VALUES (?)",
        "db.response.status_code": "1062",
        "error.type": "IntegrityError",
        "network.transport": "tcp",
        "server.address": "db1",
        "server.port": 3306,
    }


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("select 1", "SELECT"),
        ("/* ping */ SELECT 1", "SELECT"),
        ("  (SELECT 1) UNION (SELECT 2)", "SELECT"),
        ("?", "query"),
        ("", "query"),
        ("/* torn", "query"),
        (None, "query"),
    ],
)
def test_a_statement_is_named_by_its_first_word(statement: str | None, name: str) -> None:
    operation = Operation("query", 0, MS, statement=statement)
    assert by_role(spans_of(make_path(operations=[operation])))["operation"].name == name


def test_a_bad_gateway_is_nginxs_trace_alone() -> None:
    nginx = make_nginx_record(
        status=502, pass_ns=NOW_NS - MS, attempts=[Attempt("unix:/run/uwsgi.sock", 502, None, None, 0)]
    )
    spans = spans_of(RequestPath(None, None, nginx), service_name="shop")
    assert outline(spans) == [
        "shop-nginx: GET -2 to 10",
        "  shop-nginx: GET upstream -1 to -0.999999",
    ]
    root, attempt = spans
    assert (root.status, root.attributes["error.type"]) == ("ERROR", "502")
    assert (attempt.status, attempt.attributes["error.type"]) == ("ERROR", "502")
    assert root.attributes[names.TOTAL] == 12 * MS
    assert root.attributes[names.MISSING] == ["app_start"]


def test_a_client_that_went_away_is_no_error_of_the_server() -> None:
    """Source: the conventions leave a server span's status unset for 4xx."""
    path = make_path()
    assert path.nginx is not None
    path.nginx.status, path.nginx.attempts[0].status = 499, None
    path.nginx.end_ns -= 5 * MS
    spans = spans_of(path)
    check_tree(spans)
    root = by_role(spans)["nginx"]
    assert (root.status, root.attributes[names.CLIENT_GONE]) == ("UNSET", True)
    assert by_role(spans)["request"].attributes[names.ABANDONED] is True
    # The worker went on, and its trace with it; the event says when nginx was done.
    (event,) = root.events
    assert (event.name, event.time_ns) == ("client closed the connection", path.nginx.end_ns)
    assert root.end_ns == by_role(spans)["request"].end_ns


def test_an_unhandled_exception_is_an_event_with_its_stack() -> None:
    error = ("ValueError", "no such item", "Traceback …")
    spans = spans_of(make_path(status=500, exception=error))
    request = by_role(spans)["request"]
    assert (request.status, request.status_description) == ("ERROR", "ValueError: no such item")
    assert request.attributes["error.type"] == "ValueError"
    (event,) = request.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "no such item"
    assert event.attributes["exception.stacktrace"] == "Traceback …"
    assert [by_role(spans)[role].status for role in ("nginx", "uwsgi")] == ["ERROR", "ERROR"]


def test_what_the_app_set_on_its_span_is_there() -> None:
    path = make_path(
        span_name="buy",
        attributes={"customer": 7, "http.route": "/its/own"},
        events=[SpanEvent("cache miss", MS, {"key": "a"})],
        span_status=("ERROR", "sold out"),
    )
    span = by_role(spans_of(path))["request"]
    assert (span.name, span.status, span.status_description) == ("buy", "ERROR", "sold out")
    assert span.attributes["customer"] == 7
    assert span.attributes["http.route"] == "/its/own", "the app has the last word, as with an SDK"
    (event,) = span.events
    assert (event.name, event.attributes) == ("cache miss", {"key": "a"})
    assert event.time_ns == span.start_ns + MS


def test_a_template_is_one_span_with_its_queries_in_it() -> None:
    timeline = [VIEW, 0, TEMPLATE, MS, QUERY, 2 * MS, TEMPLATE, 3 * MS, VIEW, 4 * MS, TEMPLATE, 5 * MS]
    path = make_path(
        timeline=[*timeline, VIEW, 6 * MS],
        view_start_offset_ns=0,
        view_end_offset_ns=7 * MS,
        operations=[Operation("query", 2 * MS, 3 * MS, statement="SELECT 1")],
    )
    lines = [line.strip() for line in outline(spans_of(path))[6:]]
    assert lines == [
        "shop: view 4 to 11",
        "shop: template 5 to 8",
        "shop: SELECT 6 to 7",
        "shop: template 9 to 10",
    ]


def test_the_attempt_before_has_its_own_worker_and_the_answer_links_to_it() -> None:
    earlier = make_worker_record(
        span_id="1111111111111111", status=503, closed_offset_ns=2 * MS, exclusive_ns=[None] * 10
    )
    later = make_worker_record(app_start_ns=NOW_NS + 4 * MS, closed_offset_ns=5 * MS)
    nginx = make_nginx_record(
        pass_ns=NOW_NS - MS,
        attempts=[
            Attempt("10.0.0.1:3031", 503, 0, 3 * MS, 3 * MS),
            Attempt("10.0.0.2:3031", 200, 0, 7 * MS, 7 * MS),
        ],
    )
    spans = spans_of(RequestPath(later, make_writer_info(), nginx, (earlier,)))
    check_tree(spans)
    assert outline(spans) == [
        "shop-nginx: GET /items/<int:id> -2 to 10",
        "  shop-nginx: GET upstream -1 to 2",
        "    shop: GET /items/<int:id> 0 to 2",
        "  shop-nginx: GET upstream 2 to 9",
        "    shop: GET /items/<int:id> 4 to 9",
    ]
    attempts = [span for span in spans if span.attributes[names.ROLE] == "attempt"]
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [None, 1]
    requests = [span for span in spans if span.attributes[names.ROLE] == "request"]
    assert requests[0].attributes[names.RETRIED] is True
    assert names.TOTAL not in requests[0].attributes, "one request counts once"
    assert [link.span_id for link in requests[1].links] == ["1111111111111111"]


def test_without_nginxs_line_what_its_stamps_say_is_a_proxys_span() -> None:
    path = make_path()
    spans = spans_of(RequestPath(path.worker, path.info, None))
    check_tree(spans)
    assert outline(spans)[:3] == [
        "shop-nginx: GET /items/<int:id> 0 to 11.5",
        "  shop-uwsgi: queue 0.5 to 2.5",
        "  shop-uwsgi: GET /items/<int:id> 2.5 to 11.5",
    ]
    assert spans[0].attributes[names.ROLE] == names.PROXY
    assert path.worker is not None
    assert spans[0].parent_id == path.worker.parent_id, "nginx's own span may still be sent by somebody else"


def test_a_worker_by_itself_is_its_request_alone() -> None:
    worker = make_worker_record(parent_id="")
    spans = spans_of(RequestPath(worker, make_writer_info(), None))
    assert outline(spans) == ["shop: GET /items/<int:id> 0 to 9"]
    assert spans[0].attributes[names.MISSING] == [
        "nginx_start",
        "nginx_pass",
        "accept",
        "parsed",
        "nginx_end",
    ]


def test_stamps_that_contradict_each_other_stay_and_the_spans_stand_in_order() -> None:
    path = make_path()
    assert path.worker is not None
    assert path.nginx is not None
    # nginx's host is 5 s ahead.
    for record, fields in (
        (path.worker, ("nginx_start_ns", "nginx_pass_ns")),
        (path.nginx, ("start_ns", "pass_ns", "end_ns")),
    ):
        for field in fields:
            setattr(record, field, getattr(record, field) + 5_000 * MS)
    spans = spans_of(path)
    check_tree(spans)
    found = by_role(spans)
    assert found["nginx"].end_ns - found["nginx"].start_ns < 13 * MS
    assert found["request"].attributes[names.SKEWED] == ["queue"]
    stamp_ns = found["request"].attributes["reqpath.nginx_pass_offset_ns"]
    assert stamp_ns == path.worker.nginx_pass_ns - path.worker.app_start_ns  # type: ignore[operator]


def test_a_corrected_clock_is_stated() -> None:
    offset = ClockOffset(3 * MS, 5 * MS)
    attributes = by_role(spans_of(make_path(), offset=offset))["request"].attributes
    assert attributes[names.CLOCK_CORRECTION] == 4 * MS
    assert (attributes[names.CLOCK_LOWER], attributes[names.CLOCK_UPPER]) == (3 * MS, 5 * MS)


def test_the_resource_is_the_process_and_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    # A service of its own: resources are built once.
    path = make_path()
    path.info = make_writer_info(service_name="staged", worker=2)
    found = by_role(spans_of(path))
    assert found["request"].resource == {
        "service.name": "staged",
        "service.instance.id": "3f9c2a7d10b4e6f8",
        "host.name": "web1",
        "process.pid": 4711,
        "deployment.environment.name": "staging",
        "reqpath.version": "0.1.0",
        "reqpath.created_ns": NOW_NS,
        "reqpath.concurrency": "unknown",
        "reqpath.worker": 2,
    }
    assert found["nginx"].resource == {
        "service.name": "staged-nginx",
        "deployment.environment.name": "staging",
    }


def test_why_a_path_was_kept_is_on_its_request() -> None:
    assert by_role(spans_of(make_path(), kept="slow"))["request"].attributes[names.KEPT] == "slow"


def test_a_trusted_clients_span_is_the_parent_of_nginxs() -> None:
    path = make_path()
    assert path.nginx is not None
    path.nginx.parent_id = NGINX_SPAN_ID
    assert spans_of(path)[0].parent_id == NGINX_SPAN_ID
