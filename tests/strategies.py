"""Request paths as they can come from a spool: every field, and stamps in any order that clocks can give."""

from __future__ import annotations

from typing import Any, Literal

from hypothesis import strategies as st

from reqpath import conventions as names
from reqpath.path import RequestPath
from reqpath.raw import CLOSED, NOT_CLOSED, NOT_SENT, SEGMENT_OF, Link, RawOperation, RawRecord
from reqpath.record import (
    AppSpan,
    Attempt,
    NginxRecord,
    Operation,
    SpanEvent,
    Transport,
    WorkerRecord,
    WriterInfo,
)
from reqpath.tiers import WORKER_SEGMENTS
from tests.factories import NOW_NS, make_writer_info

US = 1_000
MS = 1_000_000

durations = st.integers(0, 5 * MS) | st.sampled_from((0, MS, 20 * MS))
near = st.integers(-30 * MS, 30 * MS).map(lambda offset_ns: NOW_NS + offset_ns)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
words = st.text("abcdefghij", min_size=1, max_size=8)
statuses = st.sampled_from((200, 201, 302, 404, 499, 500, 502, 504))
hosts = st.sampled_from(("shop.example", "shop.example:8080", "[::1]:80", "::1", "a:b", ":", "x:080")) | texts
span_ids = st.integers(1, (1 << 64) - 1).map(lambda number: f"{number:016x}")
trace_ids = st.integers(1, (1 << 128) - 1).map(lambda number: f"{number:032x}")
QUERY, SEND = map(WORKER_SEGMENTS.index, ("mysql.query", "uwsgi.send"))
methods = st.sampled_from(("GET", "POST", "PUT", "BREW", "get", ""))
resolutions = st.sampled_from((US, MS))
kinds: st.SearchStrategy[Literal["connect", "query", "commit", "rollback", "ping"]] = st.sampled_from(
    ("connect", "query", "commit", "rollback", "ping")
)
transports: st.SearchStrategy[Transport | None] = st.sampled_from((None, "tcp", "unix"))
scalars = (
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, width=32) | texts
)
values = scalars | st.lists(texts, max_size=3) | st.lists(st.integers(0, 9), max_size=3)
attributes = st.dictionaries(words, values, max_size=4)
#: What an app can set on its span, reqpath's own names among it.
attributes_of_app = st.dictionaries(words | st.sampled_from(sorted(names.REQUEST_KEYS)), values, max_size=5)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(kinds)
    instants = sorted(draw(st.lists(durations, min_size=3, max_size=3)))
    phases = ("tls_context", "socket", "handshake", "setup")
    return Operation(
        kind,
        instants[0],
        instants[2],
        draw(st.sampled_from((None, instants[1]))),
        draw(st.none() | st.sampled_from(("SELECT 1", "/* x */ insert into t values (?)", "?", ""))),
        draw(st.none() | st.integers(0, 1_000)),
        draw(st.none() | st.sampled_from(("OperationalError: 2006", "InterfaceError"))),
        draw(transports),
        draw(st.none() | texts),
        draw(st.none() | st.integers(1, 65_535)),
        draw(st.none() | words),
        draw(st.none() | st.integers(2, 100)),
        draw(st.booleans()),
        [(name, draw(durations)) for name in phases] if kind == "connect" and draw(st.booleans()) else [],
        draw(st.none() | st.integers(1, 9)),
        draw(st.none() | durations),
    )


@st.composite
def timelines(draw: st.DrawFn, closed_ns: int) -> list[int]:
    instants = sorted(draw(st.lists(st.integers(0, closed_ns), max_size=12)))
    timeline = []
    for instant_ns in instants:
        timeline += [draw(st.integers(0, len(WORKER_SEGMENTS) - 1)), instant_ns]
    return timeline


@st.composite
def workers(draw: st.DrawFn, /, **fixed: Any) -> WorkerRecord:
    """Return a record whose spans end in order; its stamps are in any."""
    exclusive_ns = draw(st.lists(st.none() | durations, min_size=10, max_size=10))
    closed_ns = draw(st.none() | durations.map(lambda more_ns: more_ns + sum(filter(None, exclusive_ns))))
    view = sorted(draw(st.lists(durations, min_size=2, max_size=2)))
    status = draw(st.none() | st.just(("OK", None)) | st.tuples(st.just("ERROR"), st.none() | words))
    stamps: dict[str, Any] = {
        "nginx_start_ns": draw(st.none() | near),
        "nginx_pass_ns": draw(st.none() | near),
        "nginx_resolution_ns": draw(st.none() | resolutions),
        "accept_ns": draw(st.none() | near),
        "parsed_ns": draw(st.none() | near),
        "flask_start_offset_ns": draw(st.none() | durations),
        "view_start_offset_ns": draw(st.sampled_from((None, view[0]))),
        "view_end_offset_ns": draw(st.sampled_from((None, view[1]))),
        "response_start_offset_ns": draw(st.none() | durations),
        "closing_offset_ns": draw(st.none() | durations),
    }
    if draw(st.booleans()):
        # As it is nearly always: everything there, in order.
        gaps = draw(st.lists(st.integers(0, 5 * MS), min_size=4, max_size=4))
        at_ns = NOW_NS
        for name, gap_ns in zip(
            ("parsed_ns", "accept_ns", "nginx_pass_ns", "nginx_start_ns"), gaps, strict=True
        ):
            stamps[name] = at_ns = at_ns - gap_ns
    values: dict[str, Any] = {
        "trace_id": draw(trace_ids),
        "span_id": draw(span_ids),
        "parent_id": draw(st.just("") | span_ids),
        "sampled": draw(st.booleans()),
        "sequence": 0,
        "method": draw(methods),
        "path": draw(texts),
        "route": draw(st.none() | st.sampled_from(("/items/<int:id>", "/"))),
        "status": draw(st.none() | statuses),
        "app_start_ns": NOW_NS,
        "closed_offset_ns": closed_ns,
        "exclusive_ns": exclusive_ns,
        **stamps,
        "cpu_ns": draw(st.none() | durations),
        "run_queue_ns": draw(st.none() | durations),
        "core": draw(st.none() | st.integers(0, 9)),
        "transport": draw(transports),
        "host": draw(st.none() | hosts),
        "request_bytes": draw(st.none() | durations),
        "response_bytes": draw(st.none() | durations),
        "operations": draw(st.lists(operations(), max_size=3)),
        "dropped_operations": draw(st.sampled_from((0, 0, 7))),
        "span_name": draw(st.none() | words),
        "attributes": draw(attributes_of_app),
        "events": draw(
            st.lists(
                st.builds(SpanEvent, texts, st.integers(-US, 9 * MS), attributes),
                max_size=2,
            )
        ),
        "span_status": status,
        "exception": draw(st.none() | st.tuples(texts, texts, texts)),
        "rejected_stamps": draw(st.sampled_from(([], ["accept"]))),
        "timeline": draw(timelines(max(view[1], closed_ns or 0))),
        "app_samples": draw(st.booleans()),
    }
    record = WorkerRecord(**(values | fixed))
    for operation in record.operations:
        # One span of the app's SDK can hold several operations.
        number = draw(st.sampled_from((None, None, 0x5A5A << 48, 0x5A5B << 48)))
        if number is not None:
            operation.app_span_id = f"{int(record.span_id, 16) ^ number:016x}"
    if draw(st.booleans()):
        record.app_span = AppSpan(
            draw(st.sampled_from((record.trace_id, record.trace_id, "cd" * 16))),
            f"{int(record.span_id, 16) ^ 0xA5A5_0000_0000_0000:016x}",
            draw(st.integers(-US, US)),
            draw(st.none() | durations.map(lambda duration_ns: US + duration_ns)),
        )
        # What the app sets, it sets on that.
        record.span_name = None
    return record


@st.composite
def lines(draw: st.DrawFn, /, min_attempts: int = 0, **fixed: Any) -> NginxRecord:
    attempt = st.builds(
        Attempt,
        st.sampled_from(("unix:/run/uwsgi.sock", "10.0.0.5:3031", "[::1]:3031", "backend")) | words,
        st.none() | statuses,
        st.none() | durations,
        st.none() | durations,
        st.none() | durations,
    )
    attempts = draw(st.lists(attempt, min_size=min_attempts, max_size=3))
    values: dict[str, Any] = {
        "trace_id": draw(trace_ids),
        "span_id": draw(span_ids),
        "end_ns": NOW_NS + draw(st.integers(-30 * MS, 60 * MS)),
        "parent_id": draw(st.just("") | span_ids),
        "start_ns": draw(st.none() | near),
        "pass_ns": draw(st.none() | near) if attempts else None,
        "resolution_ns": draw(resolutions),
        "status": draw(st.none() | statuses),
        "method": draw(methods),
        "path": draw(texts),
        "host": draw(st.none() | hosts),
        "request_bytes": draw(st.none() | durations),
        "response_bytes": draw(st.none() | durations),
        "attempts": attempts,
        "cache_status": draw(st.none() | st.sampled_from(("HIT", "MISS"))),
        "sampled": draw(st.booleans()),
        "protocol": draw(st.none() | st.sampled_from(("HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3.0", "?"))),
        "scheme": draw(st.none() | st.just("https")),
        "client_address": draw(st.none() | st.just("203.0.113.9")),
        "user_agent": draw(st.none() | texts),
    }
    return NginxRecord(**(values | fixed))


infos = st.builds(
    make_writer_info,
    service_name=words,
    host=words,
    pid=st.integers(1, 9_999),
    worker=st.none() | st.integers(1, 9),
    processes=st.none() | st.integers(1, 9),
    threads=st.none() | st.integers(1, 9),
    concurrency=st.sampled_from(("processes", "threads", "greenlets", "unknown")),
    server=st.none() | words,
)


@st.composite
def request_paths(draw: st.DrawFn) -> RequestPath:
    """Return a path: nginx's line alone, a worker's record alone, or both, and attempts before."""
    ids = draw(st.lists(span_ids, min_size=4, max_size=4, unique=True))
    trace_id = draw(trace_ids)
    shape = draw(st.sampled_from(("both", "both", "worker", "line")))
    line = None
    if shape != "worker":
        line = draw(
            lines(
                min_attempts=1 if shape == "both" else 0,
                trace_id=trace_id,
                span_id=ids[0],
                parent_id=draw(st.sampled_from(("", "00f067aa0ba902b7"))),
            )
        )
    if shape == "line":
        return RequestPath(None, None, line)
    fixed = {"trace_id": trace_id}
    if line is not None:
        fixed["parent_id"] = line.span_id
    else:
        fixed["parent_id"] = draw(st.sampled_from(("", ids[0])))
    worker: WorkerRecord = draw(workers(span_id=ids[1], **fixed))
    retried: tuple[WorkerRecord, ...] = ()
    if line is not None and len(line.attempts) > 1 and draw(st.booleans()):
        retried = (draw(workers(span_id=ids[2], **fixed)),)
    info: WriterInfo = draw(infos)
    return RequestPath(worker, info, line, retried)


@st.composite
def nginx_params(draw: st.DrawFn, start_us: int, pass_us: int) -> str:
    """What nginx hands over: stamps to a microsecond, or to a millisecond as its own variables are."""
    if draw(st.booleans()):
        return ",".join(f"{us // 1_000_000}.{us % 1_000_000:06d}" for us in (start_us, pass_us))
    ago_ms = draw(st.integers(0, 90_000))
    now_ms, pass_ms = start_us // 1_000 + ago_ms, pass_us // 1_000
    return (
        f"{now_ms // 1_000}.{now_ms % 1_000:03d}-{ago_ms // 1_000}.{ago_ms % 1_000:03d},"
        f"{pass_ms // 1_000}.{pass_ms % 1_000:03d}"
    )


@st.composite
def raw_records(draw: st.DrawFn) -> RawRecord:
    """A request as its worker notes it, most often with all its stamps in order and nothing odd about it."""
    instants_ns = [draw(st.integers(1, 1 << 62))]
    for _ in range(draw(st.integers(1, 12))):
        instants_ns.append(instants_ns[-1] + draw(durations))
    codes = [*(draw(st.sampled_from(range(len(SEGMENT_OF)))) for _ in instants_ns[1:]), SEND]
    marks = [number for mark in zip(codes, instants_ns, strict=True) for number in mark]
    gaps_us = draw(st.lists(st.integers(0, 5_000) | st.integers(-500, 500), min_size=4, max_size=4))
    parsed_us = NOW_NS // US - gaps_us[3]
    accept_us = parsed_us - gaps_us[2]
    pass_us = accept_us - gaps_us[1]
    start_us = pass_us - gaps_us[0]
    if draw(st.integers(0, 9)) == 0:
        # A clock that was set, by hours or days.
        accept_us += draw(st.sampled_from((-1, 1))) * draw(st.sampled_from((3_600, 100_000))) * 1_000_000
    environ: list[Any] = [
        f"00-{draw(trace_ids)}-{draw(span_ids)}-0{draw(st.integers(0, 1))}",
        draw(nginx_params(start_us, pass_us)),
        f"{accept_us},{parsed_us}",
        draw(methods),
        draw(st.sampled_from(("/", "/items/7", "", "/\xe4", "/" * 2_000))),
        draw(st.sampled_from(("", "/shop"))),
        draw(st.sampled_from(("shop.example", None))),
        draw(st.sampled_from(("", "17", "x", None))),
        draw(st.sampled_from((0, 3, None))),
    ]
    spoilt = draw(st.integers(0, 3 * len(environ)))
    if spoilt < len(environ):
        environ[spoilt] = draw(st.sampled_from((None, "", "x", 7)))
    ends = st.sampled_from(instants_ns)
    link: Link = (draw(transports), "db", draw(st.none() | st.integers(1, 65_535)), "shop", 3)
    statements: list[Any] = []
    for code, sent_ns in zip(codes, instants_ns, strict=True):
        if code == QUERY and draw(st.booleans()):
            end_ns = max(sent_ns, draw(ends))
            text = draw(st.sampled_from(("SELECT ?", "COMMIT")))
            statements += [sent_ns, end_ns, text, draw(statuses), link]
    return RawRecord(
        NOW_NS,
        environ,
        marks,
        draw(st.integers(0, (1 << 64) - 1)),
        draw(st.sampled_from((0, 0, 1, 0b11110000, (1 << len(WORKER_SEGMENTS)) - 1))),
        draw(transports),
        draw(st.integers(0, 9)),
        statements,
        [RawOperation(1, -1, 2, None, None, link)] if draw(st.integers(0, 9)) == 0 else [],
        draw(st.sampled_from(("200 OK", "500 INTERNAL SERVER ERROR", "", None, 7))),
        draw(st.sampled_from(("/items/<id>", None))),
        draw(st.sampled_from((None, instants_ns[-1]))),
        draw(st.sampled_from((None, instants_ns[-1]))),
        draw(st.none() | st.integers(0, 9)),
        draw(st.none() | st.integers(0, 9)),
        draw(st.none() | st.integers(9, 99)),
        draw(st.none() | st.integers(0, 9)),
        draw(st.sampled_from((CLOSED, CLOSED, CLOSED, NOT_CLOSED, NOT_SENT))),
    )
