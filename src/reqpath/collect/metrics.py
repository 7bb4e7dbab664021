"""Tier histograms of every request, kept or not, as OTLP metrics with exemplars.

`PathMetrics` takes request paths (`add`, in the collector's loop) and gives the SDK's metric data (`collect`,
in `MetricsExport`'s thread), which the SDK's OTLP exporters send. The SDK's instruments take 7 µs a value,
and a path has some 15 values: more than joining and judging it. So `histogram` counts, 2 µs a path, and the
result is put into the SDK's terms here.

Per service, all in seconds and cumulative since the collector started, as Prometheus wants them::

    reqpath.segment.duration      by reqpath.route, reqpath.tier, reqpath.segment
    reqpath.request.duration      by reqpath.route, http.response.status_code: the same requests' totals
    reqpath.stamps.missing        by reqpath.stamp: requests in which a stamp was not there
    reqpath.segments.skewed       by reqpath.segment: requests in which two clocks contradicted each other
    http.server.request.duration  of `<service>-nginx`, with OpenTelemetry's own attributes: what nginx saw

An unknown segment is not in its histogram, and a segment that was zero in each request of a route has none.
The residual has no histogram, as it can be negative within the stamps' resolution: it is the totals' sum less
the segments'.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

import reqpath
from reqpath.collect.histogram import (
    BATCH,
    BOUNDS_NS,
    EXPONENTIAL_NS,
    FIRST_EXPONENT,
    HTTP_BOUNDS_NS,
    SCALE,
    Histogram,
    Sample,
)
from reqpath.errors import ConfigurationError, MissingExtraError
from reqpath.path import RequestPath
from reqpath.tiers import SEGMENTS

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics.export import (
        ExponentialHistogramDataPoint,
        HistogramDataPoint,
        Metric,
        MetricExporter,
        MetricsData,
    )

logger = logging.getLogger("reqpath")

#: Routes of a service that have a series of their own; requests for others are counted under `OTHER_ROUTE`.
MAX_ROUTES: Final = 100
OTHER_ROUTE: Final = "(other)"
#: Data points in one request, so that it stays below the 4 MiB that a gRPC server takes by default.
_MAX_POINTS: Final = 2_000
_METRICS_PATH: Final = "/v1/metrics"
#: A backend that is down must not hold up the collector's end.
_LAST_EXPORT_S: Final = 5.0

#: What a metric's attributes are made of.
Attributes = dict[str, str | int]


class _Route:
    """The histograms of one route of one service."""

    __slots__ = ("_bounds", "_rows", "http", "http_attributes", "name", "segments", "totals")

    def __init__(self, name: str, http_attributes: Attributes, bounds_ns: Sequence[int]) -> None:
        self.name = name
        self.http_attributes = http_attributes
        self.segments: list[Histogram | None] = [None] * len(SEGMENTS)
        #: By status.
        self.totals: dict[int | None, Histogram] = {}
        self.http: dict[int | None, Histogram] = {}
        self._bounds = bounds_ns
        self._rows: list[tuple[int | None, ...]] = []

    def add(self, row_ns: tuple[int | None, ...]) -> None:
        """Take the segments of one request."""
        self._rows.append(row_ns)
        if len(self._rows) >= BATCH:
            self.fold()

    def fold(self) -> None:
        """Count what was taken since the last time."""
        for i, column_ns in enumerate(zip(*self._rows, strict=True)):
            values_ns = [value_ns for value_ns in column_ns if value_ns is not None]
            if values_ns:
                self.segment(i).add_all(values_ns)
        self._rows.clear()

    def segment(self, index: int) -> Histogram:
        """Return the histogram of a segment."""
        histogram = self.segments[index]
        if histogram is None:
            histogram = self.segments[index] = Histogram(self._bounds)
        return histogram


class _Service:
    """What is counted of one service."""

    __slots__ = ("missing", "routes", "skewed")

    def __init__(self) -> None:
        self.routes: dict[str, _Route] = {}
        self.missing: Counter[str] = Counter()
        self.skewed: Counter[str] = Counter()


class PathMetrics:
    """Counts request paths and gives them as the SDK's metric data; for two threads, one adds, one collects.

    `service_name` is that of requests which no worker recorded, `exponential` the kind of the histograms.
    """

    def __init__(
        self,
        service_name: str,
        *,
        exponential: bool = False,
        max_routes: int = MAX_ROUTES,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._service_name = service_name
        self._exponential = exponential
        self._max_routes = max_routes
        self._clock = clock
        self._start_ns = clock()
        self._services: dict[str, _Service] = {}
        self._lock = threading.Lock()
        self._bounds = EXPONENTIAL_NS if exponential else BOUNDS_NS
        self._http_bounds = EXPONENTIAL_NS if exponential else HTTP_BOUNDS_NS

    def add(self, path: RequestPath, *, kept: bool = False) -> None:
        """Count a path; one that is `kept`, so has a trace, can be an exemplar."""
        timing, status, nginx = path.timing, path.status, path.nginx
        with self._lock:
            service, route = self._find(path)
            if timing.missing:
                service.missing.update(timing.missing)
            if timing.skewed:
                service.skewed.update(timing.skewed)
            route.add(timing.segments)
            total = route.totals.get(status)
            if total is None:
                total = route.totals[status] = Histogram(self._bounds)
            total.add(timing.total_ns)
            http, http_ns = None, _time_in_nginx(path)
            if http_ns is not None:
                http = route.http.get(status)
                if http is None:
                    http = route.http[status] = Histogram(self._http_bounds)
                http.add(http_ns)
            if not kept:
                return
            span_id = nginx.span_id if nginx else path.worker.span_id if path.worker else ""
            sample = Sample(
                timing.total_ns, timing.start_ns + timing.total_ns, int(span_id, 16), int(path.trace_id, 16)
            )
            total.sample(sample)
            if http is not None and http_ns is not None:
                http.sample(sample._replace(value_ns=http_ns))
            for i, value_ns in enumerate(timing.segments):
                if value_ns:
                    route.segment(i).sample(sample._replace(value_ns=value_ns))

    def collect(self) -> MetricsData:
        """Return all that was counted since the start, with the exemplars since the last call."""
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        host = socket.gethostname()
        # Not the SDK's random instance: a restart goes on with the same series. What OTEL_RESOURCE_ATTRIBUTES
        # says wins over the host's name, and the service's name over that.
        base = Resource({"host.name": host, "service.instance.id": host}).merge(
            OTELResourceDetector().detect()
        )
        scope = InstrumentationScope("reqpath", reqpath.__version__)
        resources = []
        with self._lock:
            points = _Points(self._start_ns, self._clock(), exponential=self._exponential)
            for name, service in sorted(self._services.items()):
                for service_name, metrics in (
                    (name, [*_build_own(service, points, self._bounds)]),
                    (f"{name}-nginx", [*_build_http(service, points, self._http_bounds)]),
                ):
                    if metrics:
                        resource = base.merge(Resource({"service.name": service_name}))
                        resources.append(ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], ""))
        return MetricsData(resources)

    def _find(self, path: RequestPath) -> tuple[_Service, _Route]:
        name = path.info.service_name if path.info else self._service_name
        service = self._services.get(name)
        if service is None:
            service = self._services[name] = _Service()
        route_name = path.route
        route = service.routes.get(route_name)
        if route is None:
            attributes: Attributes = {"http.request.method": route_name.partition(" ")[0]}
            if len(service.routes) >= self._max_routes:
                route_name, attributes = OTHER_ROUTE, {"http.request.method": "_OTHER"}
                route = service.routes.get(route_name)
            elif path.worker is not None and path.worker.route:
                attributes["http.route"] = path.worker.route
            if route is None:
                route = service.routes[route_name] = _Route(route_name, attributes, self._bounds)
        return service, route


def _time_in_nginx(path: RequestPath) -> int | None:
    """Return what nginx took, by its own clock alone, ns; None where its stamps are not there."""
    nginx = path.nginx
    if nginx is None:
        return None
    start_ns = nginx.start_ns
    if start_ns is None and path.worker is not None:
        start_ns = path.worker.nginx_start_ns
    return None if start_ns is None else max(0, nginx.end_ns - start_ns)


class _Points:
    """Builds the SDK's data points of one collection."""

    def __init__(self, start_ns: int, now_ns: int, *, exponential: bool) -> None:
        from opentelemetry.sdk.metrics import Exemplar

        self.start_ns, self.now_ns, self._exponential = start_ns, now_ns, exponential
        self._exemplar = Exemplar

    def build_histograms(
        self,
        name: str,
        description: str,
        bounds_ns: Sequence[int],
        histograms: Iterator[tuple[Attributes, Histogram]],
    ) -> Metric:
        """Return histograms as one metric."""
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            ExponentialHistogram,
            Metric,
        )
        from opentelemetry.sdk.metrics.export import Histogram as ExplicitHistogram

        cumulative = AggregationTemporality.CUMULATIVE
        if self._exponential:
            points = [self._build_exponential(*pair) for pair in histograms]
            return Metric(name, description, "s", ExponentialHistogram(points, cumulative))
        bounds_s = [bound_ns / 1e9 for bound_ns in bounds_ns]
        explicit = [
            self._build_explicit(attributes, histogram, bounds_s) for attributes, histogram in histograms
        ]
        return Metric(name, description, "s", ExplicitHistogram(explicit, cumulative))

    def build_sum(self, name: str, description: str, attribute: str, counts: Mapping[str, int]) -> Metric:
        """Return counts of requests by one attribute as a metric."""
        from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, NumberDataPoint, Sum

        points = [
            NumberDataPoint({attribute: value}, self.start_ns, self.now_ns, count)
            for value, count in sorted(counts.items())
        ]
        return Metric(name, description, "{request}", Sum(points, AggregationTemporality.CUMULATIVE, True))

    def _build_explicit(
        self, attributes: Attributes, histogram: Histogram, bounds_s: list[float]
    ) -> HistogramDataPoint:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        counts = histogram.counts()
        return HistogramDataPoint(
            attributes,
            self.start_ns,
            self.now_ns,
            histogram.count,
            histogram.sum_ns / 1e9,
            list(counts),
            bounds_s,
            histogram.min_ns / 1e9,
            histogram.max_ns / 1e9,
            self._build_exemplars(histogram),
        )

    def _build_exponential(
        self, attributes: Attributes, histogram: Histogram
    ) -> ExponentialHistogramDataPoint:
        from opentelemetry.sdk.metrics.export import Buckets, ExponentialHistogramDataPoint

        zeros, *counts = histogram.counts()
        used = [i for i, count in enumerate(counts) if count]
        first, end = (used[0], used[-1] + 1) if used else (0, 0)
        return ExponentialHistogramDataPoint(
            attributes,
            self.start_ns,
            self.now_ns,
            histogram.count,
            histogram.sum_ns / 1e9,
            SCALE,
            zeros,
            Buckets(FIRST_EXPONENT + first, counts[first:end]),
            Buckets(0, []),
            0,
            histogram.min_ns / 1e9,
            histogram.max_ns / 1e9,
            self._build_exemplars(histogram),
        )

    def _build_exemplars(self, histogram: Histogram) -> list[Exemplar]:
        return [
            self._exemplar({}, sample.value_ns / 1e9, sample.time_ns, sample.span_id, sample.trace_id)
            for sample in histogram.take_samples()
        ]


def _build_own(service: _Service, points: _Points, bounds_ns: Sequence[int]) -> Iterator[Metric]:
    def segments() -> Iterator[tuple[Attributes, Histogram]]:
        for route in service.routes.values():
            route.fold()
            for segment, histogram in zip(SEGMENTS, route.segments, strict=True):
                if histogram is not None and histogram.sum_ns:
                    yield (
                        {
                            "reqpath.route": route.name,
                            "reqpath.tier": segment.tier,
                            "reqpath.segment": segment.name,
                        },
                        histogram,
                    )

    def totals() -> Iterator[tuple[Attributes, Histogram]]:
        for route in service.routes.values():
            for status, histogram in route.totals.items():
                yield _with_status({"reqpath.route": route.name}, status), histogram

    yield points.build_histograms(
        "reqpath.segment.duration", "Exclusive time of a request in one segment", bounds_ns, segments()
    )
    yield points.build_histograms(
        "reqpath.request.duration", "Total of a request's segments and its residual", bounds_ns, totals()
    )
    if service.missing:
        yield points.build_sum(
            "reqpath.stamps.missing", "Requests without a stamp", "reqpath.stamp", service.missing
        )
    if service.skewed:
        yield points.build_sum(
            "reqpath.segments.skewed",
            "Requests in which the clocks that bound a segment contradict each other",
            "reqpath.segment",
            service.skewed,
        )


def _build_http(service: _Service, points: _Points, bounds_ns: Sequence[int]) -> Iterator[Metric]:
    if any(route.http for route in service.routes.values()):
        yield points.build_histograms(
            "http.server.request.duration",
            "Duration of HTTP server requests",
            bounds_ns,
            (
                (_with_status(route.http_attributes, status, error=True), histogram)
                for route in service.routes.values()
                for status, histogram in route.http.items()
            ),
        )


def _with_status(attributes: Attributes, status: int | None, *, error: bool = False) -> Attributes:
    if status is None:
        return attributes
    attributes = {**attributes, "http.response.status_code": status}
    # Source: OpenTelemetry's HTTP metric semantic conventions: of a server, 5xx is an error.
    if error and status >= 500:
        attributes["error.type"] = str(status)
    return attributes


class MetricsExport:
    """Sends what a `PathMetrics` counts, at an interval, in a thread of its own, and a last time at the end.

    A backend that is down loses nothing: the next export holds all since the start.
    """

    def __init__(self, metrics: PathMetrics, exporter: MetricExporter, *, interval_s: float) -> None:
        self._metrics = metrics
        self._exporter = exporter
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reqpath-metrics", daemon=True)

    @classmethod
    def from_environment(
        cls,
        service_name: str,
        *,
        endpoint: str | None = None,
        protocol: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Build it as OpenTelemetry's variables say; `endpoint` is the backend's address, `http://host:4318`.

        Source: OpenTelemetry's specification, "Environment Variables" and "OTLP Exporter".

        Raises: MissingExtraError; ConfigurationError for a value that can't be read.
        """
        kind = environ.get(
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"
        )
        metrics = PathMetrics(service_name, exponential=kind == "base2_exponential_bucket_histogram")
        interval = environ.get("OTEL_METRIC_EXPORT_INTERVAL") or "60000"
        if not interval.isdecimal() or int(interval) == 0:
            raise ConfigurationError(
                f"OTEL_METRIC_EXPORT_INTERVAL is {interval!r}; it takes a number of milliseconds"
            )
        protocol = (
            protocol
            or environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
            or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        # The variable for metrics alone is the way to send them elsewhere than the traces.
        if endpoint is not None and not environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
            exporter = _build_exporter(_find_base(endpoint), protocol)
        else:
            exporter = _build_exporter(None, protocol)
        return cls(metrics, exporter, interval_s=int(interval) / 1_000)

    def add(self, path: RequestPath, *, kept: bool = False) -> None:
        """Count a path; see `PathMetrics.add`."""
        self._metrics.add(path, kept=kept)

    def start(self) -> None:
        """Start the thread that sends."""
        self._thread.start()

    def close(self) -> None:
        """Send once more, for at most `_LAST_EXPORT_S`, and end the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_EXPORT_S)
        # Ends the exporter's waits between its tries, so that the thread ends too.
        self._exporter.shutdown()
        if self._thread.is_alive():
            self._thread.join(_LAST_EXPORT_S)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._export()
        self._export()

    def _export(self) -> None:
        data = self._metrics.collect()
        if not data.resource_metrics:
            return
        try:
            # It logs by itself what a backend answers.
            self._exporter.export(data)
        except Exception:
            logger.exception("metrics could not be exported; the next export holds all of them")


def metrics_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether `OTEL_METRICS_EXPORTER` asks for OTLP.

    Unset means no, unlike for OpenTelemetry's own SDKs: Jaeger, where most send the traces, takes no metrics.
    """
    return "otlp" in (name.strip() for name in environ.get("OTEL_METRICS_EXPORTER", "").split(","))


def _build_exporter(endpoint: str | None, protocol: str) -> MetricExporter:
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

            return Grpc(endpoint=endpoint, max_export_batch_size=_MAX_POINTS)
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

            return Http(endpoint=endpoint and endpoint + _METRICS_PATH, max_export_batch_size=_MAX_POINTS)
    except ModuleNotFoundError as error:
        raise MissingExtraError("otlp", error.name or "OpenTelemetry's exporters") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigurationError(f"can't send metrics: {error}") from error
    raise ConfigurationError(f"the OTLP protocol is {protocol!r}; it takes http/protobuf or grpc")


def _find_base(endpoint: str) -> str:
    """Return the base address of a backend, of which that for traces may have been given."""
    if "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    return endpoint.rstrip("/").removesuffix("/v1/traces")
