"""Tier histograms: what is counted, in the terms of OpenTelemetry's SDK, and as a real exporter sends it."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    MetricsData,
)

from reqpath.collect.collector import Collector
from reqpath.collect.export import find_target
from reqpath.collect.histogram import FIRST_EXPONENT, HTTP_BOUNDS_NS
from reqpath.collect.metrics import OTHER_ROUTE, MetricsExport, PathMetrics, metrics_wanted
from reqpath.errors import ConfigurationError, MissingExtraError
from reqpath.path import RequestPath
from reqpath.settings import Settings
from reqpath.tiers import NAMES
from tests.collect.spools import write_paths
from tests.factories import make_nginx_record, make_path, make_shop_paths

START_NS = 1_800_000_000_000_000_000


def make_metrics(*, exponential: bool = False, max_routes: int = 100) -> PathMetrics:
    return PathMetrics("edge", exponential=exponential, max_routes=max_routes, clock=lambda: START_NS)


def find_metrics(data: MetricsData, service: str) -> dict[str, Metric]:
    """Return the metrics of one service by name."""
    return {
        metric.name: metric
        for resource in data.resource_metrics
        if resource.resource.attributes["service.name"] == service
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def find_points(data: MetricsData, service: str, name: str) -> list[Any]:
    return list(find_metrics(data, service)[name].data.data_points)


def sum_s(points: list[Any]) -> float:
    return math.fsum(point.sum for point in points)


@pytest.mark.parametrize("exponential", [False, True])
def test_the_segments_and_the_residual_add_up_to_the_total(exponential: bool) -> None:
    metrics = make_metrics(exponential=exponential)
    paths = make_shop_paths(300)
    for path in paths:
        metrics.add(path)
    data = metrics.collect()
    segments = find_points(data, "shop", "reqpath.segment.duration")
    totals = find_points(data, "shop", "reqpath.request.duration")
    residual_s = sum(path.timing.residual_ns for path in paths) / 1e9
    assert sum_s(totals) == pytest.approx(sum_s(segments) + residual_s)
    assert sum_s(totals) == pytest.approx(sum(path.timing.total_ns for path in paths) / 1e9)
    assert len(paths) == sum(point.count for point in totals)


def test_a_segment_has_route_tier_and_name() -> None:
    metrics = make_metrics()
    metrics.add(make_path(query_ns=1_000_000))
    points = find_points(metrics.collect(), "shop", "reqpath.segment.duration")
    found = {point.attributes["reqpath.segment"]: point for point in points}
    assert set(found) <= set(NAMES)
    assert found["queue"].attributes == {
        "reqpath.route": "GET /items/<int:id>",
        "reqpath.tier": "queue",
        "reqpath.segment": "queue",
    }
    assert (found["queue"].count, found["queue"].sum) == (1, 0.002)


def test_what_is_unknown_or_was_never_taken_has_no_histogram() -> None:
    metrics = make_metrics()
    metrics.add(make_path(accept_ns=None))
    points = find_points(metrics.collect(), "shop", "reqpath.segment.duration")
    segments = {point.attributes["reqpath.segment"] for point in points}
    assert not segments & {"queue", "mysql.query", "wsgi.app"}


def test_a_zero_counts_where_other_requests_of_the_route_took_time() -> None:
    metrics = make_metrics(exponential=True)
    metrics.add(make_path(number=1))
    metrics.add(make_path(query_ns=1_000_000, number=2))
    points = find_points(metrics.collect(), "shop", "reqpath.segment.duration")
    query = next(point for point in points if point.attributes["reqpath.segment"] == "mysql.query")
    assert (query.count, query.zero_count) == (2, 1)


def test_explicit_buckets_are_cumulative_over_collections() -> None:
    metrics = make_metrics()
    metrics.add(make_path(12_000_000))
    metrics.collect()
    metrics.add(make_path(60_000_000))
    data = metrics.collect()
    (point,) = find_points(data, "shop", "reqpath.request.duration")
    assert isinstance(point, HistogramDataPoint)
    assert (sum(point.bucket_counts), point.start_time_unix_nano) == (2, START_NS)
    assert (point.min, point.max) == (0.012, 0.06)
    assert len(point.explicit_bounds) + 1 == len(point.bucket_counts)
    kind = find_metrics(data, "shop")["reqpath.request.duration"].data
    assert kind.aggregation_temporality == AggregationTemporality.CUMULATIVE  # type: ignore[union-attr] # a gauge has none


def test_an_exponential_point_says_where_its_buckets_begin() -> None:
    metrics = make_metrics(exponential=True)
    metrics.add(make_path(12_000_000))
    (point,) = find_points(metrics.collect(), "shop", "reqpath.request.duration")
    assert isinstance(point, ExponentialHistogramDataPoint)
    lower_s = 2 ** (point.positive.offset / 4)
    assert lower_s < 0.012 <= lower_s * 2 ** (1 / 4)
    assert list(point.positive.bucket_counts) == [1]
    assert point.positive.offset > FIRST_EXPONENT


def test_a_kept_path_is_the_exemplar_of_its_values_once() -> None:
    metrics = make_metrics()
    kept = make_path(query_ns=1_000_000, number=7)
    metrics.add(make_path(query_ns=1_000_000, number=6))
    metrics.add(kept, kept=True)
    data = metrics.collect()
    (total,) = find_points(data, "shop", "reqpath.request.duration")
    (exemplar,) = total.exemplars
    assert kept.nginx
    assert int(kept.trace_id, 16) == exemplar.trace_id
    assert int(kept.nginx.span_id, 16) == exemplar.span_id
    assert kept.timing.total_ns / 1e9 == exemplar.value
    assert kept.timing.start_ns + kept.timing.total_ns == exemplar.time_unix_nano
    for point in find_points(data, "shop", "reqpath.segment.duration"):
        assert [exemplar.trace_id] == [sample.trace_id for sample in point.exemplars]
    (again,) = find_points(metrics.collect(), "shop", "reqpath.request.duration")
    assert again.exemplars == []


def test_routes_beyond_the_cap_are_counted_together() -> None:
    metrics = make_metrics(max_routes=2)
    for number in range(5):
        metrics.add(make_path(route=f"/page/{number}", number=number))
    points = find_points(metrics.collect(), "shop", "reqpath.request.duration")
    counts = {point.attributes["reqpath.route"]: point.count for point in points}
    assert counts == {"GET /page/0": 1, "GET /page/1": 1, OTHER_ROUTE: 3}


def test_nginx_has_the_standard_metric_under_its_own_service() -> None:
    metrics = make_metrics()
    metrics.add(make_path(route="/orders", method="POST", status=502))
    data = metrics.collect()
    assert "http.server.request.duration" not in find_metrics(data, "shop")
    (point,) = find_points(data, "shop-nginx", "http.server.request.duration")
    assert point.attributes == {
        "http.request.method": "POST",
        "http.route": "/orders",
        "http.response.status_code": 502,
        "error.type": "502",
    }
    assert [bound_ns / 1e9 for bound_ns in HTTP_BOUNDS_NS] == list(point.explicit_bounds)


def test_a_request_that_reached_no_worker_counts_for_the_service_that_was_named() -> None:
    metrics = make_metrics()
    metrics.add(RequestPath(None, None, make_nginx_record(status=413)))
    data = metrics.collect()
    (point,) = find_points(data, "edge", "reqpath.request.duration")
    assert point.attributes == {"reqpath.route": "GET (nginx alone)", "http.response.status_code": 413}
    (http,) = find_points(data, "edge-nginx", "http.server.request.duration")
    assert http.attributes == {"http.request.method": "GET", "http.response.status_code": 413}


def test_missing_stamps_and_skew_are_counted() -> None:
    metrics = make_metrics()
    metrics.add(make_path(accept_ns=None))
    path = make_path()
    assert path.nginx
    assert path.worker
    path.worker.app_start_ns += 3_600_000_000_000
    metrics.add(RequestPath(path.worker, path.info, path.nginx))
    data = metrics.collect()
    (missing,) = find_points(data, "shop", "reqpath.stamps.missing")
    assert (missing.attributes, missing.value) == ({"reqpath.stamp": "accept"}, 1)
    assert find_points(data, "shop", "reqpath.segments.skewed")


def test_the_instance_is_the_host_unless_the_environment_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "web1")
    metrics = make_metrics()
    metrics.add(make_path())
    assert [
        resource.resource.attributes["service.instance.id"] for resource in metrics.collect().resource_metrics
    ] == ["web1", "web1"]
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=web1-blue")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "elsewhere")
    resource = metrics.collect().resource_metrics[0].resource
    assert (
        resource.attributes["service.instance.id"],
        resource.attributes["service.name"],
    ) == ("web1-blue", "shop")


class Sink:
    """An OTLP endpoint over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportMetricsServiceRequest]] = []
        self.arrived = threading.Event()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/v1/traces":
                    sink.requests.append((self.path, ExportMetricsServiceRequest.FromString(body)))
                    sink.arrived.set()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Be silent."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    thread = threading.Thread(target=sink.server.serve_forever, args=(0.01,))
    thread.start()
    yield sink
    sink.server.shutdown()
    thread.join()
    sink.server.server_close()


def test_a_real_exporter_sends_histograms_with_trace_ids(sink: Sink) -> None:
    export = MetricsExport.from_environment(
        "shop", endpoint=sink.url, environ={"OTEL_METRIC_EXPORT_INTERVAL": "10"}
    )
    path = make_path(query_ns=1_000_000)
    export.add(path, kept=True)
    export.start()
    assert sink.arrived.wait(30)
    export.close()
    url_path, request = sink.requests[0]
    assert url_path == "/v1/metrics"
    metrics = {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {
        "reqpath.segment.duration",
        "reqpath.request.duration",
        "http.server.request.duration",
    } == set(metrics)
    (point,) = metrics["reqpath.request.duration"].histogram.data_points
    assert path.trace_id == point.exemplars[0].trace_id.hex()
    assert (1, path.timing.total_ns / 1e9) == (point.count, point.sum)


def test_the_end_sends_what_the_interval_had_not(sink: Sink) -> None:
    export = MetricsExport.from_environment("shop", endpoint=sink.url, environ={})
    export.start()
    export.add(make_path())
    export.close()
    assert len(sink.requests) == 1


def test_with_no_request_nothing_is_sent(sink: Sink) -> None:
    export = MetricsExport.from_environment("shop", endpoint=sink.url, environ={})
    export.start()
    export.close()
    assert sink.requests == []


def test_the_histograms_kind_is_the_standard_variable(sink: Sink) -> None:
    kind = {"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"}
    export = MetricsExport.from_environment("shop", endpoint=sink.url, environ=kind)
    export.start()
    export.add(make_path())
    export.close()
    (_, request) = sink.requests[0]
    (metric, *_) = request.resource_metrics[0].scope_metrics[0].metrics
    assert metric.WhichOneof("data") == "exponential_histogram"


@pytest.mark.parametrize("form", ["{0}", "{0}/", "{0}/v1/traces", "127.0.0.1:{1}"])
def test_the_address_is_that_of_the_traces_in_each_of_its_forms(sink: Sink, form: str) -> None:
    endpoint = form.format(sink.url, sink.server.server_port)
    export = MetricsExport.from_environment("shop", endpoint=endpoint, environ={})
    export.start()
    export.add(make_path())
    export.close()
    assert [url_path for url_path, _ in sink.requests] == ["/v1/metrics"]


def test_metrics_can_go_elsewhere_than_the_traces(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{sink.url}/elsewhere")
    export = MetricsExport.from_environment("shop", endpoint="http://127.0.0.1:1")
    export.start()
    export.add(make_path())
    export.close()
    assert [url_path for url_path, _ in sink.requests] == ["/elsewhere"]


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.metric_exporter", None)
    with pytest.raises(MissingExtraError, match=r"reqpath\[otlp\]"):
        MetricsExport.from_environment("shop", protocol="grpc", environ={})


def test_the_collector_counts_all_paths_and_keeps_few(
    sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    settings = Settings(spool=str(tmp_path / "spool"), otlp=sink.url)
    write_paths(settings.spool_directory, make_shop_paths(300))
    target = find_target(settings)
    assert target
    with Collector(settings, target, report=print) as collector:
        collector.begin()
        assert collector.finish()
        status = collector.status()
    assert status
    assert 0 < sum(status.kept.values()) < 300
    (_, request) = sink.requests[-1]
    (totals,) = [
        metric
        for resource in request.resource_metrics
        for metric in resource.scope_metrics[0].metrics
        if metric.name == "reqpath.request.duration"
    ]
    assert sum(point.count for point in totals.histogram.data_points) == 300


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_METRICS_EXPORTER": "none"}, False),
        ({"OTEL_METRICS_EXPORTER": "console, otlp"}, True),
    ],
)
def test_metrics_are_sent_when_the_standard_variable_asks(environ: dict[str, str], expected: bool) -> None:
    assert expected == metrics_wanted(environ)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_METRIC_EXPORT_INTERVAL": "soon"},
        {"OTEL_METRIC_EXPORT_INTERVAL": "0"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_a_variable_that_can_not_be_read_is_refused(environ: dict[str, str]) -> None:
    (name,) = environ
    with pytest.raises(ConfigurationError, match=environ[name]):
        MetricsExport.from_environment("shop", environ=environ)
