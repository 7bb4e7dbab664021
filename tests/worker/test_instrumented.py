"""An app with OpenTelemetry of its own: spans, headers and sampling are what they were without reqpath."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, stream_with_context
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.propagators.b3 import B3MultiFormat
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.jaeger import JaegerPropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind
from werkzeug.test import Client, EnvironBuilder, TestResponse, run_wsgi_app

from reqpath import ReqPath
from reqpath.record import Record, WorkerRecord
from reqpath.wsgi import RequestMiddleware

ReadRecords = Callable[[str], list[Record]]

#: A trace that nginx began: its span's id is the first half of the trace's.
NGINX_TRACE, NGINX_SPAN = "ab" * 16, "ab" * 8
#: Of a trusted caller, continued by nginx.
CALLER_TRACE, CALLER_SPAN = "cd" * 16, "ef" * 8


def by_nginx(trace_id: str = NGINX_TRACE, span_id: str = NGINX_SPAN, flags: str = "01") -> dict[str, str]:
    """Return what nginx-conf puts into the environ."""
    traceparent = f"00-{trace_id}-{span_id}-{flags}"
    return {"REQPATH_TRACEPARENT": traceparent, "HTTP_TRACEPARENT": traceparent}


def by_caller(flags: str = "01") -> dict[str, str]:
    """Return the header of a caller, with no nginx in between."""
    return {"HTTP_TRACEPARENT": f"00-{CALLER_TRACE}-{CALLER_SPAN}-{flags}"}


class Bench:
    """A shop with OpenTelemetry's SDK, and what it and reqpath make of a request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spool: str, read_records: ReadRecords) -> None:
        self._monkeypatch = monkeypatch
        self._spool = spool
        self._read_records = read_records
        self._memory = InMemorySpanExporter()
        self._middlewares: list[RequestMiddleware] = []
        self.app = Flask("shop")
        self.app.get("/items/<int:number>")(self._item)
        self.app.get("/stream")(self._stream)
        self.app.get("/hidden")(self._item)
        self.app.get("/logs")(self._log)
        self.sample(DEFAULT_ON)

    def sample(self, sampler: Sampler) -> None:
        """Make `sampler` that of the app's SDK."""
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self._monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    def propagate(self, *propagators: TextMapPropagator) -> None:
        """Configure the app's propagators."""
        self._monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator(propagators))

    def instrument(self, **arguments: Any) -> None:
        FlaskInstrumentor.instrument_app(self.app, **arguments)  # type: ignore[no-untyped-call]

    def add_reqpath(self, **arguments: Any) -> None:
        ReqPath(self.app, spool=self._spool, **arguments)
        self._middlewares.append(self.app.extensions["reqpath"])

    def get(self, path: str = "/items/7", **environ: str) -> TestResponse:
        """Send a request, and close its response."""
        response = Client(self.app).get(path, environ_overrides=environ)
        response.get_data()
        response.close()
        return response

    @property
    def record(self) -> WorkerRecord:
        """The one record there is."""
        (record,) = self._read_records(self._spool)
        assert isinstance(record, WorkerRecord)
        return record

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that the SDK has exported, by name."""
        spans = self._memory.get_finished_spans()
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}

    def close(self) -> None:
        for middleware in self._middlewares:
            middleware._writer.close()

    def _item(self, number: int = 0) -> dict[str, object]:
        span = trace.get_current_span()
        span.set_attribute("mine", number)
        with trace.get_tracer("shop").start_as_current_span("inner"):
            headers: dict[str, str] = {}
            propagate.inject(headers)
        context = span.get_span_context()
        return {"baggage": dict(baggage.get_all()), "span": f"{context.span_id:016x}", "headers": headers}

    def _log(self) -> str:
        self.app.logger.warning("said")
        return "done"

    def _stream(self) -> Response:
        def chunks() -> Iterator[str]:
            with trace.get_tracer("shop").start_as_current_span("inner"):
                yield "a"

        return Response(stream_with_context(chunks()))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, spool: str, read_records: ReadRecords) -> Iterator[Bench]:
    bench = Bench(monkeypatch, spool, read_records)
    yield bench
    bench.close()


@pytest.fixture(params=["before", "after"])
def both(request: pytest.FixtureRequest, bench: Bench) -> Bench:
    """Return an app with both instrumentations, put into it in either order."""
    if request.param == "before":
        bench.instrument()
    bench.add_reqpath()
    if request.param == "after":
        bench.instrument()
    return bench


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


FLASK = "GET /items/<int:number>"


def test_the_instrumented_app_keeps_its_server_span_below_the_call_of_the_app(both: Bench) -> None:
    both.get(**by_nginx())
    record, span = both.record, both.spans[FLASK]
    assert span.kind is SpanKind.SERVER
    assert (trace_of(span), parent_of(span)) == (NGINX_TRACE, record.span_id)
    assert (record.trace_id, record.parent_id) == (NGINX_TRACE, NGINX_SPAN)
    assert record.app_span is not None
    assert (record.app_span.trace_id, record.app_span.span_id) == (NGINX_TRACE, id_of(span))
    assert record.app_span.end_ns is not None
    assert span.start_time == record.app_start_ns + record.app_span.start_ns
    assert span.end_time == record.app_start_ns + record.app_span.end_ns


def test_what_the_app_sets_on_the_current_span_goes_to_its_sdk(both: Bench) -> None:
    both.get(**by_nginx())
    assert (both.spans[FLASK].attributes or {})["mine"] == 7
    assert both.record.attributes == {}


def test_the_apps_own_spans_are_children_of_its_server_span(both: Bench) -> None:
    both.get(**by_nginx())
    assert parent_of(both.spans["inner"]) == id_of(both.spans[FLASK])


def test_the_time_in_the_worker_is_split_as_without_an_instrumentation(both: Bench) -> None:
    both.get(**by_nginx())
    record = both.record
    assert record.route == "/items/<int:number>"
    assert record.view_start_offset_ns is not None
    assert sum(filter(None, record.exclusive_ns)) == record.closed_offset_ns


def test_a_streamed_response_has_its_span_as_well(both: Bench) -> None:
    both.get("/stream", **by_nginx())
    span = both.record.app_span
    assert span is not None
    assert span.span_id == id_of(both.spans["GET /stream"])


def test_without_reqpath_a_streamed_bodys_spans_are_just_as_lost(bench: Bench) -> None:
    bench.instrument()
    bench.get("/stream", **by_nginx())
    assert parent_of(bench.spans["inner"]) == ""


def test_a_url_that_the_instrumentation_leaves_out_has_no_span_of_the_sdk(bench: Bench) -> None:
    bench.instrument(excluded_urls="hidden")
    bench.add_reqpath()
    bench.get("/hidden", **by_nginx())
    assert bench.record.app_span is None
    assert list(bench.spans) == ["inner"]


def test_without_nginx_the_record_joins_the_trace_that_the_app_continues(both: Bench) -> None:
    both.get(**by_caller())
    record, span = both.record, both.spans[FLASK]
    assert (record.trace_id, record.parent_id) == (CALLER_TRACE, CALLER_SPAN)
    assert (trace_of(span), parent_of(span)) == (CALLER_TRACE, record.span_id)


def test_without_any_caller_the_app_is_in_the_records_trace(both: Bench) -> None:
    both.get()
    record, span = both.record, both.spans[FLASK]
    assert (trace_of(span), parent_of(span)) == (record.trace_id, record.span_id)
    assert record.parent_id == ""


# --- sampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instrumented", [True, False])
@pytest.mark.parametrize("environ", [by_nginx(), {}])
@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_OFF), TraceIdRatioBased(0), ALWAYS_OFF])
def test_where_nobody_before_nginx_decided_the_apps_own_sampler_does(
    bench: Bench, sampler: Sampler, environ: dict[str, str], instrumented: bool
) -> None:
    bench.sample(sampler)
    if instrumented:
        bench.instrument()
    bench.add_reqpath()
    bench.get(**environ)
    record = bench.record
    assert bench.spans == {}
    assert (record.sampled, record.app_span, record.app_samples) == (False, None, False)


@pytest.mark.parametrize("instrumented", [True, False])
def test_a_callers_decision_stands_for_a_sampler_that_follows_it(bench: Bench, instrumented: bool) -> None:
    bench.sample(ParentBased(ALWAYS_OFF))
    if instrumented:
        bench.instrument()
    bench.add_reqpath()
    bench.get(**by_nginx(CALLER_TRACE, CALLER_SPAN))
    assert "inner" in bench.spans
    assert bench.record.sampled


def test_a_request_that_is_not_sampled_has_the_id_that_the_apps_log_lines_have(both: Bench) -> None:
    both.sample(ALWAYS_OFF)
    # The instrumentation has asked for its tracer already, so it gets one of the new provider.
    bench = both
    bench.app = Flask("shop")
    bench.app.get("/items/<int:number>")(bench._item)
    bench.instrument()
    bench.add_reqpath()
    response = bench.get(**by_nginx())
    assert response.get_json()["span"] == bench.record.span_id


def test_the_record_says_that_the_apps_sdk_may_export_spans_below_it(bench: Bench) -> None:
    bench.add_reqpath()
    bench.get(**by_nginx())
    record = bench.record
    assert (record.app_samples, record.app_span) == (True, None)
    assert parent_of(bench.spans["inner"]) == record.span_id


def test_without_an_sdk_nothing_is_said_about_sampling(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    bench.add_reqpath()
    response = bench.get(**by_nginx())
    record = bench.record
    assert (record.sampled, record.app_samples) == (True, False)
    assert response.get_json()["span"] == record.span_id


def test_an_instrumentation_without_an_sdk_leaves_the_records_ids_current(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    bench.instrument()
    bench.add_reqpath()
    response = bench.get(**by_nginx())
    assert response.get_json()["span"] == bench.record.span_id
    assert bench.record.app_span is None


def test_a_sampler_that_fails_is_as_none(bench: Bench, faults: dict[str, int]) -> None:
    class Broken(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            if args[4] and "url.path" in args[4]:
                raise LookupError
            return ALWAYS_OFF.should_sample(*args, **kwargs)

        def get_description(self) -> str:
            return "broken"

    bench.sample(Broken())
    bench.add_reqpath()
    assert bench.get(**by_nginx()).status_code == 200
    assert bench.record.sampled
    assert faults == {"asking OpenTelemetry's sampler": 1}


# --- propagators ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instrumented", [True, False])
def test_baggage_of_the_caller_is_there_and_goes_on(bench: Bench, instrumented: bool) -> None:
    if instrumented:
        bench.instrument()
    bench.add_reqpath()
    answer = bench.get(**by_nginx(), HTTP_BAGGAGE="customer=7,plan=gold").get_json()
    assert answer["baggage"] == {"customer": "7", "plan": "gold"}
    assert answer["headers"]["baggage"] == "customer=7,plan=gold"


@pytest.mark.parametrize("instrumented", [True, False])
def test_the_trace_state_of_a_continued_trace_goes_on(bench: Bench, instrumented: bool) -> None:
    if instrumented:
        bench.instrument()
    bench.add_reqpath()
    answer = bench.get(**by_nginx(CALLER_TRACE, CALLER_SPAN), HTTP_TRACESTATE="vendor=1").get_json()
    assert answer["headers"]["tracestate"] == "vendor=1"


def test_a_trace_state_without_its_trace_is_dropped(bench: Bench) -> None:
    bench.add_reqpath()
    answer = bench.get(HTTP_TRACESTATE="vendor=1", **by_caller()).get_json()
    assert "tracestate" not in answer["headers"]
    assert bench.record.trace_id != CALLER_TRACE


B3 = {"HTTP_X_B3_TRACEID": CALLER_TRACE, "HTTP_X_B3_SPANID": CALLER_SPAN, "HTTP_X_B3_SAMPLED": "1"}
UBER = {"HTTP_UBER_TRACE_ID": f"{CALLER_TRACE}:{CALLER_SPAN}:0:1"}


@pytest.mark.parametrize(
    ("propagator", "headers"), [(B3MultiFormat(), B3), (JaegerPropagator(), UBER)], ids=["b3", "jaeger"]
)
class TestOtherPropagators:
    def test_an_instrumented_app_continues_their_trace_and_the_record_with_it(
        self, bench: Bench, propagator: TextMapPropagator, headers: dict[str, str]
    ) -> None:
        bench.propagate(propagator)
        bench.instrument()
        bench.add_reqpath()
        bench.get(**headers)
        record, span = bench.record, bench.spans[FLASK]
        assert (record.trace_id, record.parent_id) == (CALLER_TRACE, CALLER_SPAN)
        assert (trace_of(span), parent_of(span)) == (CALLER_TRACE, record.span_id)

    def test_nginxs_trace_is_handed_to_an_instrumented_app_in_their_headers(
        self, bench: Bench, propagator: TextMapPropagator, headers: dict[str, str]
    ) -> None:
        bench.propagate(propagator)
        bench.instrument()
        bench.add_reqpath()
        bench.get(**by_nginx())
        assert trace_of(bench.spans[FLASK]) == NGINX_TRACE
        assert parent_of(bench.spans[FLASK]) == bench.record.span_id

    def test_a_trace_that_nginx_does_not_know_stays_the_apps_and_the_record_names_it(
        self, bench: Bench, propagator: TextMapPropagator, headers: dict[str, str]
    ) -> None:
        bench.propagate(propagator)
        bench.instrument()
        bench.add_reqpath()
        bench.get(**by_nginx(), **headers)
        record, span = bench.record, bench.spans[FLASK]
        assert (trace_of(span), parent_of(span)) == (CALLER_TRACE, CALLER_SPAN)
        assert record.trace_id == NGINX_TRACE
        assert record.app_span is not None
        assert (record.app_span.trace_id, record.app_span.span_id) == (CALLER_TRACE, id_of(span))

    @pytest.mark.parametrize("trusted", [True, False])
    def test_without_instrumentation_their_caller_is_believed_where_headers_are(
        self, bench: Bench, propagator: TextMapPropagator, headers: dict[str, str], trusted: bool
    ) -> None:
        bench.propagate(propagator)
        bench.add_reqpath(trusted_proxy=trusted)
        bench.get(**headers)
        assert (bench.record.trace_id == CALLER_TRACE) is trusted
        assert trace_of(bench.spans["inner"]) == bench.record.trace_id


def test_propagators_run_only_for_a_request_with_a_header_for_them(bench: Bench) -> None:
    extracted = []

    class Counted(B3MultiFormat):
        def extract(self, *args: Any, **kwargs: Any) -> Any:
            extracted.append(args)
            return super().extract(*args, **kwargs)

    bench.propagate(Counted())
    bench.add_reqpath()
    # The first request of a process finds out which headers those are.
    bench.get(**by_nginx())
    extracted.clear()
    bench.get(**by_nginx())
    assert extracted == []
    bench.get(**by_nginx(), **B3)
    assert len(extracted) == 1


def test_propagators_that_fail_leave_the_request_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, faults: dict[str, int]
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", None)
    bench.instrument(tracer_provider=trace.NoOpTracerProvider())
    bench.add_reqpath()
    with monkeypatch.context() as patch:
        patch.setattr("opentelemetry.instrumentation.utils.extract", lambda *a, **k: otel_context.Context())
        patch.setattr(bench, "_item", None)
        response = bench.get("/nothing", **by_nginx())
    assert response.status_code == 404
    assert faults["OpenTelemetry's context"] == 1
    assert bench.record.status == 404


# --- log lines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instrumented", [True, False])
def test_the_apps_log_lines_have_the_ids_of_the_requests_span(
    bench: Bench, caplog: pytest.LogCaptureFixture, instrumented: bool
) -> None:
    if instrumented:
        bench.instrument()
    bench.add_reqpath()
    correlation = LoggingInstrumentor()
    correlation.instrument(inject_trace_context=True, enable_log_auto_instrumentation=False)
    try:
        bench.get("/logs", **by_nginx())
    finally:
        correlation.uninstrument()
    (line,) = (line for line in caplog.records if line.message == "said")
    record = bench.record
    span_id = record.span_id if record.app_span is None else record.app_span.span_id
    assert instrumented is (record.app_span is not None)
    assert (line.otelTraceID, line.otelSpanID) == (NGINX_TRACE, span_id)  # type: ignore[attr-defined]


# --- an instrumentation of WSGI ---------------------------------------------------------------------------


def test_a_wsgi_instrumentation_around_reqpath_keeps_the_current_span(bench: Bench) -> None:
    bench.add_reqpath()
    bench.app.wsgi_app = OpenTelemetryMiddleware(bench.app.wsgi_app)  # type: ignore[method-assign]
    bench.get(**by_nginx())
    (outer,) = [span for name, span in bench.spans.items() if name != "inner"]
    assert (trace_of(outer), parent_of(outer)) == (NGINX_TRACE, NGINX_SPAN)
    assert parent_of(bench.spans["inner"]) == id_of(outer)
    assert (outer.attributes or {})["mine"] == 7
    assert bench.record.app_span is not None
    assert bench.record.app_span.span_id == id_of(outer)


def test_a_wsgi_instrumentation_within_reqpath_is_below_the_requests_span(bench: Bench) -> None:
    bench.app.wsgi_app = OpenTelemetryMiddleware(bench.app.wsgi_app)  # type: ignore[method-assign]
    bench.add_reqpath()
    bench.get(**by_nginx())
    (within,) = [span for name, span in bench.spans.items() if name != "inner"]
    assert (within.kind, parent_of(within)) == (SpanKind.INTERNAL, bench.record.span_id)
    assert (bench.record.app_span, bench.record.app_samples) == (None, True)


def test_a_plain_middleware_around_an_instrumented_flask_app_leaves_its_span_as_well(
    bench: Bench, spool: str
) -> None:
    bench.instrument()
    middleware = RequestMiddleware(bench.app, spool=spool)
    chunks, _status, _headers = run_wsgi_app(
        middleware, EnvironBuilder("/items/7", environ_overrides=by_nginx()).get_environ()
    )
    list(chunks)
    chunks.close()  # type: ignore[attr-defined]  # the middleware's bodies have it
    middleware._writer.close()
    assert bench.spans[FLASK].kind is SpanKind.SERVER
    assert parent_of(bench.spans[FLASK]) == bench.record.span_id


def test_a_span_that_has_ended_around_a_request_is_none(bench: Bench) -> None:
    bench.add_reqpath()
    left = trace.get_tracer("earlier").start_span("left behind")
    left.end()
    token = otel_context.attach(trace.set_span_in_context(left))
    try:
        bench.get(**by_nginx())
    finally:
        otel_context.detach(token)
    assert parent_of(bench.spans["inner"]) == bench.record.span_id
