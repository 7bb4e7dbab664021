"""The tiers of a request: what each segment is, what it excludes, and how it is measured.

The one definition. Whatever draws, prints or exports a breakdown takes names, order and values from here.

Two records go in (`WorkerRecord`, `NginxRecord`, either may be absent), one `Timing` comes out::

    nginx_start ─receive─ nginx_pass ─queue─ accept ─read─ parsed ─gil─ app_start ─worker─ closed ─send─ end

Segments are exclusive: between `app_start` and `closed` the worker's recorder is at each instant in exactly
one of `WORKER_SEGMENTS`, and every other segment is the difference of two neighbouring stamps. So segments
plus residual are the total, for every request.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from reqpath.record import NginxRecord, WorkerRecord


class Segment(NamedTuple):
    """An exclusive slice of a request's time."""

    name: str
    tier: str
    #: What is in it, as one line of a table.
    meaning: str
    #: What a reader might expect in it and won't find.
    excludes: str


SEGMENTS: Final = (
    Segment(
        "nginx.receive",
        "nginx",
        "nginx reads and buffers the request's body",
        "TLS and the time before nginx had the headers",
    ),
    Segment(
        "nginx.local",
        "nginx",
        "nginx answers by itself: a file, a cache hit, a refusal",
        "anything that went to an upstream",
    ),
    Segment(
        "nginx.upstream",
        "nginx",
        "upstream attempts that left no record: failed, timed out, not instrumented",
        "the attempt that a worker recorded",
    ),
    Segment(
        "queue",
        "queue",
        "nginx connects, then the request waits in the listen queue until a worker accepts it",
        "waiting inside the worker for the GIL",
    ),
    Segment("uwsgi.read", "uwsgi", "uWSGI reads and parses the request", "the body, which the app reads"),
    Segment(
        "uwsgi.gil",
        "uwsgi",
        "uWSGI waits for the GIL and builds the WSGI environ",
        "GIL waits after the app has started; see the blocked time",
    ),
    Segment(
        "flask.middleware",
        "flask",
        "WSGI middleware around Flask, on the way in and out",
        "middleware that wraps the app outside reqpath",
    ),
    Segment(
        "flask.framework",
        "flask",
        "Flask: routing, session, before and after functions, teardown",
        "database calls and templates that run inside it",
    ),
    Segment(
        "flask.view",
        "flask",
        "the view function, and a streamed body's generator",
        "templates and database calls",
    ),
    Segment(
        "flask.template", "flask", "Jinja finds, compiles and renders templates", "database calls made by it"
    ),
    Segment("wsgi.app", "app", "a WSGI application that is not Flask", "database calls and templates"),
    Segment(
        "mysql.connect",
        "mysql",
        "a connection is opened: TLS context, socket, handshake, session set-up",
        "waiting for a pool to hand one out",
    ),
    Segment(
        "mysql.query",
        "mysql",
        "statement sent until the reply's first byte: network, server, and regaining the GIL",
        "building the statement on the client",
    ),
    Segment(
        "mysql.fetch",
        "mysql",
        "the reply is read and decoded into Python objects",
        "what the view does with the rows",
    ),
    Segment("mysql.commit", "mysql", "commit and rollback, as the client waits for them", "implicit commits"),
    Segment(
        "uwsgi.send",
        "uwsgi",
        "the body's chunks are written to nginx",
        "the server's own work after the body was closed",
    ),
    Segment(
        "nginx.send",
        "nginx",
        "from the closed body until nginx has handed the last byte to the kernel",
        "the client's network and what its kernel still holds",
    ),
)

#: Position of each segment by name.
INDEX: Final = {segment.name: i for i, segment in enumerate(SEGMENTS)}
NAMES: Final = tuple(segment.name for segment in SEGMENTS)
#: Those that the worker's recorder fills, in the order of `WorkerRecord.exclusive_ns`. Part of the format.
WORKER_SEGMENTS: Final = NAMES[INDEX["flask.middleware"] : INDEX["uwsgi.send"] + 1]
#: Tiers in the order in which a request meets them.
TIERS: Final = ("nginx", "queue", "uwsgi", "flask", "app", "mysql")

#: The stamps that bound segments, each with the segments it makes known and how to get it.
STAMPS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "nginx_start": (
        ("nginx.receive",),
        "include reqpath's lines in nginx's location: `reqpath config nginx`",
    ),
    "nginx_pass": (
        ("nginx.receive", "queue"),
        "include reqpath's lines in nginx's location: `reqpath config nginx`",
    ),
    "accept": (
        ("queue", "uwsgi.read"),
        "add `route-run = addvar:REQPATH_ACCEPT=${uwsgi[sor]}` to uWSGI's ini: `reqpath config uwsgi`",
    ),
    "parsed": (
        ("uwsgi.read", "uwsgi.gil"),
        "add `route-run = addvar:REQPATH_PARSED=${time[micros]}` to uWSGI's ini: `reqpath config uwsgi`",
    ),
    "app_start": (
        ("flask.view",),
        "put `ReqPath(app)` into the app; nginx saw requests that no worker recorded",
    ),
    "closed": (
        ("uwsgi.send", "nginx.send"),
        "none: the server sent the response by itself (sendfile), so its end was not seen",
    ),
    "nginx_end": (
        ("nginx.send",),
        "run `reqpath collect` and include reqpath's access_log in nginx's http: `reqpath config nginx`",
    ),
}

_RECEIVE: Final = INDEX["nginx.receive"]
_LOCAL: Final = INDEX["nginx.local"]
_UPSTREAM: Final = INDEX["nginx.upstream"]
_QUEUE: Final = INDEX["queue"]
_READ: Final = INDEX["uwsgi.read"]
_GIL: Final = INDEX["uwsgi.gil"]
_WORKER: Final = INDEX["flask.middleware"]
_SEND: Final = INDEX["nginx.send"]
_WORKER_UNKNOWN: Final = (None,) * len(WORKER_SEGMENTS)
#: uWSGI's route variables are good to a microsecond; so is what `accept` and `parsed` are compared with.
_UWSGI_RESOLUTION_NS: Final = 1_000


class Timing(NamedTuple):
    """One request's time, split. `sum(known segments) + residual_ns == total_ns`, always."""

    #: Wall clock, ns since the epoch: the earliest stamp known.
    start_ns: int
    #: From there to the latest stamp: what the client waited, when nginx's stamps are there.
    total_ns: int
    #: One per `SEGMENTS`; None is unknown, which is not zero.
    segments: tuple[int | None, ...]
    residual_ns: int
    #: Of the coarsest stamp used.
    resolution_ns: int
    #: Segments that came out negative within their stamps' resolution and were set to 0.
    clamped: tuple[str, ...]
    #: Segments that came out negative beyond it: their clocks disagree, so they are unknown.
    skewed: tuple[str, ...]
    #: Stamps that are not there.
    missing: tuple[str, ...]
    #: nginx's line ends before the worker did: the client or nginx gave up. The total is to the worker's end.
    abandoned: bool


def measure(worker: WorkerRecord | None, nginx: NginxRecord | None) -> Timing:
    """Split one request's time into segments.

    Raises: ValueError when both records are None.
    """
    if worker is None:
        if nginx is None:
            raise ValueError("a path needs a worker's record or nginx's line")
        return _measure_nginx_alone(nginx)

    clamped: list[str] = []
    skewed: list[str] = []
    missing: list[str] = []

    def between(segment: int, start_ns: int | None, end_ns: int | None, tolerance_ns: int) -> int | None:
        if start_ns is None or end_ns is None:
            return None
        duration_ns = end_ns - start_ns
        if duration_ns >= 0:
            return duration_ns
        if duration_ns >= -tolerance_ns:
            clamped.append(NAMES[segment])
            return 0
        skewed.append(NAMES[segment])
        return None

    app_start_ns = worker.app_start_ns
    accept_ns = worker.accept_ns
    parsed_ns = worker.parsed_ns
    start_ns = worker.nginx_start_ns
    pass_ns = worker.nginx_pass_ns
    resolution_ns = worker.nginx_resolution_ns or _UWSGI_RESOLUTION_NS
    closed_ns = None if worker.closed_offset_ns is None else app_start_ns + worker.closed_offset_ns
    exclusive_ns = worker.exclusive_ns
    worker_ns = sum(filter(None, exclusive_ns))
    end_ns: int | None = None
    upstream_ns: int | None = 0
    if nginx is not None:
        end_ns = nginx.end_ns
        resolution_ns = max(resolution_ns, nginx.resolution_ns)
        if start_ns is None or worker.nginx_resolution_ns is None:
            start_ns = nginx.start_ns
        if pass_ns is None:
            pass_ns = nginx.pass_ns
        if len(nginx.attempts) > 1:
            upstream_ns = sum(attempt.response_ns or 0 for attempt in nginx.attempts[:-1])

    tolerance_ns = resolution_ns + _UWSGI_RESOLUTION_NS
    receive_ns = between(_RECEIVE, start_ns, pass_ns, 2 * resolution_ns)
    queue_ns = between(
        _QUEUE, None if pass_ns is None else pass_ns + (upstream_ns or 0), accept_ns, tolerance_ns
    )
    read_ns = between(_READ, accept_ns, parsed_ns, 2 * _UWSGI_RESOLUTION_NS)
    gil_ns = between(_GIL, parsed_ns, app_start_ns, 2 * _UWSGI_RESOLUTION_NS)

    abandoned = False
    send_ns: int | None = None
    if end_ns is not None and closed_ns is not None:
        # 499: the client left; 504: nginx did. Either way the worker went on, and nobody was sent anything.
        abandoned = nginx is not None and nginx.status in (499, 504) and end_ns < closed_ns
        if not abandoned:
            send_ns = between(_SEND, closed_ns, end_ns, tolerance_ns)

    begin_ns = start_ns
    if begin_ns is None:
        begin_ns = accept_ns if accept_ns is not None and accept_ns <= app_start_ns else app_start_ns
    worker_end_ns = closed_ns if closed_ns is not None else app_start_ns + worker_ns
    finish_ns = worker_end_ns if end_ns is None or abandoned else end_ns
    total_ns = finish_ns - begin_ns
    if total_ns < worker_ns - 2 * tolerance_ns:
        # The stamps of nginx contradict the worker's own monotonic time, so they can't bound the request.
        if "nginx.send" not in skewed:
            skewed.append("nginx.send")
        begin_ns, total_ns = app_start_ns, worker_ns
        receive_ns = queue_ns = read_ns = gil_ns = send_ns = None

    if start_ns is None:
        missing.append("nginx_start")
    if pass_ns is None:
        missing.append("nginx_pass")
    if accept_ns is None:
        missing.append("accept")
    if parsed_ns is None:
        missing.append("parsed")
    if closed_ns is None:
        missing.append("closed")
    if end_ns is None:
        missing.append("nginx_end")

    if nginx is None:
        upstream_ns = None
    segments = (
        receive_ns,
        None,
        upstream_ns,
        queue_ns,
        read_ns,
        gil_ns,
        *exclusive_ns,
        send_ns,
    )
    known_ns = (
        (receive_ns or 0)
        + (upstream_ns or 0)
        + (queue_ns or 0)
        + (read_ns or 0)
        + (gil_ns or 0)
        + worker_ns
        + (send_ns or 0)
    )
    return Timing(
        begin_ns,
        total_ns,
        segments,
        total_ns - known_ns,
        resolution_ns,
        tuple(clamped),
        tuple(skewed),
        tuple(missing),
        abandoned,
    )


def _measure_nginx_alone(nginx: NginxRecord) -> Timing:
    """Split the time of a request that no worker recorded: 502, 413, a cache hit, a static file."""
    start_ns, end_ns, pass_ns = nginx.start_ns, nginx.end_ns, nginx.pass_ns
    missing = ["app_start"] if nginx.attempts else []
    clamped: tuple[str, ...] = ()
    skewed: tuple[str, ...] = ()
    if start_ns is None:
        missing.append("nginx_start")
        start_ns = end_ns
    total_ns = end_ns - start_ns
    if total_ns < 0:
        skewed = ("nginx.local",)
        total_ns = 0
    values: list[int | None] = [None] * len(SEGMENTS)
    if not nginx.attempts:
        values[_LOCAL] = total_ns
    else:
        upstream_ns = sum(attempt.response_ns or 0 for attempt in nginx.attempts)
        # Each attempt's time is rounded to a millisecond on its own, so a sum can pass the total.
        if upstream_ns > total_ns:
            clamped = ("nginx.upstream",)
            upstream_ns = total_ns
        values[_UPSTREAM] = upstream_ns
        if pass_ns is not None and 0 <= pass_ns - start_ns <= total_ns - upstream_ns:
            values[_RECEIVE] = pass_ns - start_ns
    known_ns = sum(filter(None, values))
    return Timing(
        start_ns,
        total_ns,
        tuple(values),
        total_ns - known_ns,
        nginx.resolution_ns,
        clamped,
        skewed,
        tuple(missing),
        False,
    )
