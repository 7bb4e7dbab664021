"""The encoder of OTLP requests: the same message as OpenTelemetry's, for whatever a path can hold."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as encode_with_library
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from reqpath.collect import encode
from reqpath.collect.encode import EncodedRequest, RequestEncoder
from reqpath.collect.export import GRPC, HTTP, Target, build_sender
from reqpath.collect.spans import build_spans
from reqpath.path import RequestPath
from tests.factories import make_path, make_shop_paths
from tests.strategies import request_paths
from tests.traces.spans import as_sdk_spans

encode_request = RequestEncoder().encode
encode_spans = RequestEncoder().encode_message


@given(paths=st.lists(request_paths(), max_size=3))
@settings(max_examples=200)
def test_it_is_the_librarys_message(paths: list[RequestPath]) -> None:
    spans = [span for path in paths for span in build_spans(path)]
    assert encode_spans(spans) == encode_with_library(as_sdk_spans(spans))


@given(
    value=st.integers(-(1 << 63), (1 << 63) - 1)
    | st.integers(0, 63).map(lambda bits: (1 << bits) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=2_000)
)
@settings(max_examples=300)
def test_every_value_is_encoded_as_the_library_does(value: float | str) -> None:
    spans = build_spans(make_path(attributes={"value": value, "values": [value, value]}))
    assert encode_request(spans) == encode_with_library(as_sdk_spans(spans)).SerializeToString()


def test_many_paths_of_two_processes_are_one_request() -> None:
    spans = [span for path in make_shop_paths(40) for span in build_spans(path)]
    request = ExportTraceServiceRequest.FromString(encode_request(spans))
    assert request == encode_with_library(as_sdk_spans(spans))
    assert len(request.resource_spans) == 6, "nginx, uWSGI and the app twice, the database"


def test_nothing_is_an_empty_request() -> None:
    assert encode_request([]) == b""


@pytest.mark.parametrize("value", [None, {"a": 1}, object()])
def test_what_is_no_value_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        encode_request(build_spans(make_path(attributes={"value": value})))


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_request(build_spans(make_path(path="/\ud800")))


def test_a_request_that_is_bytes_is_a_message_when_it_has_to_be() -> None:
    spans = build_spans(make_path())
    request = RequestEncoder().encode_lazily(spans)
    expected = encode_with_library(as_sdk_spans(spans))
    assert request.SerializePartialToString() == expected.SerializeToString()
    assert request.ByteSize() == expected.ByteSize()


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_the_exporters_encode_with_it(protocol: str) -> None:
    """Neither has a way to be given an encoder; both look theirs up in their module."""
    sender = build_sender(Target("http://127.0.0.1:9", protocol))
    try:
        name = f"opentelemetry.exporter.otlp.proto.{protocol.split('/', maxsplit=1)[0]}.trace_exporter"
        request = importlib.import_module(name).encode_spans([])
        assert isinstance(request, EncodedRequest if protocol == HTTP else ExportTraceServiceRequest)
    finally:
        sender.close()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MAX_KNOWN", 8)
    encoder = RequestEncoder()
    for number in range(50):
        spans = build_spans(make_path(path=f"/items/{number}", attributes={f"a{number}": -number}))
        assert encoder.encode(spans) == encode_with_library(as_sdk_spans(spans)).SerializeToString()
    assert len(encoder._known) <= 8
