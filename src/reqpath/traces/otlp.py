"""Spans from OTLP in JSON: files as OpenTelemetry's file exporter writes them, one request a line.

The layer below is `msgspec`; the one above makes request paths of the spans. Example::

    counts = LineCounts()
    for spans in read_traces(["traces.jsonl"], counts):
        spans     # of one trace

    {"resourceSpans":[{"resource":…,"scopeSpans":[{"spans":[…]}]}]}  →  [Span("4bf9…", "00f0…", …), …]

Source: opentelemetry-proto, opentelemetry/proto/trace/v1/trace.proto, and the OTLP specification's section on
its JSON encoding: names in camelCase, ids in hex, 64-bit numbers as strings, enums as numbers.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import msgspec

from reqpath.errors import ReqPathError
from reqpath.record import AttributeValue
from reqpath.traces.span import Event, Kind, Link, Span

#: A line that is longer is no request of an exporter's, whose batches are of some MB at most.
_MAX_LINE_BYTES: Final = 256 << 20
#: Spans at one time; about 1 KB each.
MAX_HELD: Final = 100_000
_GZIP: Final = b"\x1f\x8b"
#: By number, as the specification has it, and by name, as protobuf's own JSON would.
_KINDS: Final[dict[int | str, Kind]] = {
    key: kind
    for number, kind in enumerate(get_args(Kind), 1)
    for key in (number, f"SPAN_KIND_{kind.upper()}")
}
_STATUSES: Final[dict[int | str, Literal["OK", "ERROR"]]] = {
    1: "OK",
    2: "ERROR",
    "STATUS_CODE_OK": "OK",
    "STATUS_CODE_ERROR": "ERROR",
}
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_LARGEST_NS: Final = 1 << 63


class TraceFileError(ReqPathError):
    """A file holds no traces that can be read."""


@dataclass(slots=True)
class LineCounts:
    """What the lines of files were."""

    #: Requests with traces in them.
    read: int = 0
    #: Requests of metrics and logs.
    other_signals: int = 0
    #: Lines, or spans within one, that are none: torn, or of something else.
    unreadable: int = 0


class _Wire(msgspec.Struct, rename="camel", gc=False):
    """A message; fields that are not named here are skipped."""


class _Value(_Wire):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _Array | None = None


class _Array(_Wire):
    values: list[_Value] | None = None


class _Pair(_Wire):
    key: str
    value: _Value | None = None


class _Event(_Wire):
    name: str = ""
    time_unix_nano: int | str = 0
    attributes: list[_Pair] | None = None


class _Link(_Wire):
    trace_id: str
    span_id: str
    attributes: list[_Pair] | None = None


class _Status(_Wire):
    code: int | str = 0
    message: str = ""


class _Span(_Wire):
    trace_id: str
    span_id: str
    start_time_unix_nano: int | str
    end_time_unix_nano: int | str
    parent_span_id: str | None = None
    name: str = ""
    kind: int | str = 0
    attributes: list[_Pair] | None = None
    events: list[_Event] | None = None
    links: list[_Link] | None = None
    status: _Status | None = None


class _Scope(_Wire):
    name: str = ""


class _ScopeSpans(_Wire):
    scope: _Scope | None = None
    spans: list[_Span] | None = None


class _Resource(_Wire):
    attributes: list[_Pair] | None = None


class _ResourceSpans(_Wire):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Traces(_Wire):
    resource_spans: list[_ResourceSpans] | None = None
    resource_metrics: list[msgspec.Raw] | None = None
    resource_logs: list[msgspec.Raw] | None = None


class _Answer(_Wire):
    result: _Traces


_decode = msgspec.json.Decoder(_Traces).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def parse_line(line: bytes, counts: LineCounts) -> list[Span]:
    """Return the spans of one `ExportTraceServiceRequest`; what is not one is counted.

    A span without usable ids or instants is left out, and counted too.
    """
    try:
        traces = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        counts.unreadable += 1
        return []
    if traces.resource_spans is None:
        if traces.resource_metrics is None and traces.resource_logs is None:
            counts.unreadable += 1
        else:
            counts.other_signals += 1
        return []
    counts.read += 1
    return _build_spans(traces, counts)


def parse_answer(document: bytes, counts: LineCounts) -> list[Span]:
    """Return the spans of an answer of Jaeger's query API, which is such a request within an object.

    Raises: ValueError when it is none.
    """
    try:
        return _build_spans(_decode_answer(document).result, counts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("no traces in OTLP") from error


def _build_spans(traces: _Traces, counts: LineCounts) -> list[Span]:
    spans: list[Span] = []
    for group in traces.resource_spans or ():
        resource = _build_attributes(group.resource.attributes if group.resource else None)
        name = resource.get("service.name", "")
        service = name if isinstance(name, str) else str(name)
        for scoped in group.scope_spans or ():
            scope = scoped.scope.name if scoped.scope else ""
            for wire in scoped.spans or ():
                try:
                    spans.append(_build_span(wire, service, resource, scope))
                except ValueError:
                    counts.unreadable += 1
    return spans


def read_files(paths: Sequence[str], counts: LineCounts) -> Iterator[list[Span]]:
    """Read files, `-` is the standard input; yield the spans of each line. Gzip is understood.

    Raises: TraceFileError when a file can't be read, or none of its lines is OTLP.
    """
    for path in paths:
        known, unreadable = counts.read + counts.other_signals, counts.unreadable
        try:
            with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
                packed = file.peek(2).startswith(_GZIP)
                yield from _read_lines(gzip.GzipFile(fileobj=file) if packed else file, counts)
        except EOFError:
            # Of a packed file: it is being written, or was cut off.
            counts.unreadable += 1
        except (OSError, zlib.error) as error:
            raise TraceFileError(f"can't read the traces in {path}: {error}") from error
        if counts.unreadable > unreadable and counts.read + counts.other_signals == known:
            raise TraceFileError(
                f"no line of {path} is OTLP in JSON; it takes what the file exporter of the OpenTelemetry "
                "Collector writes with `format: json`, one request a line"
            )


def read_traces(
    paths: Sequence[str], counts: LineCounts, *, max_held: int = MAX_HELD
) -> Iterator[list[Span]]:
    """Read files as `read_files` does; yield the spans of each trace together, in the order of their ends.

    A trace's spans may be lines apart, as several processes sent them. `max_held` bounds the spans that wait
    for more of their trace; the trace that got none for longest goes first.
    """
    held: dict[str, list[Span]] = {}
    waiting = 0
    for spans in read_files(paths, counts):
        for span in spans:
            trace = held.pop(span.trace_id, [])
            trace.append(span)
            held[span.trace_id] = trace
        waiting += len(spans)
        while waiting > max_held:
            trace = held.pop(next(iter(held)))
            waiting -= len(trace)
            yield trace
    yield from held.values()


def _read_lines(file: gzip.GzipFile | io.BufferedReader, counts: LineCounts) -> Iterator[list[Span]]:
    while line := file.readline(_MAX_LINE_BYTES):
        if not line.isspace():
            yield parse_line(line, counts)


def _build_span(wire: _Span, service: str, resource: dict[str, AttributeValue], scope: str) -> Span:
    """Raises: ValueError when ids or instants are none."""
    status = wire.status or _Status()
    return Span(
        _parse_id(wire.trace_id, _TRACE_ID),
        _parse_id(wire.span_id, _SPAN_ID),
        _parse_parent(wire.parent_span_id),
        wire.name,
        _KINDS.get(wire.kind, "internal"),
        service,
        _parse_instant(wire.start_time_unix_nano),
        _parse_instant(wire.end_time_unix_nano),
        _build_attributes(wire.attributes),
        tuple(
            Event(event.name, _parse_instant(event.time_unix_nano), _build_attributes(event.attributes))
            for event in wire.events or ()
        ),
        tuple(
            Link(
                _parse_id(link.trace_id, _TRACE_ID),
                _parse_id(link.span_id, _SPAN_ID),
                _build_attributes(link.attributes),
            )
            for link in wire.links or ()
        ),
        _STATUSES.get(status.code, "UNSET"),
        status.message or None,
        resource,
        scope,
    )


def _parse_id(text: str, pattern: re.Pattern[str]) -> str:
    found = text.lower()
    if not pattern.fullmatch(found) or not found.strip("0"):
        raise ValueError("no id")
    return found


def _parse_parent(text: str | None) -> str:
    return _parse_id(text, _SPAN_ID) if text and text.strip("0") else ""


def _parse_instant(value: int | str) -> int:
    instant_ns = int(value)
    if not 0 < instant_ns < _LARGEST_NS:
        raise ValueError("no instant")
    return instant_ns


def _build_attributes(pairs: list[_Pair] | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    for pair in pairs or ():
        value = None if pair.value is None else _build_value(pair.value)
        if value is not None:
            attributes[pair.key] = value
    return attributes


def _build_value(value: _Value) -> AttributeValue | None:
    if value.array_value is not None:
        built = [_build_scalar(item) for item in value.array_value.values or ()]
        return [item for item in built if item is not None]
    return _build_scalar(value)


def _build_scalar(value: _Value) -> str | bool | int | float | None:
    """Return a value that OpenTelemetry allows for an attribute; None for none, and for maps and the like."""
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    try:
        if value.int_value is not None:
            return int(value.int_value)
        # As text it is NaN or an infinity.
        return None if value.double_value is None else float(value.double_value)
    except ValueError:
        return None
