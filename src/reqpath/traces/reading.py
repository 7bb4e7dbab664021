"""Request paths from where traces are kept: files of OTLP, or a Jaeger.

The layers below are `otlp` and `jaeger`, which bring traces, and `paths`, which makes paths of them; the one
above is any report. Example::

    counts = TraceCounts()
    for path in read_jaeger_paths(JaegerReader("http://localhost:16686"), "shop", start_ns, end_ns, counts):
        print(path.route, path.timing.total_ns)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reqpath import conventions as names
from reqpath.path import RequestPath
from reqpath.traces.counts import TraceCounts
from reqpath.traces.jaeger import JaegerReader
from reqpath.traces.otlp import LineCounts, read_traces
from reqpath.traces.paths import build_paths
from reqpath.traces.span import Span


def read_otlp_paths(files: Sequence[str], service: str | None, counts: TraceCounts) -> Iterator[RequestPath]:
    """Read files of OTLP in JSON; yield the request paths of `service`, None: of all.

    Raises: TraceFileError.
    """
    lines = LineCounts()
    for trace in read_traces(files, lines):
        yield from build_counted(trace, service, counts)
        counts.unreadable, counts.other_signals = lines.unreadable, lines.other_signals
    counts.unreadable, counts.other_signals = lines.unreadable, lines.other_signals


def read_jaeger_paths(
    reader: JaegerReader, service: str, start_ns: int, end_ns: int, counts: TraceCounts
) -> Iterator[RequestPath]:
    """Read what a Jaeger has of a stretch of time; yield the request paths of `service`.

    Raises: JaegerError.
    """
    for trace in reader.read_traces(service, start_ns, end_ns):
        yield from build_counted(trace, service, counts)
    counts.unreadable, counts.cut_windows = reader.counts.unreadable, reader.cut_windows


def build_counted(trace: list[Span], service: str | None, counts: TraceCounts) -> Iterator[RequestPath]:
    """Build the paths of one trace that are of `service`, and count it."""
    counts.traces += 1
    counts.spans += len(trace)
    by_id = {span.span_id: span for span in trace}
    wanted = (service, f"{service}{names.NGINX_SUFFIX}")
    found = False
    for path in build_paths(trace):
        record = path.worker or path.nginx
        assert record is not None
        span = by_id[record.span_id]
        if service is not None and span.service not in wanted:
            # Of another service that took part.
            continue
        found = True
        counts.plain += names.ROLE not in span.attributes
        yield path
    counts.without_request += not found
