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
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from reqpath.analyse.batch import ODD, measure_batch
from reqpath.analyse.columns import UNKNOWN, Column, FloatArray, IntArray, Names, order_stably, to_floats
from reqpath.analyse.figures import Breakdown, SlowRequest, WorkerFigures
from reqpath.analyse.group import GroupBuilder, Mark, count_marks
from reqpath.analyse.operations import OTHERS, OperationTable
from reqpath.path import RequestPath
from reqpath.record import WriterInfo
from reqpath.spool import SpoolLosses
from reqpath.stamps import AFTER_MILLISECONDS
from reqpath.tiers import SEGMENTS, WORKER_SEGMENTS

if TYPE_CHECKING:
    from reqpath.traces.counts import TraceCounts

#: Routes told apart; what comes later is added to one named "(others)": a client can send any method.
MAX_ROUTES: Final = 2_000
#: Paths taken together: enough that numpy's calls cost little, and so few that they stay in the cache.
BATCH: Final = 768
#: Marks that are known without being looked up in full; a client can send any method.
_MAX_SHORTCUTS: Final = 10_000
#: What a request takes of its worker before the application.
_AROUND: Final = frozenset({"uwsgi.read", "uwsgi.gil"})
_CALLS: Final = frozenset({"mysql.connect", "mysql.query", "mysql.commit", "uwsgi.send"})


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
        self._workers: dict[str, int] = {}
        self._worker_infos: list[WriterInfo] = []
        self._segments = [Column() for _ in SEGMENTS]
        self._total, self._residual = Column(), Column()
        self._cpu, self._run_queue = Column(), Column()
        self._mark, self._worker = Column(), Column()
        #: Each `Mark` as a plain tuple, numbered from 0.
        self._marks: dict[tuple[object, ...], int] = {}
        #: Route and number of the marks of usual requests, by what tells these apart.
        self._shortcuts: dict[tuple[object, ...], tuple[int, int]] = {}
        self._operations = OperationTable()
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

    def extend(self, paths: Iterable[RequestPath]) -> None:
        """Add requests."""
        paths = iter(paths)
        while batch := list(islice(paths, BATCH)):
            self._add(batch)

    def absorb(self, other: BreakdownBuilder) -> None:
        """Add all that another builder has; this takes time by its names and workers, not by its requests."""
        if not other._count:
            return
        offset = self._count
        routes = [self._routes.number(name) for name in other._routes.names]
        marks = [
            self._marks.setdefault((routes[mark.route], *mark[1:]), len(self._marks))
            for mark in map(Mark._make, other._marks)
        ]
        workers = [self._number_worker(info) for info in other._worker_infos]
        for column, its in (
            *zip(self._segments, other._segments, strict=True),
            (self._total, other._total),
            (self._residual, other._residual),
            (self._cpu, other._cpu),
            (self._run_queue, other._run_queue),
        ):
            column.extend(its)
        self._mark.extend(other._mark, np.array(marks, np.int32))
        # At the end, so that it stands for itself.
        self._worker.extend(other._worker, np.array([*workers, UNKNOWN], np.int32))
        self._operations.absorb(other._operations, offset, routes)
        self._rejected.update(other._rejected)
        self._dropped_operations += other._dropped_operations
        self._first_ns = min(self._first_ns, other._first_ns) if self._count else other._first_ns
        self._last_ns = max(self._last_ns, other._last_ns) if self._count else other._last_ns
        for total_ns, row, path in other._slowest:
            if total_ns > self._slowest_limit:
                self._keep_slow(total_ns, offset - row, path)
        self._count += other._count

    def _add(self, paths: list[RequestPath]) -> None:
        """Add some requests, so few that they can be held."""
        timings = measure_batch(paths)
        kinds = timings.kind.tolist()
        mark_to_run_queue = np.full((4, len(paths)), UNKNOWN, np.float64)
        usual = timings.usual
        try:
            if usual:
                mark_to_run_queue[:, usual] = self._take_usual(
                    [paths[at] for at in usual], [kinds[at] for at in usual]
                )
        except (TypeError, IndexError):
            # Statements that no worker writes.
            usual = []
        for at in set(range(len(paths))).difference(usual):
            mark_to_run_queue[:, at] = self._take(self._count + at, paths[at], kinds[at])
        self._operations.pack()
        for at in np.flatnonzero(timings.total_ns > self._slowest_limit).tolist():
            self._keep_slow(int(timings.total_ns[at]), self._count + at, paths[at])
        mark, worker, cpu, run_queue = mark_to_run_queue
        for column, values in (
            *zip(self._segments, np.fmax(timings.segments, UNKNOWN, out=timings.segments), strict=True),
            (self._total, timings.total_ns),
            (self._residual, timings.residual_ns),
            (self._mark, mark),
            (self._worker, worker),
            # A NaN is less than any number.
            (self._cpu, np.fmax(cpu, UNKNOWN)),
            (self._run_queue, np.fmax(run_queue, UNKNOWN)),
        ):
            column.add(values)
        self._first_ns = min(self._first_ns, timings.first_ns) if self._count else timings.first_ns
        self._last_ns = max(self._last_ns, timings.last_ns) if self._count else timings.last_ns
        self._count += len(paths)

    def _take_usual(self, paths: list[RequestPath], kinds: list[int]) -> FloatArray:
        """Take what is not time of requests whose heads are usual; return what `_take` does, a column each.

        Raises: TypeError, IndexError for statements that no worker writes.
        """
        # Each list is made by itself: there can be a million of these requests.
        heads: list[Any] = [path.head for path in paths]
        lines: list[Any] = [path.nginx for path in paths]
        keys = zip(
            # Their methods; what a status line says is not worked out for each.
            [head.environ[3] for head in heads],
            [head.route for head in heads],
            [head.status_line for head in heads],
            [head.transport for head in heads],
            # As `UsualRecord.nginx_resolution_ns` tells it.
            [head.environ[1][AFTER_MILLISECONDS] == "-" for head in heads],
            [line.status for line in lines],
            [line.resolution_ns for line in lines],
            kinds,
            strict=True,
        )
        find, learn = self._shortcuts.get, self._learn_shortcut
        routes, marks = zip(
            *[find(key) or learn(key, path) for key, path in zip(keys, paths, strict=True)], strict=True
        )
        self._operations.add_statements(routes, [head.statements for head in heads])
        infos = {id(path.info): path.info for path in paths}
        numbers = {key: self._number_worker(info) for key, info in infos.items()}
        begin_ns, end_ns = (
            to_floats([head.cpu_start_ns for head in heads]),
            to_floats([head.cpu_end_ns for head in heads]),
        )
        return np.array(
            [
                to_floats(marks),
                to_floats([numbers[id(path.info)] for path in paths]),
                end_ns - begin_ns,
                to_floats([head.run_queue_ns for head in heads]),
            ]
        )

    def _take(self, row: int, path: RequestPath, kind: int) -> tuple[int, int, float, float]:
        """Take what is not time of one request; return its mark, worker, CPU time and run queue."""
        worker, line = path.worker, path.nginx
        if kind == ODD or worker is None or line is None:
            route, mark = self._mark_path(path)
        else:
            key = (
                *(worker.method, worker.route, worker.status, worker.transport, worker.nginx_resolution_ns),
                *(line.status, line.resolution_ns, kind),
            )
            route, mark = self._shortcuts.get(key) or self._learn_shortcut(key, path)
        number = self._number_worker(path.info)
        if worker is None:
            return mark, number, UNKNOWN, UNKNOWN
        if worker.operations:
            self._operations.add(row, route, worker.operations)
        self._rejected.update(worker.rejected_stamps)
        self._dropped_operations += worker.dropped_operations
        cpu_ns, run_queue_ns = worker.cpu_ns, worker.run_queue_ns
        return (
            mark,
            number,
            UNKNOWN if cpu_ns is None else cpu_ns,
            UNKNOWN if run_queue_ns is None else run_queue_ns,
        )

    def _learn_shortcut(self, key: tuple[object, ...], path: RequestPath) -> tuple[int, int]:
        if len(self._shortcuts) >= _MAX_SHORTCUTS:
            self._shortcuts.clear()
        found = self._shortcuts[key] = self._mark_path(path)
        return found

    def _mark_path(self, path: RequestPath) -> tuple[int, int]:
        """Return the numbers of a request's route and mark."""
        timing = path.timing
        worker = path.worker
        route = self._routes.number(path.route)
        mark = (
            route,
            path.status,
            None if worker is None else worker.transport,
            timing.resolution_ns,
            worker is not None,
            path.nginx is not None,
            not path.retried,
            timing.clamped,
            timing.skewed,
            timing.missing,
            timing.abandoned,
        )
        return route, self._marks.setdefault(mark, len(self._marks))

    def build(self, losses: SpoolLosses | None = None, traces: TraceCounts | None = None) -> Breakdown:
        """Build the breakdown of what was added so far, of a spool with `losses` or of `traces`."""
        total = self._total.read()
        mark_of = self._mark.read()
        counts = np.bincount(mark_of, minlength=len(self._marks)).tolist()
        all_marks = [Mark._make(mark) for mark in self._marks]
        # Some may be of an interrupted batch alone.
        marks = [(mark, count) for mark, count in zip(all_marks, counts, strict=True) if count]
        # So narrow that numpy sorts it by radix.
        route_of = np.array([mark.route for mark in all_marks], np.int16)[mark_of]
        del mark_of
        # Each column is put in the order of routes, so that a route is a slice of it.
        by_route = np.argsort(route_of, kind="stable")
        place_of = np.empty_like(by_route)
        place_of[by_route] = np.arange(self._count)
        route_of = route_of[by_route]
        by_total = place_of[order_stably(total)]
        by_route_and_total = by_total[np.argsort(route_of[by_total], kind="stable")]
        total = total[by_route]
        bounds = np.cumsum(np.bincount(route_of, minlength=len(self._routes.names)))
        groups = [GroupBuilder(None, slice(None), by_total)]
        start = 0
        for route, end in enumerate(bounds.tolist()):
            if end > start:
                groups.append(GroupBuilder(route, slice(start, end), by_route_and_total[start:end]))
            start = end
        del by_total, by_route_and_total

        for group in groups:
            group.take_total(total)
        residual = self._residual.read()[by_route]
        for group in groups:
            group.take_residual(residual, total)
        del residual, total
        around, wall, calls = (np.zeros(self._count, np.int64) for _ in range(3))
        for i, segment in enumerate(SEGMENTS):
            column = self._segments[i].read()[by_route]
            for group in groups:
                group.take_segment(i, column, route_of)
            known = np.maximum(column, 0, out=column)
            if segment.name in _AROUND:
                around += known
            elif segment.name in WORKER_SEGMENTS:
                wall += known
            if segment.name in _CALLS:
                calls += known
        for row, tls_ns in self._operations.tls_contexts.items():
            # Ctrl-C may have kept a request from being added in full.
            if row < self._count:
                calls[place_of[row]] -= tls_ns
        cpu, run_queue = self._cpu.read()[by_route], self._run_queue.read()[by_route]
        measured = (cpu >= 0) & (run_queue >= 0)
        lens_known = None if measured.all() else measured
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
        sides = count_marks(marks, lambda mark: (mark.has_worker, mark.has_line))
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
            workers=self._build_workers(self._worker.read()[by_route], around + wall),
            hop_transports=count_marks(
                [(mark, count) for mark, count in marks if mark.has_worker], lambda mark: mark.transport
            ),
            database_transports=self._operations.transports(),
            statements=self._operations.build(),
            slowest=self._build_slowest(),
            joined=sides.get((True, True), 0),
            worker_only=sides.get((True, False), 0),
            nginx_only=sides.get((False, True), 0),
            retried=count_marks(marks, lambda mark: mark.first_attempt).get(False, 0),
            rejected_stamps=dict(sorted(self._rejected.items())),
            dropped_operations=self._dropped_operations,
            losses=losses or SpoolLosses(),
            traces=traces,
        )

    def _number_worker(self, info: WriterInfo | None) -> int:
        if info is None:
            return UNKNOWN
        number = self._workers.get(info.writer_id)
        if number is None:
            self._worker_infos.append(info)
            number = self._workers[info.writer_id] = len(self._workers)
        return number

    def _keep_slow(self, total_ns: int, row: int, path: RequestPath) -> None:
        # The row breaks ties, so that paths are never compared; the earlier request stays.
        heapq.heappush(self._slowest, (total_ns, -row, path))
        if len(self._slowest) > self._slowest_count:
            heapq.heappop(self._slowest)
        if len(self._slowest) == self._slowest_count:
            self._slowest_limit = self._slowest[0][0]

    def _build_workers(self, numbers: IntArray, busy: npt.NDArray[np.int64]) -> tuple[WorkerFigures, ...]:
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
            longest, longest_ns = timing.longest
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
