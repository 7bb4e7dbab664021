"""The figures of a breakdown, as plain data that loads nothing but the tiers' definition.

`analyse.breakdown` builds them from request paths; `render` turns them into text and JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reqpath.spool import SpoolLosses

if TYPE_CHECKING:
    from reqpath.traces.counts import TraceCounts

#: nginx gives `$upstream_response_time` in ms even with its perl module.
_MS: Final = 1_000_000
_FROM_NGINX: Final = frozenset({"nginx.receive", "nginx.local", "queue", "nginx.send"})
_FROM_UWSGI: Final = frozenset({"uwsgi.read", "uwsgi.gil"})


@dataclass(frozen=True, slots=True)
class Latency:
    """The total time of the requests; percentiles are of the nearest rank, so each is one request's."""

    mean_ns: float
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Requests whose totals are next to each other."""

    requests: int
    mean_ns: float


@dataclass(frozen=True, slots=True)
class SegmentFigures:
    """One segment over many requests."""

    name: str
    tier: str
    #: Requests in which it is known; the mean and the percentiles are over these only.
    known: int
    mean_ns: float | None
    p50_ns: int | None
    p99_ns: int | None
    #: Of the total time of all requests, also of those in which it is unknown.
    share: float
    #: Mean within the slices; None when it is unknown in the whole slice. Where it is unknown in a part of
    #: the slice, that part's time is in the residual, so that each slice adds up.
    median_ns: float | None
    slowest_ns: float | None
    #: Of the stamps that bound it.
    resolution_ns: int
    #: The route with the most of this segment's time within the slowest slice, and its share of that.
    slowest_route: str | None = None
    slowest_route_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Residual:
    """The total less the known segments. Negative where segments overlap within their stamps' resolution."""

    mean_ns: float
    #: Signed, so that the segments' shares and this one add up to 1.
    share: float
    #: Sum of its magnitudes over the total: what is not attributed, or attributed twice.
    absolute_share: float
    median_ns: float
    slowest_ns: float


@dataclass(frozen=True, slots=True)
class LensFigures:
    """One part of the worker's time, as means over the requests in which the lens is known."""

    name: str
    mean_ns: float
    median_ns: float | None
    slowest_ns: float | None


@dataclass(frozen=True, slots=True)
class Lens:
    """The worker's time, by what the thread was doing."""

    #: Requests in which both the CPU time and the run queue are known; none under greenlets.
    known: int
    #: wall; cpu, run queue and blocked, which add up to it; and of blocked, calls and other. A call's wait
    #: holds CPU time and run queue of its own, so "calls" (the database, sending) is at most that much, and
    #: "other", in a threaded worker in the main the GIL, at least.
    parts: tuple[LensFigures, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one route, or all of them."""

    #: None: all routes.
    route: str | None
    requests: int
    total: Latency
    median: Slice
    slowest: Slice
    #: 1 - `residual.absolute_share`.
    attributed_share: float
    #: The median over the requests of each one's own attributed share.
    attributed_median: float
    segments: tuple[SegmentFigures, ...]
    residual: Residual
    lens: Lens
    #: Requests by what the client got; None is unknown.
    statuses: dict[int | None, int]
    #: Requests by the stamp that is not there.
    missing_stamps: dict[str, int]
    #: Requests by the segment whose stamps contradict each other; by the one that was set to 0.
    skewed: dict[str, int]
    clamped: dict[str, int]
    #: nginx or the client gave up before the worker was done.
    abandoned: int
    #: Database operations a request, pings excluded.
    operations_mean: float
    #: Of the stamps that bound the total, ns: requests.
    resolutions: dict[int, int]

    @property
    def errors(self) -> int:
        """Requests that ended with a status of 500 or more."""
        return sum(count for status, count in self.statuses.items() if status is not None and status >= 500)

    @property
    def resolution_ns(self) -> int:
        """The coarsest resolution of the totals, but for what less than a hundredth of them have."""
        return common_resolution(self.resolutions)


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """One worker: a uWSGI worker by its number, else a process."""

    host: str
    #: uWSGI's number; None outside uWSGI, then `pids` has one.
    worker: int | None
    #: The processes that were this worker, one after the other.
    pids: tuple[int, ...]
    concurrency: str
    #: How many requests it can serve at one time.
    slots: int
    requests: int
    #: Time from `accept` to `closed` over the span of the report and the slots.
    busy_share: float


@dataclass(frozen=True, slots=True)
class StatementFigures:
    """One statement, or connects, commits and rollbacks."""

    kind: str
    #: With placeholders; None where it was not kept, and for other kinds than query.
    statement: str | None
    count: int
    total_ns: int
    mean_ns: float
    p99_ns: int
    errors: int


@dataclass(frozen=True, slots=True)
class SlowRequest:
    """One of the slowest requests."""

    total_ns: int
    trace_id: str
    route: str
    status: int | None
    #: Wall clock, ns since the epoch.
    start_ns: int
    resolution_ns: int
    #: Its longest segment; "residual" when that is longer.
    longest: str
    longest_ns: int


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time of many requests went."""

    whole: Group
    #: The one with the most time first.
    routes: tuple[Group, ...]
    #: Wall clock, ns since the epoch: the first request's start, the last one's end. None: no requests.
    first_ns: int | None
    last_ns: int | None
    workers: tuple[WorkerFigures, ...]
    #: Recorded requests by the transport of nginx → uWSGI, operations by that of app → MySQL; None: unknown.
    hop_transports: dict[str | None, int]
    database_transports: dict[str | None, int]
    #: The one with the most time first.
    statements: tuple[StatementFigures, ...]
    slowest: tuple[SlowRequest, ...]
    #: Requests known from both sides, from the worker alone, from nginx alone.
    joined: int
    worker_only: int
    nginx_only: int
    #: Requests that nginx took to another worker after a first one had recorded them.
    retried: int
    #: Records by the stamp that was there and not believed.
    rejected_stamps: dict[str, int]
    #: Operations beyond the limit of a record: in the segments, not in `statements`.
    dropped_operations: int
    #: Of a spool; nothing was lost where traces were read.
    losses: SpoolLosses
    #: Of traces; None where a spool was read.
    traces: TraceCounts | None = None

    @property
    def span_ns(self) -> int:
        """From the first request's start to the last one's end."""
        return 0 if self.first_ns is None or self.last_ns is None else self.last_ns - self.first_ns

    @property
    def rate_per_s(self) -> float | None:
        """Requests per second over the span; None for less than two requests."""
        return self.whole.requests / self.span_ns * 1e9 if self.whole.requests > 1 and self.span_ns else None


def resolution_of(segment: str, total_resolution_ns: int) -> int:
    """Return the resolution of a segment, ns, in a request whose coarsest stamp has `total_resolution_ns`."""
    if segment in _FROM_NGINX:
        return max(total_resolution_ns, 1_000)
    if segment == "nginx.upstream":
        return _MS
    return 1_000 if segment in _FROM_UWSGI else 1


def common_resolution(resolutions: dict[int, int]) -> int:
    """Return the coarsest of the resolutions, ns, that at least 1 % of the requests have."""
    # nginx rounds the time of an upstream to 1 ms: a few failed attempts must not coarsen a whole report.
    requests = sum(resolutions.values())
    return max((ns for ns, count in resolutions.items() if count * 100 >= requests), default=1)
