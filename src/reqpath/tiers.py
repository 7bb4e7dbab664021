"""The tiers of a request: what each segment is, what it excludes, and how it is measured.

The one definition. Whatever draws, prints or exports a breakdown takes names, order and values from here.

Two records go in (`WorkerRecord`, `NginxRecord`, either may be absent), one `Timing` comes out::

    nginx_start ─receive─ nginx_pass ─queue─ accept ─read─ parsed ─gil─ app_start ─worker─ closed ─send─ end

Segments are exclusive: between `app_start` and `closed` the worker's recorder is at each instant in exactly
one of `WORKER_SEGMENTS`, and every other segment is the difference of two neighbouring stamps. So segments
plus residual are the total, for every request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from reqpath.record import Attempt, NginxRecord, WorkerRecord

if TYPE_CHECKING:
    import numpy.typing as npt

#: When a request began, was passed on, accepted and parsed, reached the app, was closed, and ended.
Stamps = tuple[int, int, int, int, int, int, int]
#: Of one request, or of many.
Ns = TypeVar("Ns", int, "npt.NDArray[Any]")


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
        "what the server does after nginx has it all: regaining the GIL, closing the body",
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

_ROUTE_ADVICE: Final = (
    "add `route-run = addvar:REQPATH_UWSGI=${uwsgi[sor]},${time[micros]}` to uWSGI's ini: "
    "`reqpath config uwsgi`"
)
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
        _ROUTE_ADVICE,
    ),
    "parsed": (
        ("uwsgi.read", "uwsgi.gil"),
        _ROUTE_ADVICE,
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
#: uWSGI's route variables are good to a microsecond; so is what `accept` and `parsed` are compared with.
UWSGI_RESOLUTION_NS: Final = 1_000
_UWSGI_TOLERANCE_NS: Final = 2 * UWSGI_RESOLUTION_NS
#: nginx rounds the time of each upstream attempt to a millisecond, also where its stamps are finer.
_ATTEMPT_RESOLUTION_NS: Final = 1_000_000
#: Closing a body takes 10 to 100 µs by itself; what takes longer is work of the app's after its answer.
_CLOSING_NS: Final = 1_000_000
_WORKER_STAMPS: Final = ("nginx_start", "nginx_pass", "accept", "parsed", "closed", "nginx_end")
#: Of what the arrays of an analysis hold.
_LAST_NS: Final = (1 << 63) - 1
#: The statuses of a request whose client, or whose nginx, did not wait for the worker.
_GIVEN_UP: Final = (499, 504)


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
    #: Segments that came out negative beyond it: their clocks disagree, so they are unknown. So are then the
    #: others between the same two clocks, and the total is taken from one clock alone.
    skewed: tuple[str, ...]
    #: Stamps that are not there.
    missing: tuple[str, ...]
    #: The worker went on after nginx was done: the client or nginx gave up, or the app works after it has
    #: answered. The total is to the worker's end, so it is more than the client waited.
    abandoned: bool

    @property
    def longest(self) -> tuple[str, int]:
        """The segment that took the most, or the residual, and its ns."""
        times = [(value or 0, name) for name, value in zip(NAMES, self.segments, strict=True)]
        longest_ns, name = max([(self.residual_ns, "residual"), *times])
        return name, longest_ns


def measure(worker: WorkerRecord | None, nginx: NginxRecord | None) -> Timing:
    """Split one request's time into segments.

    nginx's stamps and the worker's may be of two hosts' clocks. Where they contradict each other, what lies
    between the two clocks is unknown, and the total is a difference within one clock.

    Raises: ValueError when both records are None.
    """
    if worker is None:
        if nginx is None:
            raise ValueError("a path needs a worker's record or nginx's line")
        return _measure_nginx_alone(nginx)
    return _measure_usual(worker, nginx) or _measure_any(worker, nginx)


def _measure_usual(worker: WorkerRecord, nginx: NginxRecord | None) -> Timing | None:
    """Split a request whose stamps are all there and in order: each segment is a difference, and none is odd.

    That is nearly every request, and takes half of the time that `_measure_any` does. None for any other.
    """
    stamps = read_in_order(worker, nginx)
    if stamps is None or nginx is None:
        return None
    start_ns, _, _, _, _, closed_ns, end_ns = stamps
    total_ns = end_ns - start_ns
    segments = split_in_order(stamps, worker.exclusive_ns)
    # As Timing(…) does it, without its detour through bytecode: this runs for most requests of a report.
    return tuple.__new__(
        Timing,
        (
            start_ns,
            total_ns,
            segments,
            total_ns - sum(filter(None, segments)),
            max(worker.nginx_resolution_ns or UWSGI_RESOLUTION_NS, nginx.resolution_ns),
            () if end_ns >= closed_ns else ("nginx.send",),
            (),
            (),
            False,
        ),
    )


def read_in_order(worker: WorkerRecord, nginx: NginxRecord | None) -> Stamps | None:
    """Return a request's seven stamps if all are there, one upstream was tried, and they follow one another.

    nginx's end, the last, may come before the closing by as much as nginx rounds: stock nginx nearly always
    cuts that off. None for any other request, and for instants that do not fit 63 bits.
    """
    if nginx is None:
        return None
    start_ns, pass_ns, accept_ns, parsed_ns, closed_offset_ns = (
        worker.nginx_start_ns,
        worker.nginx_pass_ns,
        worker.accept_ns,
        worker.parsed_ns,
        worker.closed_offset_ns,
    )
    if (
        start_ns is None
        or pass_ns is None
        or accept_ns is None
        or parsed_ns is None
        or closed_offset_ns is None
    ):
        return None
    app_start_ns = worker.app_start_ns
    return order_stamps(
        (start_ns, pass_ns, accept_ns, parsed_ns, app_start_ns, app_start_ns + closed_offset_ns),
        worker.nginx_resolution_ns or UWSGI_RESOLUTION_NS,
        nginx,
    )


def order_stamps(
    stamps: tuple[int, int, int, int, int, int], resolution_ns: int, nginx: NginxRecord
) -> Stamps | None:
    """Return what `read_in_order` does, of the first six stamps; `resolution_ns` is that of nginx's."""
    start_ns, pass_ns, accept_ns, parsed_ns, app_start_ns, closed_ns = stamps
    if (
        len(nginx.attempts) > 1
        or not 0 <= start_ns <= pass_ns <= accept_ns <= parsed_ns <= app_start_ns <= closed_ns <= _LAST_NS
    ):
        return None
    end_ns = nginx.end_ns
    if end_ns < closed_ns:
        resolution_ns = max(resolution_ns, nginx.resolution_ns)
        if end_ns < max(start_ns, closed_ns - resolution_ns - UWSGI_RESOLUTION_NS):
            return None
    elif end_ns > _LAST_NS:
        return None
    return *stamps, end_ns


def split_in_order(stamps: Iterable[Ns], exclusive_ns: Iterable[Any]) -> tuple[Any, ...]:
    """Return the `SEGMENTS` of a request with stamps in order, or of many: then each stamp is an array."""
    start_ns, pass_ns, accept_ns, parsed_ns, app_start_ns, closed_ns, end_ns = stamps
    send_ns = end_ns - closed_ns
    return (
        pass_ns - start_ns,
        None,
        0,
        accept_ns - pass_ns,
        parsed_ns - accept_ns,
        app_start_ns - parsed_ns,
        *exclusive_ns,
        send_ns * (send_ns > 0),
    )


def _measure_any(worker: WorkerRecord, nginx: NginxRecord | None) -> Timing:
    """Split a request whatever its stamps are."""
    clamped: list[str] = []
    skewed: list[str] = []

    def check(name: str, duration_ns: int, tolerance_ns: int) -> int | None:
        """Judge a negative duration."""
        if duration_ns >= -tolerance_ns:
            clamped.append(name)
            return 0
        skewed.append(name)
        return None

    app_start_ns = worker.app_start_ns
    worker_ns = sum(filter(None, worker.exclusive_ns))
    closed_ns = None if worker.closed_offset_ns is None else app_start_ns + worker.closed_offset_ns
    worker_end_ns = app_start_ns + worker_ns if closed_ns is None else closed_ns

    # By the clock of uWSGI and the worker. A stamp that follows what it must precede bounds nothing.
    accept_ns, parsed_ns = worker.accept_ns, worker.parsed_ns
    read_ns: int | None = None
    gil_ns: int | None = None
    first_ns = app_start_ns
    if parsed_ns is not None:
        gil_ns = app_start_ns - parsed_ns
        if gil_ns < 0:
            gil_ns = check("uwsgi.gil", gil_ns, _UWSGI_TOLERANCE_NS)
        first_ns = app_start_ns if gil_ns is None else parsed_ns
    if accept_ns is not None:
        read_ns = first_ns - accept_ns
        if read_ns < 0:
            read_ns = check("uwsgi.read", read_ns, _UWSGI_TOLERANCE_NS)
        if read_ns is None:
            accept_ns = None
        else:
            first_ns = accept_ns
    if gil_ns is None:
        read_ns = None

    # By nginx's clock.
    start_ns, pass_ns, end_ns = worker.nginx_start_ns, worker.nginx_pass_ns, None
    resolution_ns = worker.nginx_resolution_ns or UWSGI_RESOLUTION_NS
    attempts: list[Attempt] = []
    if nginx is not None:
        end_ns, attempts = nginx.end_ns, nginx.attempts
        resolution_ns = max(resolution_ns, nginx.resolution_ns)
        if start_ns is None:
            start_ns = nginx.start_ns
        if pass_ns is None:
            pass_ns = nginx.pass_ns
    tolerance_ns = resolution_ns + UWSGI_RESOLUTION_NS
    receive_ns: int | None = None
    if start_ns is not None and pass_ns is not None:
        receive_ns = pass_ns - start_ns
        if receive_ns < 0:
            receive_ns = check("nginx.receive", receive_ns, 2 * resolution_ns)
    handed_ns = start_ns if pass_ns is None else pass_ns

    # Between the two clocks. Attempts that left no record lie before the worker's or after it.
    before_ns = after_ns = 0
    if len(attempts) > 1:
        resolution_ns = max(resolution_ns, _ATTEMPT_RESOLUTION_NS)
        tolerance_ns += _ATTEMPT_RESOLUTION_NS * len(attempts)
        before_ns, after_ns = _split_attempts(
            attempts, None if handed_ns is None else first_ns + tolerance_ns - handed_ns
        )
    queue_ns: int | None = None
    send_ns: int | None = None
    contradiction = False
    if handed_ns is not None:
        lead_ns = first_ns - handed_ns - before_ns
        if accept_ns is not None and pass_ns is not None:
            queue_ns = lead_ns if lead_ns >= 0 else check("queue", lead_ns, tolerance_ns)
        elif lead_ns < -tolerance_ns:
            skewed.append("queue")
        contradiction = lead_ns < -tolerance_ns
    finish_ns = worker_end_ns
    late_ns = 0
    abandoned = False
    if nginx is not None and end_ns is not None:
        left_ns = end_ns - worker_end_ns
        if left_ns >= -tolerance_ns:
            finish_ns = end_ns
            after_ns = min(after_ns, max(0, left_ns))
            if closed_ns is not None:
                send_ns = left_ns - after_ns
                if send_ns < 0:
                    send_ns = check("nginx.send", send_ns, tolerance_ns)
        elif after_ns or nginx.status in _GIVEN_UP:
            after_ns, abandoned = 0, True
        elif (late := _late_ns(worker, worker_end_ns, end_ns, tolerance_ns)) is not None:
            late_ns = late
            finish_ns = worker_end_ns - late_ns
            abandoned = finish_ns - end_ns > max(tolerance_ns, _CLOSING_NS)
            send_ns = None if abandoned else 0
        else:
            skewed.append("nginx.send")
            contradiction = True

    begin_ns = first_ns if handed_ns is None else handed_ns if start_ns is None else start_ns
    one_clock = not contradiction
    if not contradiction:
        begin_ns = min(begin_ns, first_ns)
    else:
        queue_ns = send_ns = None
        late_ns = 0
        if handed_ns is not None and end_ns is not None and not abandoned:
            finish_ns = end_ns
            one_clock = True
    worker_side_ns = (read_ns or 0) + (gil_ns or 0) + worker_ns
    known_ns = (
        (receive_ns or 0) + before_ns + after_ns + (queue_ns or 0) + worker_side_ns - late_ns + (send_ns or 0)
    )
    upstream_ns = None if nginx is None else before_ns + after_ns
    if not one_clock or finish_ns - begin_ns < known_ns - 4 * (tolerance_ns + _UWSGI_TOLERANCE_NS):
        # Not even nginx's own time has room for the worker's, so only the worker's can be believed.
        if not skewed:
            skewed.append("nginx.send")
        begin_ns, finish_ns, known_ns, late_ns = first_ns, worker_end_ns, worker_side_ns, 0
        receive_ns = upstream_ns = queue_ns = send_ns = None

    exclusive_ns = worker.exclusive_ns
    if late_ns:
        exclusive_ns = [*exclusive_ns[:-1], (exclusive_ns[-1] or 0) - late_ns]
    total_ns = max(0, finish_ns - begin_ns)
    stamps = (start_ns, pass_ns, worker.accept_ns, worker.parsed_ns, closed_ns, end_ns)
    missing: tuple[str, ...] = ()
    if None in stamps:
        missing = tuple(
            name for name, stamp_ns in zip(_WORKER_STAMPS, stamps, strict=True) if stamp_ns is None
        )
    return Timing(
        begin_ns,
        total_ns,
        (receive_ns, None, upstream_ns, queue_ns, read_ns, gil_ns, *exclusive_ns, send_ns),
        total_ns - known_ns,
        resolution_ns,
        tuple(clamped),
        tuple(skewed),
        missing,
        abandoned,
    )


def _split_attempts(attempts: list[Attempt], room_ns: int | None) -> tuple[int, int]:
    """Return the time of the attempts before and after the one that the worker recorded.

    That is the last one, unless the others do not fit into `room_ns`, the time before the worker had the
    request: then nginx gave up the recorded one and went on to another. None: not known.
    """
    times_ns = [attempt.response_ns or 0 for attempt in attempts]
    before_ns, after_ns = sum(times_ns[:-1]), 0
    for i in range(len(times_ns) - 1, 0, -1):
        if room_ns is None or before_ns <= room_ns:
            break
        before_ns -= times_ns[i - 1]
        after_ns += times_ns[i]
    return before_ns, after_ns


def _late_ns(worker: WorkerRecord, worker_end_ns: int, end_ns: int, tolerance_ns: int) -> int | None:
    """Return how much of the worker's sending came after nginx had ended; None when that can't be.

    With a Content-Length nginx is done when it has read so many bytes, while the worker has still to regain
    the GIL and to close the body. 0 where nginx ended while the worker was not yet done with the body.
    """
    response_start_ns = worker.response_start_offset_ns
    if response_start_ns is None or end_ns < worker.app_start_ns + response_start_ns - tolerance_ns:
        return None
    closing_ns = worker.closing_offset_ns
    sent_ns = worker_end_ns if closing_ns is None else worker.app_start_ns + closing_ns
    sending_ns = worker.exclusive_ns[-1] or 0
    late_ns = sent_ns - end_ns
    return min(max(0, late_ns), sending_ns) if late_ns <= sending_ns + tolerance_ns else 0


def _measure_nginx_alone(nginx: NginxRecord) -> Timing:
    """Split the time of a request that no worker recorded: 502, 413, a cache hit, a static file."""
    attempts = nginx.attempts
    start_ns, pass_ns = nginx.start_ns, nginx.pass_ns
    resolution_ns = max(nginx.resolution_ns, _ATTEMPT_RESOLUTION_NS if attempts else 0)
    clamped: list[str] = []
    skewed: list[str] = []
    missing = []
    if attempts:
        missing.append("app_start")
        if pass_ns is None:
            missing.append("nginx_pass")
    if start_ns is None:
        missing.append("nginx_start")
    begin_ns = nginx.end_ns if start_ns is None else start_ns
    total_ns = nginx.end_ns - begin_ns
    values: list[int | None] = [None] * len(SEGMENTS)
    if start_ns is None:
        total_ns = 0
    elif total_ns < 0:
        (clamped if total_ns >= -2 * resolution_ns else skewed).append("nginx.local")
        begin_ns, total_ns = nginx.end_ns, 0
    elif not attempts:
        values[_LOCAL] = total_ns
    else:
        # Each attempt's time is rounded on its own, so that their sum can pass the total.
        upstream_ns = sum(attempt.response_ns or 0 for attempt in attempts)
        excess_ns = upstream_ns - total_ns
        if excess_ns > (len(attempts) + 1) * resolution_ns:
            skewed.append("nginx.upstream")
        else:
            if excess_ns > 0:
                clamped.append("nginx.upstream")
            values[_UPSTREAM] = upstream_ns = min(upstream_ns, total_ns)
            if pass_ns is not None and 0 <= pass_ns - begin_ns <= total_ns - upstream_ns:
                values[_RECEIVE] = pass_ns - begin_ns
    return Timing(
        begin_ns,
        total_ns,
        tuple(values),
        total_ns - sum(filter(None, values)),
        resolution_ns,
        tuple(clamped),
        tuple(skewed),
        tuple(missing),
        False,
    )
