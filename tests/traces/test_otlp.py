"""OTLP in JSON is read whoever wrote it; what is torn, foreign or of another signal is counted."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]  # no types shipped
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

from reqpath.traces.otlp import LineCounts, TraceFileError, parse_answer, parse_line, read_traces
from reqpath.traces.span import Event, Span
from reqpath.traces.span import Link as OwnLink

_TRACE, _SPAN = "4b" * 16, "0f" * 8


def build_document(**fields: Any) -> dict[str, Any]:
    """Return a request with one span of these fields."""
    span = {
        "traceId": _TRACE,
        "spanId": _SPAN,
        "name": "GET /",
        "kind": 2,
        "startTimeUnixNano": "1800000000000000001",
        "endTimeUnixNano": "1800000000000000009",
    } | fields
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": [span]}]}]}


def parse_one(document: dict[str, Any]) -> Span:
    counts = LineCounts()
    (span,) = parse_line(json.dumps(document).encode(), counts)
    assert counts == LineCounts(read=1)
    return span


def make_sdk_spans() -> tuple[ReadableSpan, ...]:
    """Return spans as OpenTelemetry's SDK makes them, with everything a span can have."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop", "host.name": "a"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("some.instrumentation")
    link = Link(SpanContext(0xABC, 0xDEF, is_remote=True), {"of": "a batch"})
    attributes: dict[str, Any] = {
        "text": "é",
        "flag": True,
        "count": 1 << 60,
        "share": 0.5,
        "list": ["a", "b"],
    }
    with tracer.start_as_current_span(
        "GET /", kind=SpanKind.SERVER, attributes=attributes, links=[link]
    ) as span:
        span.add_event("cache miss", {"key": 7})
        span.set_status(StatusCode.ERROR, "went wrong")
        with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT):
            pass
    provider.shutdown()
    return exporter.get_finished_spans()


def encode_json(spans: tuple[ReadableSpan, ...]) -> dict[str, Any]:
    """Return the request as OTLP's JSON has it: protobuf's own, with the ids in hex and enums by number."""
    document: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    to_hex = json.loads(
        json.dumps(document),
        object_hook=lambda fields: {
            key: base64.b64decode(value).hex() if key in ("traceId", "spanId", "parentSpanId") else value
            for key, value in fields.items()
        },
    )
    assert isinstance(to_hex, dict)
    return to_hex


def test_a_span_of_the_sdk_is_read_whole() -> None:
    child, parent = make_sdk_spans()
    counts = LineCounts()
    spans = parse_line(json.dumps(encode_json((child, parent))).encode(), counts)
    by_name = {span.name: span for span in spans}
    read = by_name["GET /"]
    assert parent.context is not None
    assert read == Span(
        trace_id=f"{parent.context.trace_id:032x}",
        span_id=f"{parent.context.span_id:016x}",
        parent_id="",
        name="GET /",
        kind="server",
        service="shop",
        start_ns=parent.start_time or 0,
        end_ns=parent.end_time or 0,
        attributes={"text": "é", "flag": True, "count": 1 << 60, "share": 0.5, "list": ["a", "b"]},
        events=(Event("cache miss", parent.events[0].timestamp, {"key": 7}),),
        links=(OwnLink(f"{0xABC:032x}", f"{0xDEF:016x}", {"of": "a batch"}),),
        status="ERROR",
        status_description="went wrong",
        resource={"service.name": "shop", "host.name": "a"},
        scope="some.instrumentation",
    )
    assert by_name["SELECT"].parent_id == read.span_id
    assert by_name["SELECT"].kind == "client"


def test_numbers_may_be_text_and_enums_may_be_names() -> None:
    as_text = build_document(kind="SPAN_KIND_CLIENT", status={"code": "STATUS_CODE_ERROR"})
    as_numbers = build_document(kind=3, startTimeUnixNano=1_800_000_000_000_000_001, status={"code": 2})
    assert parse_one(as_text) == parse_one(as_numbers)
    assert parse_one(as_text).status == "ERROR"


def test_nulls_unknown_fields_and_capital_ids_are_no_hindrance() -> None:
    fields = {"parentSpanId": "", "events": None, "status": None, "flags": 256, "traceState": "a=b"}
    span = parse_one(build_document(traceId=_TRACE.upper(), **fields))
    assert (span.trace_id, span.parent_id, span.events, span.status) == (_TRACE, "", (), "UNSET")
    assert parse_one(build_document(parentSpanId="0" * 16)).parent_id == ""


def test_values_that_no_attribute_can_have_are_left_out() -> None:
    values: dict[str, Any] = {
        "none": {},
        "map": {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": "1"}}]}},
        "bytes": {"bytesValue": "AAE="},
        "list": {"arrayValue": {"values": [{"intValue": "1"}, {}]}},
        "infinite": {"doubleValue": "-Infinity"},
        "wrong": {"intValue": "1.5x"},
    }
    pairs = [{"key": key, "value": value} for key, value in values.items()]
    assert parse_one(build_document(attributes=pairs)).attributes == {"list": [1], "infinite": float("-inf")}


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": "0" * 32},
        {"traceId": "4b"},
        {"spanId": "x" * 16},
        {"startTimeUnixNano": "0"},
        {"endTimeUnixNano": "soon"},
        {"endTimeUnixNano": str(1 << 64)},
    ],
    ids=str,
)
def test_a_span_without_ids_or_instants_is_left_out_and_counted(fields: dict[str, Any]) -> None:
    counts = LineCounts()
    assert parse_line(json.dumps(build_document(**fields)).encode(), counts) == []
    assert counts == LineCounts(read=1, unreadable=1)


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_any_other_line_is_counted_and_no_more(line: bytes) -> None:
    counts = LineCounts()
    assert parse_line(line, counts) == []
    assert counts == LineCounts(unreadable=1)


@given(st.integers(0, 400))
def test_a_line_torn_anywhere_is_counted_and_no_more(length: int) -> None:
    line = json.dumps(build_document()).encode()
    counts = LineCounts()
    assert parse_line(line[: min(length, len(line) - 1)], counts) == []
    assert counts == LineCounts(unreadable=1)


def test_an_answer_that_is_no_trace_is_an_error() -> None:
    with pytest.raises(ValueError, match="no traces"):
        parse_answer(b"<!DOCTYPE html>", LineCounts())


def write_lines(path: Path, *documents: object) -> str:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents), encoding="utf-8")
    return str(path)


def test_a_traces_spans_come_together_from_lines_and_files_apart(tmp_path: Path) -> None:
    other = "5c" * 16
    first = write_lines(tmp_path / "a", build_document(), build_document(traceId=other))
    second = write_lines(tmp_path / "b", build_document(spanId="1f" * 8, parentSpanId=_SPAN))
    traces = list(read_traces([first, second], LineCounts()))
    assert [[(span.trace_id, span.span_id) for span in trace] for trace in traces] == [
        [(other, _SPAN)],
        [(_TRACE, _SPAN), (_TRACE, "1f" * 8)],
    ]


def test_spans_that_wait_for_their_trace_are_bounded(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a", *(build_document(traceId=f"{i:032x}") for i in range(1, 6)))
    reading = read_traces([path], LineCounts(), max_held=2)
    assert [span.trace_id[-1] for span in next(reading)] == ["1"]
    assert [trace[0].trace_id[-1] for trace in reading] == ["2", "3", "4", "5"]


def test_a_file_that_is_being_written_is_read_to_its_torn_end(tmp_path: Path) -> None:
    line = json.dumps(build_document()).encode()
    metrics = b'{"resourceMetrics":[]}'
    (tmp_path / "plain").write_bytes(line + b"\n\n" + metrics + b"\n" + line[:50])
    # So much of a packed file that its first line can be had of it.
    packed = gzip.compress(line + b"\n") + gzip.compress(line + b"\n")[:-9]
    (tmp_path / "packed").write_bytes(packed)
    counts = LineCounts()
    traces = list(read_traces([str(tmp_path / "plain"), str(tmp_path / "packed")], counts))
    assert [len(trace) for trace in traces] == [counts.read]
    assert counts.read >= 2
    assert (counts.other_signals, counts.unreadable) == (1, 2)


@pytest.mark.parametrize("content", [b"nginx says hello\n", b"\x1f\x8bnot gzip", b'{"data":[]}'])
def test_a_file_of_something_else_is_an_error_that_says_what_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(TraceFileError, match=r"/log"):
        list(read_traces([str(tmp_path / "log")], LineCounts()))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="No such file"):
        list(read_traces([str(tmp_path / "none")], LineCounts()))


def test_an_empty_file_has_no_traces(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(read_traces([str(tmp_path / "empty")], LineCounts())) == []
