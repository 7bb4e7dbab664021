"""The breakdown: where the time of many requests went, in all and per route.

The layer below is `path.RequestPath.timing`, one request's split; the layers above draw and print what comes
out of here. Every figure is exact: each request's segments are kept, as whole nanoseconds in columns of the
narrowest type that holds them, about 100 bytes a request::

    builder = BreakdownBuilder()
    builder = BreakdownBuilder()
    builder.extend(paths)
    builder.build(losses).whole.total.p99_ns

Means of segments add up to the mean of the total, percentiles don't. So what a slow request is made of is
told by means within slices of the total: the *median path* is the mean over the requests between the 45th and
the 55th percentile of the total, the *slowest 1 %* over the last hundredth, at least one request.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import UNKNOWN, Column, IntArray, Names, Table
from reqpath.path import RequestPath
from reqpath.record import Operation, WorkerRecord, WriterInfo, operation_time_ns
from reqpath.spool import SpoolLosses
from reqpath.tiers import INDEX, NAMES, SEGMENTS, STAMPS, WORKER_SEGMENTS

#: Routes and statements told apart; what comes later is added to one named "(others)". A client can send any
#: method, and an app can build any statement.
MAX_ROUTES: Final = 2_000
MAX_STATEMENTS: Final = 5_000
OTHERS: Final = "(others)"

#: Few enough rows to stay in a core's cache until they are packed.
_CHUNK: Final = 2_048
#: nginx gives `$upstream_response_time` in ms even with its perl module.
_MS: Final = 1_000_000
_FROM_NGINX: Final = frozenset({"nginx.receive", "nginx.local", "queue", "nginx.send"})
_FROM_UWSGI: Final = frozenset({"uwsgi.read", "uwsgi.gil"})
_IN_WORKER: Final = frozenset({*_FROM_UWSGI, *WORKER_SEGMENTS})
_CALLS: Final = frozenset({"mysql.connect", "mysql.query", "mysql.commit", "uwsgi.send"})

_Indices = npt.NDArray[np.intp]


class _Mark(NamedTuple):
    """What many requests have in common, so that it is counted and not kept for each."""

    route: int
    status: int | None
    transport: str | None
    resolution_ns: int
    has_worker: bool
    has_line: bool
    first_attempt: bool
    clamped: tuple[str, ...]
    skewed: tuple[str, ...]
    missing: tuple[str, ...]
    abandoned: bool


_Marks = list[tuple[_Mark, int]]


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
        return _common_resolution(self.resolutions)


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
    losses: SpoolLosses

    @property
    def span_ns(self) -> int:
        """From the first request's start to the last one's end."""
        return 0 if self.first_ns is None or self.last_ns is None else self.last_ns - self.first_ns

    @property
    def rate_per_s(self) -> float | None:
        """Requests per second over the span; None for less than two requests."""
        return self.whole.requests / self.span_ns * 1e9 if self.whole.requests > 1 and self.span_ns else None


def build_breakdown(
    paths: Iterable[RequestPath], losses: SpoolLosses | None = None, *, slowest: int = 5
) -> Breakdown:
    """Build the breakdown of `paths`; `losses` is read after the last of them."""
    builder = BreakdownBuilder(slowest=slowest)
    builder.extend(paths)
    return builder.build(losses)


class BreakdownBuilder:
    """Takes request paths one by one; can build a breakdown at any time."""

    def __init__(self, *, slowest: int = 5) -> None:
        """`slowest` is how many of the slowest requests are named."""
        self._routes = Names(MAX_ROUTES, OTHERS)
        #: By method and route, of those that are not one of the others.
        self._known_routes: dict[tuple[str, str | None], int] = {}
        self._workers: dict[str, int] = {}
        self._worker_infos: list[WriterInfo] = []
        self._segments = Table(len(SEGMENTS))
        self._total, self._residual = Column(), Column()
        self._cpu, self._run_queue = Column(), Column()
        self._mark, self._worker = Column(), Column()
        #: By row, ns: the TLS contexts that were built in it. Few requests connect.
        self._tls_contexts: dict[int, int] = {}
        #: Each `_Mark` as a plain tuple, numbered from 0.
        self._marks: dict[tuple[object, ...], int] = {}
        self._operations = _OperationTable()
        self._rejected: Counter[str] = Counter()
        self._dropped_operations = 0
        self._first_ns = self._last_ns = 0
        self._slowest: list[tuple[int, int, RequestPath]] = []
        self._slowest_count = slowest
        self._slowest_limit = -1 if slowest else math.inf
        self._count = 0

    @property
    def requests(self) -> int:
        """How many were added."""
        return self._count

    def add(self, path: RequestPath) -> None:
        """Add one request."""
        self.extend((path,))

    def extend(self, paths: Iterable[RequestPath]) -> None:
        """Add requests."""
        # All that a million turns look up is looked up once.
        known_routes, marks, workers = self._known_routes, self._marks, self._workers
        append_total, append_residual = self._total.append, self._residual.append
        append_cpu, append_run_queue = self._cpu.append, self._run_queue.append
        append_mark, append_worker = self._mark.append, self._worker.append
        rows = self._segments.rows
        for path in paths:
            worker, line = path.worker, path.nginx
            timing = path.timing
            start_ns, total_ns, segments, residual_ns, resolution_ns, clamped, skewed, missing, abandoned = (
                timing
            )
            if worker is None:
                route: int | None = self._routes.number(path.route)
                transport = None
                append_cpu(UNKNOWN)
                append_run_queue(UNKNOWN)
                append_worker(UNKNOWN)
            else:
                route = known_routes.get((worker.method, worker.route))
                if route is None:
                    route = self._learn_route(path, worker)
                transport = worker.transport
                append_cpu(UNKNOWN if worker.cpu_ns is None else worker.cpu_ns)
                append_run_queue(UNKNOWN if worker.run_queue_ns is None else worker.run_queue_ns)
                info = path.info
                number = None if info is None else workers.get(info.writer_id)
                append_worker(self._learn_worker(info) if number is None else number)
                if worker.operations:
                    tls_ns = self._operations.add(route, worker.operations)
                    if tls_ns:
                        self._tls_contexts[self._count] = tls_ns
                if worker.rejected_stamps or worker.dropped_operations:
                    self._rejected.update(worker.rejected_stamps)
                    self._dropped_operations += worker.dropped_operations
            mark = (
                route,
                path.status,
                transport,
                resolution_ns,
                worker is not None,
                line is not None,
                not path.retried,
                clamped,
                skewed,
                missing,
                abandoned,
            )
            number = marks.get(mark)
            if number is None:
                number = marks[mark] = len(marks)
            append_mark(number)
            append_total(total_ns)
            append_residual(residual_ns)
            rows.append(segments)
            if start_ns + total_ns > self._last_ns:  # noqa: PLR1730 - half the time of max()
                self._last_ns = start_ns + total_ns
            if start_ns < self._first_ns or not self._count:
                self._first_ns = start_ns
            self._count += 1
            if total_ns > self._slowest_limit:
                self._keep_slow(total_ns, path)
            if len(rows) >= _CHUNK:
                self._pack()

    def build(self, losses: SpoolLosses | None = None) -> Breakdown:
        """Build the breakdown of what was added so far."""
        self._pack()
        total = self._total.read()
        mark_of = self._mark.read()
        counts = np.bincount(mark_of, minlength=len(self._marks)).tolist()
        marks = [(_Mark._make(mark), count) for mark, count in zip(self._marks, counts, strict=True)]
        route_of = np.array([mark.route for mark, _ in marks], np.int32)[mark_of]
        del mark_of
        by_total = np.argsort(total, kind="stable")
        # Each route's requests, in the order of their totals.
        ordered_routes = route_of[by_total]
        by_route = by_total[np.argsort(ordered_routes, kind="stable")]
        bounds = np.cumsum(np.bincount(route_of, minlength=len(self._routes.names)))
        groups = [_GroupBuilder(None, by_total)]
        start = 0
        for route, end in enumerate(bounds.tolist()):
            if end > start:
                groups.append(_GroupBuilder(route, by_route[start:end]))
            start = end
        del by_total, ordered_routes, by_route

        for group in groups:
            group.take_total(total)
        residual = self._residual.read()
        for group in groups:
            group.take_residual(residual, total)
        del residual, total
        busy, wall, calls = (np.zeros(self._count, np.int64) for _ in range(3))
        for i, segment in enumerate(SEGMENTS):
            column = self._segments.read(i)
            for group in groups:
                group.take_segment(i, column, route_of)
            known = np.maximum(column, 0)
            if segment.name in _IN_WORKER:
                busy += known
            if segment.name in WORKER_SEGMENTS:
                wall += known
            if segment.name in _CALLS:
                calls += known
        for row, tls_ns in self._tls_contexts.items():
            calls[row] -= tls_ns
        cpu, run_queue = self._cpu.read(), self._run_queue.read()
        lens_known = (cpu >= 0) & (run_queue >= 0)
        # Two clocks: of a thread that never slept, the difference can be a few µs below 0.
        blocked = np.maximum(wall - cpu - run_queue, 0)
        calls = np.minimum(calls, blocked)
        for name, values in (
            ("wall", wall),
            ("cpu", cpu),
            ("run queue", run_queue),
            ("blocked", blocked),
            ("calls", calls),
            ("other", blocked - calls),
        ):
            for group in groups:
                group.take_lens(name, values, lens_known)

        names = self._routes.names
        sides = _count(marks, lambda mark: (mark.has_worker, mark.has_line))
        built = [
            group.build(
                None if group.route is None else names[group.route],
                marks,
                self._operations.count(group.route),
                names,
            )
            for group in groups
        ]
        return Breakdown(
            whole=built[0],
            routes=tuple(
                sorted(built[1:], key=lambda group: (-group.total.mean_ns * group.requests, group.route))
            ),
            first_ns=self._first_ns if self._count else None,
            last_ns=self._last_ns if self._count else None,
            workers=self._build_workers(busy),
            hop_transports=_count(
                [(mark, count) for mark, count in marks if mark.has_worker], lambda mark: mark.transport
            ),
            database_transports=self._operations.transports(),
            statements=self._operations.build(),
            slowest=self._build_slowest(),
            joined=sides.get((True, True), 0),
            worker_only=sides.get((True, False), 0),
            nginx_only=sides.get((False, True), 0),
            retried=_count(marks, lambda mark: mark.first_attempt).get(False, 0),
            rejected_stamps=dict(sorted(self._rejected.items())),
            dropped_operations=self._dropped_operations,
            losses=losses or SpoolLosses(),
        )

    def _learn_route(self, path: RequestPath, worker: WorkerRecord) -> int:
        number = self._routes.number(path.route)
        if self._routes.names[number] != OTHERS:
            self._known_routes[(worker.method, worker.route)] = number
        return number

    def _learn_worker(self, info: WriterInfo | None) -> int:
        if info is None:
            return UNKNOWN
        self._worker_infos.append(info)
        return self._workers.setdefault(info.writer_id, len(self._workers))

    def _keep_slow(self, total_ns: int, path: RequestPath) -> None:
        # The count breaks ties, so that paths are never compared; the earlier request stays.
        heapq.heappush(self._slowest, (total_ns, -self._count, path))
        if len(self._slowest) > self._slowest_count:
            heapq.heappop(self._slowest)
        if len(self._slowest) == self._slowest_count:
            self._slowest_limit = self._slowest[0][0]

    def _pack(self) -> None:
        self._segments.pack()
        for column in (
            self._total,
            self._residual,
            self._cpu,
            self._run_queue,
            self._mark,
            self._worker,
        ):
            column.pack()

    def _build_workers(self, busy: npt.NDArray[np.int64]) -> tuple[WorkerFigures, ...]:
        numbers = self._worker.read()
        served = numbers >= 0
        size = len(self._worker_infos)
        requests = np.bincount(numbers[served], minlength=size)
        busy_ns = np.bincount(numbers[served], weights=busy[served], minlength=size)
        processes: dict[tuple[str, int | None, int | None], list[int]] = {}
        for number, info in enumerate(self._worker_infos):
            key = (info.host, info.worker, info.pid if info.worker is None else None)
            processes.setdefault(key, []).append(number)
        span_ns = max(1, self._last_ns - self._first_ns)
        figures = []
        for (host, worker, _), members in processes.items():
            info = self._worker_infos[members[-1]]
            slots = info.threads or 1
            figures.append(
                WorkerFigures(
                    host,
                    worker,
                    tuple(dict.fromkeys(self._worker_infos[number].pid for number in members)),
                    info.concurrency,
                    slots,
                    int(sum(requests[number] for number in members)),
                    float(sum(busy_ns[number] for number in members)) / span_ns / slots,
                )
            )
        return tuple(sorted(figures, key=lambda figure: (figure.host, figure.worker or 0, figure.pids)))

    def _build_slowest(self) -> tuple[SlowRequest, ...]:
        slowest = []
        for total_ns, _, path in sorted(self._slowest, key=lambda entry: (-entry[0], -entry[1])):
            timing = path.timing
            longest_ns, longest = max(
                [
                    (timing.residual_ns, "residual"),
                    *((value or 0, name) for name, value in zip(NAMES, timing.segments, strict=True)),
                ]
            )
            slowest.append(
                SlowRequest(
                    total_ns,
                    path.trace_id,
                    path.route,
                    path.status,
                    timing.start_ns,
                    timing.resolution_ns,
                    longest,
                    longest_ns,
                )
            )
        return tuple(slowest)


class _OperationTable:
    """Each database operation's time, by statement."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str | None, str | None], int] = {}
        self._keys: list[tuple[str, str | None, str | None]] = []
        self._number_of, self._time = Column(), Column()
        self._pending = 0
        self._errors: Counter[int] = Counter()
        self._by_route: dict[int, int] = {}

    def add(self, route: int, operations: list[Operation]) -> int:
        """Add one request's operations; return the ns that its connects spent on building TLS contexts."""
        append_number, append_time = self._number_of.append, self._time.append
        numbers = self._numbers
        tls_ns = 0
        count = 0
        for operation in operations:
            kind = operation.kind
            if kind == "ping":
                continue
            key = (kind, operation.statement, operation.transport)
            number = numbers.get(key)
            if number is None:
                number = self._number(key)
            count += 1
            append_number(number)
            append_time(operation_time_ns(operation))
            if operation.error is not None:
                self._errors[number] += 1
            if operation.phases:
                tls_ns += sum(ns for name, ns in operation.phases if name == "tls_context")
        self._by_route[route] = self._by_route.get(route, 0) + count
        self._pending += count
        if self._pending > _CHUNK:
            self._number_of.pack()
            self._time.pack()
            self._pending = 0
        return tls_ns

    def _number(self, key: tuple[str, str | None, str | None]) -> int:
        if len(self._keys) >= MAX_STATEMENTS:
            key = (key[0], OTHERS, key[2])
            if key in self._numbers:
                return self._numbers[key]
        number = self._numbers[key] = len(self._keys)
        self._keys.append(key)
        return number

    def count(self, route: int | None) -> int:
        """How many operations a route had; None: all of them."""
        return sum(self._by_route.values()) if route is None else self._by_route.get(route, 0)

    def transports(self) -> dict[str | None, int]:
        counts = np.bincount(self._number_of.read(), minlength=len(self._keys))
        transports: Counter[str | None] = Counter()
        for (_, _, transport), count in zip(self._keys, counts.tolist(), strict=True):
            transports[transport] += count
        return dict(transports)

    def build(self) -> tuple[StatementFigures, ...]:
        # One statement over two transports is one statement.
        merged: dict[tuple[str, str | None], int] = {}
        numbers = [merged.setdefault(key[:2], len(merged)) for key in self._keys]
        errors: Counter[int] = Counter()
        for number, count in self._errors.items():
            errors[numbers[number]] += count
        column = np.array(numbers, np.int32)[self._number_of.read()] if numbers else self._number_of.read()
        order = np.argsort(column, kind="stable")
        times = self._time.read()[order]
        figures = []
        start = 0
        for number, ((kind, statement), count) in enumerate(
            zip(merged, np.bincount(column, minlength=len(merged)).tolist(), strict=True)
        ):
            part = times[start : start + count]
            start += count
            total_ns = int(part.sum(dtype=np.int64))
            figures.append(
                StatementFigures(
                    kind, statement, count, total_ns, total_ns / count, _ranks(part, 0.99)[0], errors[number]
                )
            )
        figures.sort(key=lambda figure: (-figure.total_ns, figure.kind, figure.statement or ""))
        return tuple(figures)


class _GroupBuilder:
    """The figures of one group of requests, column by column, so that one column is unpacked at a time."""

    def __init__(self, route: int | None, indices: _Indices) -> None:
        """`indices` are the group's rows, ordered by total."""
        self.route = route
        self._indices = indices
        size = len(indices)
        self._size = size
        self._median = slice(math.floor(size * 0.45), math.ceil(size * 0.55))
        self._slowest = slice(size - math.ceil(size / 100), size)
        self._segments: list[SegmentFigures] = []
        self._slow_routes: list[tuple[int, float] | None] = []
        self._lens: list[LensFigures] = []
        self._lens_known = 0
        self._sum_ns = 0

    def take_total(self, total: IntArray) -> None:
        values = total[self._indices]
        self._sum_ns = int(values.sum(dtype=np.int64))
        if self._size:
            # They are in order.
            p50, p90, p99 = (int(values[_rank(self._size, q)]) for q in (0.5, 0.9, 0.99))
            self._total = Latency(self._sum_ns / self._size, p50, p90, p99, int(values[-1]))
        else:
            self._total = Latency(0.0, 0, 0, 0, 0)
        self._median_slice = _slice_of(values[self._median])
        self._slowest_slice = _slice_of(values[self._slowest])

    def take_residual(self, residual: IntArray, total: IntArray) -> None:
        values = residual[self._indices]
        magnitudes = np.abs(values)
        sum_ns = self._sum_ns or 1
        self._residual = Residual(
            _mean(values),
            int(values.sum(dtype=np.int64)) / sum_ns,
            int(magnitudes.sum(dtype=np.int64)) / sum_ns,
            _mean(values[self._median]),
            _mean(values[self._slowest]),
        )
        own = 1 - magnitudes / np.maximum(total[self._indices], 1)
        self._attributed_median = max(0.0, float(np.median(own))) if self._size else 0.0

    def take_segment(self, i: int, column: IntArray, route_of: IntArray) -> None:
        values = column[self._indices]
        known = values[values >= 0]
        sum_ns = int(known.sum(dtype=np.int64))
        count = len(known)
        p50, p99 = _ranks(known, 0.5, 0.99) if count else (None, None)
        slow = values[self._slowest]
        slow_route, slow_share = None, 0.0
        if self.route is None and (slow_sum := int(np.maximum(slow, 0).sum(dtype=np.int64))):
            sums = np.bincount(route_of[self._indices[self._slowest]], weights=np.maximum(slow, 0))
            slow_route = int(sums.argmax())
            slow_share = float(sums[slow_route]) / slow_sum
        self._slow_routes.append(None if slow_route is None else (slow_route, slow_share))
        segment = SEGMENTS[i]
        self._segments.append(
            SegmentFigures(
                segment.name,
                segment.tier,
                count,
                sum_ns / count if count else None,
                p50,
                p99,
                sum_ns / (self._sum_ns or 1),
                _known_mean(values[self._median]),
                _known_mean(slow),
                1,
            )
        )

    def take_lens(self, name: str, values: IntArray, known: npt.NDArray[np.bool_]) -> None:
        indices = self._indices
        mask = known[indices]
        own = values[indices]
        self._lens_known = int(mask.sum())
        median, slowest = (own[part][mask[part]] for part in (self._median, self._slowest))
        self._lens.append(
            LensFigures(
                name,
                _mean(own[mask]),
                _mean(median) if len(median) else None,
                _mean(slowest) if len(slowest) else None,
            )
        )

    def build(self, route: str | None, marks: _Marks, operations: int, names: list[str]) -> Group:
        if self.route is not None:
            marks = [(mark, count) for mark, count in marks if mark.route == self.route]
        resolutions = _count(marks, lambda mark: mark.resolution_ns)
        resolution_ns = _common_resolution(resolutions)
        segments = []
        for figures, slow in zip(self._segments, self._slow_routes, strict=True):
            segments.append(
                SegmentFigures(
                    figures.name,
                    figures.tier,
                    figures.known,
                    figures.mean_ns,
                    figures.p50_ns,
                    figures.p99_ns,
                    figures.share,
                    figures.median_ns,
                    figures.slowest_ns,
                    resolution_of(figures.name, resolution_ns),
                    None if slow is None else names[slow[0]],
                    0.0 if slow is None else slow[1],
                )
            )
        missing = _count_each(marks, lambda mark: mark.missing)
        return Group(
            route=route,
            requests=self._size,
            total=self._total,
            median=self._median_slice,
            slowest=self._slowest_slice,
            attributed_share=max(0.0, 1 - self._residual.absolute_share) if self._size else 0.0,
            attributed_median=self._attributed_median,
            segments=tuple(segments),
            residual=self._residual,
            lens=Lens(self._lens_known, tuple(self._lens)),
            statuses=dict(
                sorted(_count(marks, lambda mark: mark.status).items(), key=lambda item: item[0] or 0)
            ),
            missing_stamps={stamp: missing[stamp] for stamp in STAMPS if stamp in missing},
            skewed=_in_order(_count_each(marks, lambda mark: mark.skewed)),
            clamped=_in_order(_count_each(marks, lambda mark: mark.clamped)),
            abandoned=_count(marks, lambda mark: mark.abandoned).get(True, 0),
            operations_mean=operations / self._size if self._size else 0.0,
            resolutions=dict(sorted(resolutions.items())),
        )


def _rank(size: int, share: float) -> int:
    """Return the position of the nearest rank, from 0."""
    return max(0, math.ceil(size * share) - 1)


def _ranks(values: IntArray, *shares: float) -> tuple[int, ...]:
    positions = [_rank(len(values), share) for share in shares]
    parted = np.partition(values, positions)
    return tuple(int(parted[position]) for position in positions)


def _mean(values: IntArray) -> float:
    return int(values.sum(dtype=np.int64)) / len(values) if len(values) else 0.0


def _known_mean(values: IntArray) -> float | None:
    """Return the mean over all of `values`, unknown ones as nothing; None when all are unknown."""
    known = values[values >= 0]
    return int(known.sum(dtype=np.int64)) / len(values) if len(known) else None


def _slice_of(values: IntArray) -> Slice:
    return Slice(len(values), _mean(values))


def resolution_of(segment: str, total_resolution_ns: int) -> int:
    """Return the resolution of a segment, ns, in a request whose coarsest stamp has `total_resolution_ns`."""
    if segment in _FROM_NGINX:
        return max(total_resolution_ns, 1_000)
    if segment == "nginx.upstream":
        return _MS
    return 1_000 if segment in _FROM_UWSGI else 1


def _count(marks: _Marks, key: Callable[[_Mark], Any]) -> dict[Any, int]:
    counts: Counter[Any] = Counter()
    for mark, count in marks:
        counts[key(mark)] += count
    return dict(counts)


def _count_each(marks: _Marks, keys: Callable[[_Mark], tuple[str, ...]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for mark, count in marks:
        for name in keys(mark):
            counts[name] += count
    return dict(counts)


def _common_resolution(resolutions: dict[int, int]) -> int:
    # nginx rounds the time of an upstream to 1 ms: a few failed attempts must not coarsen a whole report.
    requests = sum(resolutions.values())
    return max((ns for ns, count in resolutions.items() if count * 100 >= requests), default=1)


def _in_order(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: INDEX.get(item[0], len(INDEX))))
