"""Compare two sets of requests: what differs between them, and in which segment.

The layers below are `tiers`, one request's split, and `slices`, how far a mean can be trusted; the ones above
are `render.compare` and `render.page_compare`::

    first, second = SideBuilder("before"), SideBuilder("after")
    first.extend(paths_before), second.extend(paths_after)
    build_comparison(first, second).total.difference    →  Estimate(value_ns=1_800_000.0, low_ns=…, …)

*Means add up*: a segment's is over all requests of a side, and what is unknown of some is in their residual;
so segments and residual are the total, in whole nanoseconds, on each side and in the difference.

*Like with like*: times are taken between stamps that nearly all requests of both sides have, and a segment
that one side does not know is in the residual of both.

*Mix of routes*: a side with more of a slow route is slower without any route being so. The difference is
split into what the routes' shares and what the routes' means bring, each at the other's average of both
sides. Source: Kitagawa, "Components of a Difference Between Two Rates", 1955.
"""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import UNKNOWN, FloatArray, Names
from reqpath.analyse.differences import (
    Changed,
    Comparison,
    End,
    Outcome,
    Part,
    RouteDifference,
    RoutePart,
    Side,
    SliceMean,
    Start,
    Unknown,
)
from reqpath.analyse.estimate import ALPHA, Estimate, adjust_holm
from reqpath.analyse.figures import Latency, common_resolution, resolution_of
from reqpath.analyse.operations import OTHERS
from reqpath.analyse.slices import (
    LEAST_EFFECTIVE,
    LEAST_REQUESTS,
    Slices,
    count_effective,
    cut_slices,
    estimate,
)
from reqpath.path import RequestPath
from reqpath.record import WriterInfo
from reqpath.tiers import INDEX, NAMES, SEGMENTS, STAMPS, WORKER_SEGMENTS

#: Routes told apart; what comes later is added to one named "(others)": a client can send any method.
MAX_ROUTES: Final = 2_000
#: Routes whose segments are compared too.
MAX_SPLIT_ROUTES: Final = 40
#: A stamp, or a segment, that more of the requests of a side lack is not compared.
_FEW: Final = 0.01
#: Rates that are further apart load the servers otherwise.
_RATES_APART: Final = 0.2
#: Shares of errors that are further apart change what the mean is of.
_ERRORS_APART: Final = 0.001
#: And that are no chance.
_STANDARD_ERRORS: Final = 3
#: Of the kinds that a fact can have, before they are only counted.
_NAMED: Final = 3
_MAX_WRITERS: Final = 10_000
#: Of `accept`; what the worker has itself is finer.
_UWSGI_RESOLUTION_NS: Final = 1_000
_CHUNK: Final = 2_048
#: Times beyond a day, and instants beyond the year 2116, come from a broken record.
_LIMIT_NS: Final = 86_400_000_000_000
_LAST_NS: Final = 1 << 62
#: nginx alone knows of these, and a request without its line has not lost them.
_OF_NGINX: Final = frozenset({"nginx.local", "nginx.upstream"})
#: Bounded by stamps: with a worker's record and without a value, it is a stamp that is not there.
_BOUNDED: Final = ("nginx.receive", "queue", "uwsgi.read", "uwsgi.gil", "uwsgi.send", "nginx.send")
#: Where the times begin → what then lies outside of them.
_BEFORE: Final[dict[Start, tuple[str, ...]]] = {
    "nginx_start": (),
    "accept": ("nginx.receive", "nginx.local", "nginx.upstream", "queue"),
    "app_start": ("nginx.receive", "nginx.local", "nginx.upstream", "queue", "uwsgi.read", "uwsgi.gil"),
}
_AFTER: Final[dict[End, tuple[str, ...]]] = {"nginx_end": (), "closed": ("nginx.send",)}

_Integers = npt.NDArray[np.int64]


class _Mark(NamedTuple):
    """What many requests have in common."""

    missing: tuple[str, ...]
    skewed: bool
    has_worker: bool
    resolution_ns: int
    is_error: bool
    transport: str | None


class SideBuilder:
    """Takes the requests of one side."""

    def __init__(self, title: str, *, traces: bool = False) -> None:
        """`title` says what is read; `traces` that it is what a collector kept."""
        self.title = title
        self.traces = traces
        #: Requests with times that none takes.
        self.broken = 0
        #: Of all, the broken ones too.
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.routes = Names(MAX_ROUTES, OTHERS)
        self._start, self._total = array("q"), array("q")
        self._route, self._mark = array("i"), array("i")
        self._marks: dict[_Mark, int] = {}
        self._rows: list[tuple[int | None, ...]] = []
        self._chunks: list[npt.NDArray[np.signedinteger[Any]]] = []
        self._operations: Counter[str | None] = Counter()
        self._writers: dict[str, WriterInfo] = {}

    @property
    def requests(self) -> int:
        """How many were taken."""
        return len(self._start)

    def extend(self, paths: Iterable[RequestPath]) -> None:
        """Take requests."""
        for path in paths:
            self.add(path)

    def add(self, path: RequestPath) -> None:
        """Take one request."""
        timing, worker, info = path.timing, path.worker, path.info
        start_ns, total_ns = timing.start_ns, timing.total_ns
        if not (0 <= start_ns <= _LAST_NS and total_ns <= _LIMIT_NS and timing.residual_ns >= -_LIMIT_NS):
            self.broken += 1
            return
        self.first_ns = start_ns if self.first_ns is None else min(self.first_ns, start_ns)
        self.last_ns = max(self.last_ns or 0, start_ns + total_ns)
        status = path.status
        mark = _Mark(
            timing.missing,
            bool(timing.skewed),
            worker is not None,
            timing.resolution_ns,
            status is not None and status >= 500,
            None if worker is None else worker.transport,
        )
        self._start.append(start_ns)
        self._total.append(total_ns)
        self._route.append(self.routes.number(path.route))
        self._mark.append(self._marks.setdefault(mark, len(self._marks)))
        self._rows.append(timing.segments)
        if worker is not None:
            for operation in worker.operations:
                self._operations[operation.transport] += 1
        if info is not None and len(self._writers) < _MAX_WRITERS:
            self._writers[info.writer_id] = info
        if len(self._rows) >= _CHUNK:
            self._pack()

    def count_marks(self) -> list[tuple[_Mark, int]]:
        """Return what requests have in common, each with how many they are."""
        counts = np.bincount(np.array(self._mark, np.int64), minlength=len(self._marks)).tolist()
        return list(zip(self._marks, counts, strict=True))

    def read(self, keep: Callable[[_Mark], bool]) -> _Columns:
        """Return the requests whose marks are to be kept."""
        self._pack()
        mark = np.array(self._mark, np.int64)
        kept = np.array([keep(each) for each in self._marks], bool)[mark] if len(mark) else np.zeros(0, bool)
        table = (
            np.concatenate(self._chunks)[kept].T if self._chunks else np.zeros((len(SEGMENTS), 0), np.int32)
        )
        marks = np.bincount(mark[kept], minlength=len(self._marks)).tolist()
        return _Columns(
            np.array(self._start, np.int64)[kept],
            np.array(self._total, np.int64)[kept],
            np.array(self._route, np.int64)[kept],
            table,
            np.array([each.has_worker for each in self._marks], bool)[mark[kept]]
            if len(mark)
            else np.zeros(0, bool),
            [(each, count) for each, count in zip(self._marks, marks, strict=True) if count],
        )

    def describe(self) -> dict[str, str]:
        """Return what is known of the set-up, as text."""
        hops: Counter[str | None] = Counter()
        for mark, count in self.count_marks():
            if count:
                hops[mark.transport] += count
        infos = list(self._writers.values())
        workers = {
            f"{_count(info.processes or 1, 'process', 'es')} of {_count(info.threads or 1, 'thread', 's')}"
            if info.concurrency != "greenlets"
            else f"{_count(info.processes or 1, 'process', 'es')} with greenlets"
            for info in infos
        }
        return {
            what: _name_kinds(values)
            for what, values in (
                ("nginx to uWSGI", {each for each in hops if each}),
                ("app to MySQL", {each for each in self._operations if each}),
                ("workers", workers),
                ("host", {info.host for info in infos}),
                ("service", {info.service_name for info in infos}),
                ("reqpath", {info.reqpath_version for info in infos}),
            )
            if values
        }

    def _pack(self) -> None:
        """Put the segments into a chunk of the narrowest type."""
        if self._rows:
            # As a float None is NaN, which fmax takes for less than any number.
            table = np.fmax(np.array(self._rows, np.float64), UNKNOWN)
            self._chunks.append(table.astype(np.int32 if table.max() < 1 << 31 else np.int64))
            self._rows.clear()


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some requests of a side; a segment's row has `UNKNOWN` where it is."""

    start: _Integers
    total: _Integers
    route: _Integers
    segments: npt.NDArray[np.signedinteger[Any]]
    has_worker: npt.NDArray[np.bool_]
    marks: list[tuple[_Mark, int]]


@dataclass(frozen=True, slots=True)
class _Table:
    """Sums of a side by slice and route; only slices that have requests."""

    #: [slice, route]
    requests: _Integers
    #: [part, slice, route]; the last part is the total, the one before the residual.
    sums: _Integers
    effective: int

    def without_each(self) -> tuple[FloatArray, FloatArray]:
        """Return requests and sums by route, without each slice in turn."""
        return (
            (self.requests.sum(axis=0) - self.requests).astype(np.float64),
            (self.sums.sum(axis=1, keepdims=True) - self.sums).astype(np.float64),
        )


def build_comparison(first: SideBuilder, second: SideBuilder) -> Comparison:
    """Compare what the two sides have taken."""
    builders = (first, second)
    start, end = _choose_extent(builders)
    columns = [builder.read(functools.partial(_fits, start=start, end=end)) for builder in builders]
    outside = (*_BEFORE[start], *_AFTER[end])
    totals = [_cut_total(each, start, outside) for each in columns]
    unknown = _find_unknown(builders, columns, outside)
    hidden = {each.name for each in unknown}
    names = [
        segment.name
        for segment in SEGMENTS
        if segment.name not in hidden
        and segment.name not in outside
        and any((each.segments[INDEX[segment.name]] > 0).any() for each in columns)
    ]
    routes = sorted({*first.routes.names, *second.routes.names})
    number_of = {route: number for number, route in enumerate(routes)}
    slices = [cut_slices(each.start, total) for each, total in zip(columns, totals, strict=True)]
    tables = []
    for builder, each, total, cut in zip(builders, columns, totals, slices, strict=True):
        places = np.array([number_of[route] for route in builder.routes.names], np.int64)
        route_of = places[each.route] if len(each.route) else each.route
        tables.append(_sum_up(each, names, total, route_of, routes=len(routes), cut=cut))
    sides = [
        _build_side(builder, each, total, cut, by_nginx=start == "nginx_start" or end == "nginx_end")
        for builder, each, total, cut in zip(builders, columns, totals, slices, strict=True)
    ]
    whole, parts, floor_ns = _build_parts(names, tables, sides)
    outcome, reason = _judge(whole, sides)
    return Comparison(
        first=sides[0],
        second=sides[1],
        start=start,
        end=end,
        outcome=outcome,
        reason=reason,
        total=replace(whole, differs=outcome == "different"),
        parts=parts,
        routes=_build_routes(routes, [*names, "residual"], tables, floor_ns),
        unknown=unknown,
        changed=_list_changes(builders, sides),
    )


def _choose_extent(builders: Sequence[SideBuilder]) -> tuple[Start, End]:
    """Return from which stamp to which the times of nearly all requests of both sides can be taken."""
    marks = [builder.count_marks() for builder in builders]

    def nearly_all(fits: Callable[[_Mark], bool]) -> bool:
        return all(
            sum(count for mark, count in side if fits(mark)) >= (1 - _FEW) * sum(count for _, count in side)
            for side in marks
        )

    starts: tuple[Start, ...] = ("nginx_start", "accept")
    fitting = (each for each in starts if nearly_all(functools.partial(_fits_start, start=each)))
    start: Start = next(fitting, "app_start")
    end: End = "nginx_end" if nearly_all(functools.partial(_fits_end, end="nginx_end")) else "closed"
    return start, end


def _fits(mark: _Mark, start: Start, end: End) -> bool:
    return _fits_start(mark, start) and _fits_end(mark, end)


def _fits_start(mark: _Mark, start: Start) -> bool:
    missing = mark.missing
    if start == "nginx_start":
        return "nginx_start" not in missing
    if start == "app_start":
        return mark.has_worker
    # What is before the accept can be taken off the total when it is known, or was never in it.
    known = "nginx_pass" not in missing or "nginx_start" in missing
    return mark.has_worker and "accept" not in missing and known and not mark.skewed


def _fits_end(mark: _Mark, end: End) -> bool:
    missing = mark.missing
    if end == "nginx_end":
        return "nginx_end" not in missing
    return mark.has_worker and ("closed" not in missing or "nginx_end" in missing) and not mark.skewed


def _cut_total(columns: _Columns, start: Start, outside: Iterable[str]) -> _Integers:
    """Return the time of each request, ns, without what lies outside of what is compared."""
    if start == "app_start":
        inside = [name for name in (*WORKER_SEGMENTS, "nginx.send") if name not in outside]
        return _add_up(columns, inside)
    return columns.total - _add_up(columns, outside)


def _add_up(columns: _Columns, names: Iterable[str]) -> _Integers:
    total = np.zeros(len(columns.total), np.int64)
    for name in names:
        total += np.maximum(columns.segments[INDEX[name]], 0)
    return total


def _find_unknown(
    builders: Sequence[SideBuilder], columns: Sequence[_Columns], outside: Sequence[str]
) -> tuple[Unknown, ...]:
    """Return the segments that too many requests of a side don't have, or that lie outside."""
    missing = {
        stamp
        for builder in builders
        for stamp, count in _count_missing(builder).items()
        if count > _FEW * builder.requests
    }
    found = []
    for i, name in enumerate(NAMES):
        rows = [each.segments[i] for each in columns]
        has_time = any((row > 0).any() for row in rows)
        counts = [
            0 if name in _OF_NGINX else int(np.count_nonzero((row == UNKNOWN) & each.has_worker))
            for row, each in zip(rows, columns, strict=True)
        ]
        lacking = any(count > _FEW * len(row) for count, row in zip(counts, rows, strict=True))
        is_outside = name in outside
        if (lacking and (has_time or name in _BOUNDED)) or (is_outside and has_time):
            stamps = tuple(each for each in STAMPS if each in missing and name in STAMPS[each][0])
            found.append(Unknown(name, counts[0], counts[1], stamps, is_outside))
    return tuple(found)


def _count_missing(builder: SideBuilder) -> Counter[str]:
    """Return stamp → requests without it."""
    missing: Counter[str] = Counter()
    for mark, count in builder.count_marks():
        missing.update(dict.fromkeys(mark.missing, count))
    return +missing


def _sum_up(
    columns: _Columns,
    names: Sequence[str],
    total: _Integers,
    route_of: _Integers,
    *,
    routes: int,
    cut: Slices,
) -> _Table:
    place = cut.slice_of * routes + route_of
    shape = (cut.count, routes)

    def add_up(values: npt.NDArray[np.signedinteger[Any]] | int) -> _Integers:
        sums = np.zeros(cut.count * routes, np.int64)
        np.add.at(sums, place, values)
        return sums.reshape(shape)

    requests = add_up(1)
    segments = [add_up(np.maximum(columns.segments[INDEX[name]], 0)) for name in names]
    whole = add_up(total)
    residual = whole - sum(segments, np.zeros(shape, np.int64))
    filled = requests.sum(axis=1) > 0
    return _Table(requests[filled], np.stack([*segments, residual, whole])[:, filled], cut.effective)


def _build_side(
    builder: SideBuilder, columns: _Columns, total: _Integers, cut: Slices, *, by_nginx: bool
) -> Side:
    """Build the figures of a side; `by_nginx` tells that nginx's stamps bound its times."""
    requests = len(total)
    resolutions: Counter[int] = Counter()
    errors = 0
    for mark, count in columns.marks:
        resolutions[mark.resolution_ns if by_nginx else _UWSGI_RESOLUTION_NS] += count
        errors += mark.is_error * count
    missing = _count_missing(builder)
    # Of the nearest rank, as of all reports.
    p50, p90, p99 = np.quantile(total, (0.5, 0.9, 0.99), method="inverted_cdf") if requests else (0, 0, 0)
    counts = np.bincount(cut.slice_of, minlength=cut.count)
    sums = np.zeros(cut.count, np.int64)
    np.add.at(sums, cut.slice_of, total)
    return Side(
        title=builder.title,
        requests=requests,
        left_out=builder.requests - requests,
        broken=builder.broken,
        first_ns=int(columns.start.min()) if requests else None,
        last_ns=int((columns.start + columns.total).max()) if requests else None,
        errors=errors,
        total_ns=int(total.sum()),
        latency=Latency(
            int(total.sum()) / requests if requests else 0.0,
            int(p50),
            int(p90),
            int(p99),
            int(total.max()) if requests else 0,
        ),
        resolution_ns=common_resolution(resolutions),
        slices=tuple(
            SliceMean(cut.first_ns + i * cut.width_ns, count, int(sums[i]))
            for i, count in enumerate(counts.tolist())
            if count
        ),
        slices_cut=cut.cut,
        slices_effective=cut.effective,
        missing_stamps={stamp: missing[stamp] for stamp in STAMPS if stamp in missing},
        traces=builder.traces,
    )


def _split(
    first_requests: FloatArray, first_sums: FloatArray, second_requests: FloatArray, second_sums: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the difference of each part, and of that what is within routes and what is their mix.

    Requests are [(slice,) route], sums [part, (slice,) route]. A route that one side does not have differs in
    its share alone.
    """
    first_all, second_all = (each.sum(axis=-1) for each in (first_requests, second_requests))
    first_shares, second_shares = (
        first_requests / first_all[..., None],
        second_requests / second_all[..., None],
    )
    with np.errstate(invalid="ignore"):
        first, second = first_sums / first_requests, second_sums / second_requests
    first, second = np.where(first_requests > 0, first, second), np.where(second_requests > 0, second, first)
    # In a slice's absence a route can be gone from both.
    first, second = np.nan_to_num(first), np.nan_to_num(second)
    difference = second_sums.sum(axis=-1) / second_all - first_sums.sum(axis=-1) / first_all
    within = ((first_shares + second_shares) / 2 * (second - first)).sum(axis=-1)
    mix = ((second_shares - first_shares) * (first + second) / 2).sum(axis=-1)
    return difference, within, mix


def _build_parts(
    names: Sequence[str], tables: Sequence[_Table], sides: Sequence[Side]
) -> tuple[Part, tuple[Part, ...], int]:
    """Return the total, the parts, and what unlike stamps can make of the total's difference."""
    coarse_ns = max(side.resolution_ns for side in sides)
    unlike = sides[0].resolution_ns != sides[1].resolution_ns and all(side.requests for side in sides)
    tiers = {segment.name: segment.tier for segment in SEGMENTS} | {"residual": "residual", "total": "total"}
    effective = min(table.effective for table in tables)
    sums = [table.sums.sum(axis=(1, 2)).tolist() for table in tables]
    estimates = _estimate_split(tables, effective)
    parts = []
    for i, name in enumerate([*names, "residual", "total"]):
        whole = name in ("residual", "total")
        resolution_ns = coarse_ns if whole else resolution_of(name, coarse_ns)
        floor_ns = coarse_ns if unlike and (whole or resolution_ns == coarse_ns) else 0
        difference, within, mix = (each[i] for each in estimates)
        parts.append(
            Part(
                name=name,
                tier=tiers[name],
                first_sum_ns=sums[0][i],
                second_sum_ns=sums[1][i],
                first_ns=sums[0][i] / sides[0].requests if sides[0].requests else 0.0,
                second_ns=sums[1][i] / sides[1].requests if sides[1].requests else 0.0,
                difference=difference,
                within=within,
                mix=mix,
                resolution_ns=resolution_ns,
                floor_ns=floor_ns,
                differs=False,
            )
        )
    total = parts.pop()
    differ = _decide([part.difference for part in parts], [part.floor_ns for part in parts])
    decided = tuple(replace(part, differs=each) for part, each in zip(parts, differ, strict=True))
    return total, decided, total.floor_ns


def _estimate_split(tables: Sequence[_Table], effective: int) -> tuple[list[Estimate], ...]:
    """Return the estimates of difference, within and mix for each part."""
    wholes = [
        (table.requests.sum(axis=0).astype(np.float64), table.sums.sum(axis=1).astype(np.float64))
        for table in tables
    ]
    if not all(requests.sum() for requests, _ in wholes):
        nothing = Estimate(0, 0.0, None, None, None, None)
        return tuple([nothing] * len(tables[0].sums) for _ in range(3))
    values = _split(*wholes[0], *wholes[1])
    if effective < LEAST_EFFECTIVE:
        return tuple(
            [Estimate(effective, float(ns), None, None, None, None) for ns in each] for each in values
        )
    without = [table.without_each() for table in tables]
    (first_requests, first_sums), (second_requests, second_sums) = wholes
    of_first = _split(*without[0], second_requests, second_sums[:, None, :])
    of_second = _split(first_requests, first_sums[:, None, :], *without[1])
    return tuple(
        [
            estimate(float(ns), one, other, effective)
            for ns, one, other in zip(value, first, second, strict=True)
        ]
        for value, first, second in zip(values, of_first, of_second, strict=True)
    )


def _decide(estimates: Sequence[Estimate | None], floors_ns: Sequence[int]) -> list[bool]:
    """Tell which differences are none of chance, nor of stamps that are unlike."""
    known = [i for i, each in enumerate(estimates) if each is not None and each.p is not None]
    adjusted = dict(zip(known, adjust_holm([_p(estimates[i]) for i in known]), strict=True))
    return [
        adjusted.get(i, 1.0) < ALPHA and _is_beyond(each, floor_ns)
        for i, (each, floor_ns) in enumerate(zip(estimates, floors_ns, strict=True))
    ]


def _p(difference: Estimate | None) -> float:
    return 1.0 if difference is None or difference.p is None else difference.p


def _is_beyond(difference: Estimate | None, floor_ns: int) -> bool:
    """Tell whether the whole interval is on one side of 0, and further from it than `floor_ns`."""
    if difference is None or difference.low_ns is None or difference.high_ns is None:
        return False
    return difference.low_ns > floor_ns or difference.high_ns < -floor_ns


def _judge(total: Part, sides: Sequence[Side]) -> tuple[Outcome, str]:
    if total.difference.p is not None:
        return ("different" if _is_beyond(total.difference, total.floor_ns) else "none"), ""
    for name, side in zip("AB", sides, strict=True):
        if side.requests < LEAST_REQUESTS:
            return (
                "undecided",
                f"{name} has {_count(side.requests, 'request', 's')} to compare, and at least "
                f"{LEAST_REQUESTS} are needed",
            )
    for name, side in zip("AB", sides, strict=True):
        if side.slices_effective < LEAST_EFFECTIVE:
            return (
                "undecided",
                f"the requests of {name} lie in too little of its time: its {side.slices_cut} slices are "
                f"worth {side.slices_effective} full ones, and at least {LEAST_EFFECTIVE} are needed",
            )
    return "undecided", "there is no interval"


def _build_routes(
    routes: Sequence[str], names: Sequence[str], tables: Sequence[_Table], floor_ns: int
) -> tuple[RouteDifference, ...]:
    """Return the routes of both sides; `names` are those of the parts, without the total."""
    counts = [table.requests.sum(axis=0) for table in tables]
    sums = [table.sums[-1].sum(axis=0) for table in tables]
    if not all(each.sum() for each in counts):
        return ()
    shares = [each / each.sum() for each in counts]
    centre_ns = sum(float(each.sum() / count.sum()) for each, count in zip(sums, counts, strict=True)) / 2
    found = []
    for number, route in enumerate(routes):
        first, second = (int(each[number]) for each in counts)
        if not first and not second:
            continue
        means = [
            int(each[number]) / count if count else None
            for each, count in zip(sums, (first, second), strict=True)
        ]
        first_ns = means[1] if means[0] is None else means[0]
        second_ns = means[0] if means[1] is None else means[1]
        assert first_ns is not None
        assert second_ns is not None
        low, high = (float(each[number]) for each in shares)
        found.append(
            (
                number,
                RouteDifference(
                    route=route,
                    first_requests=first,
                    second_requests=second,
                    first_sum_ns=int(sums[0][number]),
                    second_sum_ns=int(sums[1][number]),
                    difference=_estimate_route(tables, number, -1) if first and second else None,
                    within_ns=(low + high) / 2 * (second_ns - first_ns),
                    mix_ns=(high - low) * ((first_ns + second_ns) / 2 - centre_ns),
                    differs=False,
                    parts=(),
                ),
            )
        )
    found.sort(key=lambda entry: (-abs(entry[1].within_ns) - abs(entry[1].mix_ns), entry[1].route))
    differ = _decide([each.difference for _, each in found], [floor_ns] * len(found))
    return tuple(
        replace(
            each,
            differs=told,
            parts=_build_route_parts(names, tables, number, floor_ns)
            if rank < MAX_SPLIT_ROUTES and each.difference is not None
            else (),
        )
        for rank, ((number, each), told) in enumerate(zip(found, differ, strict=True))
    )


def _build_route_parts(
    names: Sequence[str], tables: Sequence[_Table], number: int, floor_ns: int
) -> tuple[RoutePart, ...]:
    tiers = {segment.name: segment.tier for segment in SEGMENTS} | {"residual": "residual"}
    counts = [int(table.requests[:, number].sum()) for table in tables]
    parts = []
    for i, name in enumerate(names):
        sums = [int(table.sums[i, :, number].sum()) for table in tables]
        if not any(sums) and name != "residual":
            continue
        parts.append(
            RoutePart(
                name,
                tiers[name],
                sums[0] / counts[0],
                sums[1] / counts[1],
                _estimate_route(tables, number, i),
                differs=False,
            )
        )
    floors_ns = [
        floor_ns if part.name == "residual" or resolution_of(part.name, floor_ns) == floor_ns else 0
        for part in parts
    ]
    differ = _decide([part.difference for part in parts], floors_ns)
    return tuple(replace(part, differs=each) for part, each in zip(parts, differ, strict=True))


def _estimate_route(tables: Sequence[_Table], number: int, part: int) -> Estimate:
    """Return the difference of a part's means within one route, which both sides have."""
    means, without, effective, fewest = [], [], [], []
    for table in tables:
        requests, sums = table.requests[:, number], table.sums[part, :, number]
        means.append(int(sums.sum()) / int(requests.sum()))
        effective.append(count_effective(requests))
        fewest.append(int(requests.sum()))
        with np.errstate(invalid="ignore", divide="ignore"):
            without.append((sums.sum() - sums) / (requests.sum() - requests))
    worth = min(effective) if min(fewest) >= LEAST_REQUESTS else 0
    return estimate(
        means[1] - means[0],
        means[1] - without[0],
        without[1] - means[0],
        worth,
    )


def _list_changes(builders: Sequence[SideBuilder], sides: Sequence[Side]) -> tuple[Changed, ...]:
    """Return what else differs, which the difference can be due to."""
    facts = [builder.describe() for builder in builders]
    found = [
        Changed(what, facts[0][what], facts[1][what], "the difference can be due to this")
        for what in facts[0]
        if what in facts[1] and facts[0][what] != facts[1][what]
    ]
    rates = [side.rate_per_s for side in sides]
    if rates[0] and rates[1] and abs(rates[1] / rates[0] - 1) > _RATES_APART:
        found.append(
            Changed(
                "requests a second",
                _format_rate(rates[0]),
                _format_rate(rates[1]),
                "waits for workers, the GIL and the database grow with the load",
            )
        )
    requests = [side.requests for side in sides]
    errors = [side.errors / max(side.requests, 1) for side in sides]
    share = sum(side.errors for side in sides) / max(sum(requests), 1)
    chance = (share * (1 - share) * sum(1 / max(count, 1) for count in requests)) ** 0.5
    if abs(errors[1] - errors[0]) > max(_ERRORS_APART, _STANDARD_ERRORS * chance):
        found.append(
            Changed(
                "errors",
                f"{errors[0] * 100:.1f} %",
                f"{errors[1] * 100:.1f} %",
                "requests that fail do other work than those that don't, and are in the means",
            )
        )
    goods = [_name_resolution(side.resolution_ns) for side in sides]
    if goods[0] != goods[1] and all(side.requests for side in sides):
        found.append(
            Changed(
                "nginx's stamps are good to",
                goods[0],
                goods[1],
                "up to 1 ms of a difference in nginx.*, queue or the total can come from that: "
                "no less is told",
            )
        )
    return tuple(found)


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _name_resolution(ns: int) -> str:
    return "1 ms" if ns >= 1_000_000 else "1 µs"


def _name_kinds(values: Iterable[str]) -> str:
    names = sorted(values)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _count(count: int, noun: str, plural: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"
