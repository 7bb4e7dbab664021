"""Sums of many requests by when they started, how long they took and what they have in common.

A page that shows some of the requests can't hold each of them. It holds a *grid* of time by latency, and for
each *cell* of it the exact sums of its requests; and for each *pair* of a cell and a route, a status, a
statement the same. Whatever is selected by whole cells adds up exactly from these; only percentiles within a
selection are known no finer than a cell is high::

    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(paths))
    builder.build(breakdown).cells.requests
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import UNKNOWN, Names
from reqpath.analyse.figures import Breakdown
from reqpath.analyse.operations import OTHERS
from reqpath.path import RequestPath
from reqpath.record import operation_time_ns
from reqpath.tiers import SEGMENTS, TIERS

#: Bounds of the grid: more columns than a screen can tell apart only make the page large.
MAX_COLUMNS: Final = 80
MAX_ROWS: Final = 36
#: Values of an attribute that are told apart; the rest, which has the least time, is one.
MAX_VALUES: Final = 40
#: Requests that are kept whole, so that of each part of the grid the slowest can be looked at.
MAX_SAMPLES: Final = 200
_MAX_CANDIDATES: Final = 2_048
_SLOWEST: Final = 20
#: Percentiles of the total between which means are taken.
SLICES: Final = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
_WIDTHS_NS: Final = (
    *(base * 10**decade for decade in range(6, 10) for base in (1, 2, 5)),
    *(seconds * 1_000_000_000 for seconds in (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)),
    *(hours * 3_600_000_000_000 for hours in (2, 3, 6, 12, 24, 48, 168, 720, 8760, 87600)),
)
_CHUNK: Final = 2_048
#: Durations beyond, 14 years, come from a broken record.
_LIMIT_NS: Final = 1 << 58
#: And instants beyond the year 2116, or before 1970.
_LAST_NS: Final = 1 << 62
_HOUR_NS: Final = 3_600_000_000_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Columns of time and rows of latency. A row is from its edge up to the next one, that one excluded."""

    #: Wall clock, ns since the epoch.
    first_ns: int
    width_ns: int
    columns: int
    #: Of the rows, one more than there are.
    edges_ns: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.edges_ns) - 1


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells that have requests; each list has a value for each of them."""

    column: list[int]
    row: list[int]
    requests: list[int]
    errors: list[int]
    total_ns: list[int]
    residual_ns: list[int]
    #: By segment, where any cell has time in it: unknown counts as nothing and is in the residual.
    segments_ns: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What an attribute's values have in each cell; each list has a value for each pair that occurs."""

    #: By value: its number in `breakdown.routes` or `breakdown.statements`, or itself; None: all others.
    values: tuple[int | str | None, ...]
    cell: list[int]
    value: list[int]
    requests: list[int]
    #: Named sums beside: `total_ns`, `errors`, or a tier's time.
    sums: dict[str, list[int]]
    #: Requests of each value among the slowest 1 %.
    slowest: list[int]


@dataclass(frozen=True, slots=True)
class PercentileSlice:
    """The requests between two percentiles of the total, as means."""

    low: float
    high: float
    requests: int
    total_ns: float
    residual_ns: float
    segments_ns: dict[str, float]


@dataclass(frozen=True, slots=True)
class Cube:
    """What a page needs of many requests."""

    grid: Grid
    cells: Cells
    slices: tuple[PercentileSlice, ...]
    routes: Pairs
    #: `requests` counts those with the statement; `count` and `time_ns` are sums over its operations.
    statements: Pairs
    #: worker, core, transport, status, hour: those in which the requests differ. An hour is the instant, ns
    #: since the epoch, at which it begins; over many it is that of any day, UTC, ns since midnight.
    attributes: dict[str, Pairs]
    #: The slowest of each part of the grid, the slowest first.
    samples: tuple[RequestPath, ...]
    #: The cell of each sample.
    sample_cells: tuple[int, ...]


class CubeBuilder:
    """Watches request paths go by; builds the cube of them."""

    def __init__(self, *, candidates: int = _MAX_CANDIDATES) -> None:
        """`candidates` is how many requests are held, of which the samples are chosen in the end."""
        self._max_candidates = candidates
        self._count = 0
        self._start, self._total, self._residual = array("q"), array("q"), array("q")
        #: Those of the requests that are not in a chunk yet.
        self._rows: list[tuple[int | None, ...]] = []
        self._segments: list[npt.NDArray[np.signedinteger[Any]]] = []
        self._routes = Names(100_000, OTHERS)
        self._columns = {name: array("q") for name in ("route", "worker", "core", "transport", "status")}
        self._workers = Names(10_000, OTHERS)
        self._transports = Names(10, OTHERS)
        self._statements: dict[tuple[str, str | None], int] = {}
        self._operation_row, self._operation_key = array("i"), array("i")
        self._operation_time, self._operation_error = array("q"), array("b")
        self._slowest: list[tuple[int, int, RequestPath]] = []
        #: The slowest request by (time, latency's power of two), in steps of time that grow with the span.
        self._candidates: dict[tuple[int, int], tuple[int, int, RequestPath]] = {}
        self._step_ns = 1_000_000

    def watch(self, paths: Iterable[RequestPath]) -> Iterator[RequestPath]:
        """Hand on the paths, having added each."""
        for path in paths:
            self.add(path)
            yield path

    def add(self, path: RequestPath) -> None:
        """Add one request."""
        timing, worker, info = path.timing, path.worker, path.info
        start_ns, total_ns = _bound_instant(timing.start_ns), _bound(timing.total_ns)
        self._start.append(start_ns)
        self._total.append(total_ns)
        self._residual.append(_bound(timing.residual_ns))
        self._rows.append(timing.segments)
        columns = self._columns
        columns["route"].append(self._routes.number(path.route))
        columns["status"].append(UNKNOWN if path.status is None else _bound(path.status))
        if info is None:
            columns["worker"].append(UNKNOWN)
        else:
            name = f"pid {info.pid}" if info.worker is None else f"{info.worker}"
            columns["worker"].append(self._workers.number(f"{name} on {info.host}"))
        if worker is None:
            columns["core"].append(UNKNOWN)
            columns["transport"].append(UNKNOWN)
        else:
            columns["core"].append(UNKNOWN if worker.core is None else _bound(worker.core))
            transport = worker.transport
            columns["transport"].append(UNKNOWN if transport is None else self._transports.number(transport))
            for operation in worker.operations:
                if operation.kind == "ping":
                    continue
                key = (operation.kind, operation.statement)
                number = self._statements.setdefault(key, len(self._statements))
                self._operation_row.append(self._count)
                self._operation_key.append(number)
                self._operation_time.append(operation_time_ns(operation))
                self._operation_error.append(operation.error is not None)
        self._keep_sample(start_ns, (total_ns, -self._count, path))
        self._count += 1
        if len(self._rows) >= _CHUNK:
            self._pack()

    def absorb(self, other: CubeBuilder) -> None:
        """Add all that another builder has; its columns are copied, not gone through."""
        self._pack()
        other._pack()
        offset = self._count
        for column, its in (
            (self._start, other._start),
            (self._total, other._total),
            (self._residual, other._residual),
            (self._columns["core"], other._columns["core"]),
            (self._columns["status"], other._columns["status"]),
            (self._operation_time, other._operation_time),
            (self._operation_error, other._operation_error),
        ):
            column.extend(its)
        self._segments += other._segments
        for name, names, its_names in (
            ("route", self._routes, other._routes),
            ("worker", self._workers, other._workers),
            ("transport", self._transports, other._transports),
        ):
            # The last stands for itself.
            numbers = np.array([*map(names.number, its_names.names), UNKNOWN], np.int64)
            self._columns[name].frombytes(numbers[_read(other._columns[name])].tobytes())
        keys = [self._statements.setdefault(key, len(self._statements)) for key in other._statements]
        rows = _read(other._operation_row) + offset
        self._operation_row.frombytes(rows.astype(np.intc).tobytes())
        self._operation_key.frombytes(np.array(keys, np.intc)[_read(other._operation_key)].tobytes())
        kept = {entry[1]: entry for entry in (*other._slowest, *other._candidates.values())}
        for total_ns, order, path in kept.values():
            self._keep_sample(_bound_instant(path.timing.start_ns), (total_ns, order - offset, path))
        self._count += other._count

    def build(self, breakdown: Breakdown) -> Cube:
        """Build the cube of what was added; `breakdown` is of the same requests."""
        self._pack()
        total, start = _read(self._total), _read(self._start)
        grid = _build_grid(start, total)
        column = np.clip((start - grid.first_ns) // grid.width_ns, 0, grid.columns - 1)
        row = np.clip(np.searchsorted(grid.edges_ns, total, side="right") - 1, 0, grid.rows - 1)
        occupied, cell_of, requests = _find_keys(column * grid.rows + row)
        by_total = np.argsort(total, kind="stable")
        slowest = np.zeros(self._count, bool)
        slowest[by_total[self._count - math.ceil(self._count / 100) :]] = True
        residual = _read(self._residual)
        size = len(occupied)
        segments: dict[str, list[int]] = {}
        tiers = {tier: np.zeros(self._count, np.int64) for tier in TIERS}
        bounds = _bound_slices(self._count)
        parts = [by_total[first:last] for (_, first), (_, last) in pairwise(bounds)]
        slice_segments: list[dict[str, float]] = [{} for _ in parts]
        for i, segment in enumerate(SEGMENTS):
            known = self._read_segment(i)
            if not known.any():
                continue
            tiers[segment.tier] += known
            segments[segment.name] = _sum(cell_of, known, size)
            for means, part in zip(slice_segments, parts, strict=True):
                means[segment.name] = int(known[part].sum()) / len(part)
        errors = _read(self._columns["status"]) >= 500
        tiers["residual"] = residual
        slices = tuple(
            PercentileSlice(
                low,
                high,
                len(part),
                int(total[part].sum()) / len(part),
                int(residual[part].sum()) / len(part),
                means,
            )
            for ((low, _), (high, _)), part, means in zip(
                pairwise(bounds), parts, slice_segments, strict=True
            )
        )
        cells = Cells(
            (occupied // grid.rows).tolist(),
            (occupied % grid.rows).tolist(),
            requests.tolist(),
            _sum(cell_of, errors, size),
            _sum(cell_of, total, size),
            _sum(cell_of, residual, size),
            segments,
        )
        samples = self._choose_samples()
        index_of = {number: i for i, number in enumerate(occupied.tolist())}
        sample_cells = []
        for path in samples:
            at_ns = _bound_instant(path.timing.start_ns) - grid.first_ns
            at = min(max(at_ns // grid.width_ns, 0), grid.columns - 1)
            level = bisect_right(grid.edges_ns, _bound(path.timing.total_ns)) - 1
            sample_cells.append(index_of[at * grid.rows + min(max(level, 0), grid.rows - 1)])
        return Cube(
            grid,
            cells,
            slices,
            self._pair_routes(breakdown, cell_of, slowest, {"total_ns": total, "errors": errors, **tiers}),
            self._pair_statements(breakdown, cell_of, slowest),
            self._pair_attributes(cell_of, slowest, start, total),
            samples,
            tuple(sample_cells),
        )

    def _pack(self) -> None:
        """Put the segments into a chunk of the narrowest type; unknown ones count as nothing."""
        if self._rows:
            # As a float None is NaN, which fmax takes for less than any number.
            table = np.fmax(np.array(self._rows, np.float64), 0)
            kind = np.int32 if table.max() < 1 << 31 else np.int64
            self._segments.append(np.minimum(table, _LIMIT_NS).astype(kind))
            self._rows.clear()

    def _read_segment(self, i: int) -> Integers:
        return np.concatenate([chunk[:, i] for chunk in self._segments], dtype=np.int64)

    def _keep_sample(self, start_ns: int, entry: tuple[int, int, RequestPath]) -> None:
        total_ns = entry[0]
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif total_ns > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, entry)
        key = (start_ns // self._step_ns, total_ns.bit_length())
        kept = self._candidates.get(key)
        if kept is not None and kept[0] >= total_ns:
            return
        self._candidates[key] = entry
        while len(self._candidates) > self._max_candidates:
            self._step_ns *= 2
            coarser: dict[tuple[int, int], tuple[int, int, RequestPath]] = {}
            for (_, level), (ns, order, each) in self._candidates.items():
                key = (_bound_instant(each.timing.start_ns) // self._step_ns, level)
                if key not in coarser or coarser[key][:2] < (ns, order):
                    coarser[key] = (ns, order, each)
            self._candidates = coarser

    def _choose_samples(self) -> tuple[RequestPath, ...]:
        """Choose the slowest of all, then by turns from each level of latency."""
        chosen = {entry[1]: entry for entry in self._slowest}
        levels: dict[int, list[tuple[int, int, RequestPath]]] = {}
        for (_, level), entry in sorted(self._candidates.items(), key=lambda item: -item[1][0]):
            levels.setdefault(level, []).append(entry)
        turns = [entries for _, entries in sorted(levels.items(), reverse=True)]
        for turn in range(max(map(len, turns), default=0)):
            for entries in turns:
                if turn < len(entries) and len(chosen) < MAX_SAMPLES:
                    # Evenly over the level's time: its slowest first, then every so many-th.
                    entry = entries[turn]
                    chosen.setdefault(entry[1], entry)
        ordered = sorted(chosen.values(), key=lambda entry: (-entry[0], -entry[1]))
        return tuple(path for _, _, path in ordered)

    def _pair_routes(
        self,
        breakdown: Breakdown,
        cell_of: npt.NDArray[np.intp],
        slowest: npt.NDArray[np.bool_],
        sums: dict[str, npt.NDArray[np.generic]],
    ) -> Pairs:
        known = {group.route: number for number, group in enumerate(breakdown.routes[:MAX_VALUES])}
        places = np.array([known.get(name, len(known)) for name in self._routes.names], np.int64)
        values: list[int | str | None] = [*range(len(known)), None]
        number_of = places[_read(self._columns["route"])] if len(places) else cell_of
        used = {name: column for name, column in sums.items() if column.any()}
        return _build_pairs(values, cell_of, number_of, slowest, used)

    def _pair_statements(
        self, breakdown: Breakdown, cell_of: npt.NDArray[np.intp], slowest: npt.NDArray[np.bool_]
    ) -> Pairs:
        figures = breakdown.statements[:MAX_VALUES]
        known = {(each.kind, each.statement): number for number, each in enumerate(figures)}
        values: list[int | str | None] = [*range(len(known)), None]
        places = np.array([known.get(key, len(known)) for key in self._statements], np.int64)
        rows = _read(self._operation_row)
        number_of = places[_read(self._operation_key)] if len(places) else rows
        # First the operations of one statement in one request, then these by cell.
        once, which = np.unique(rows * len(values) + number_of, return_inverse=True)
        size = len(once)
        sums: dict[str, npt.NDArray[np.generic]] = {
            "count": np.bincount(which, minlength=size),
            "time_ns": _add_up(which, _read(self._operation_time), size),
            "errors": _add_up(which, _read(self._operation_error), size),
        }
        request = once // len(values)
        return _build_pairs(values, cell_of[request], once % len(values), slowest[request], sums)

    def _pair_attributes(
        self,
        cell_of: npt.NDArray[np.intp],
        slowest: npt.NDArray[np.bool_],
        start: Integers,
        total: Integers,
    ) -> dict[str, Pairs]:
        columns: dict[str, tuple[Integers, list[str]]] = {}
        for name, names in (("worker", self._shorten_workers()), ("transport", self._transports.names)):
            columns[name] = (_read(self._columns[name]), names)
        for name in ("core", "status"):
            found, number_of = np.unique(_read(self._columns[name]), return_inverse=True)
            number_of = np.where(found[number_of] < 0, UNKNOWN, number_of)
            columns[name] = (number_of.astype(np.int64), [str(value) for value in found.tolist()])
        hour_ns = start // _HOUR_NS * _HOUR_NS
        hours, number_of = np.unique(hour_ns, return_inverse=True)
        if len(hours) > MAX_VALUES:
            hours, number_of = np.unique(hour_ns % (24 * _HOUR_NS), return_inverse=True)
        columns["hour"] = (number_of.astype(np.int64), [str(hour) for hour in hours.tolist()])
        attributes = {}
        for name, (numbers, names) in columns.items():
            labels: list[int | str | None] = [*names, None]
            used = np.where(numbers < 0, len(names), numbers)
            if len(names) > MAX_VALUES:
                often = np.argsort(-np.bincount(used, minlength=len(labels))[:-1], kind="stable")[:MAX_VALUES]
                place = np.full(len(labels), MAX_VALUES)
                place[often] = np.arange(MAX_VALUES)
                labels = [*(names[number] for number in often.tolist()), None]
                used = place[used]
            if len(np.unique(used)) > 1:
                attributes[name] = _build_pairs(labels, cell_of, used, slowest, {"total_ns": total})
        return attributes

    def _shorten_workers(self) -> list[str]:
        split = [name.partition(" on ") for name in self._workers.names]
        if len({host for _, _, host in split}) == 1:
            return [worker for worker, _, _ in split]
        return self._workers.names


def _bound_slices(size: int) -> list[tuple[float, int]]:
    """Return the percentiles between which there are any of `size` requests, each with its rank."""
    bounds = [(percentile, round(size * percentile / 100)) for percentile in SLICES]
    kept = [bounds[0]]
    for bound in bounds[1:]:
        if bound[1] > kept[-1][1]:
            kept.append(bound)
    kept[-1] = bounds[-1]
    return kept


def _bound(ns: int) -> int:
    return min(max(ns, -_LIMIT_NS), _LIMIT_NS)


def _bound_instant(ns: int) -> int:
    return min(max(ns, 0), _LAST_NS)


def _read(column: array[int]) -> Integers:
    return np.array(column, np.int64)


def _build_grid(start: Integers, total: Integers) -> Grid:
    if not len(start):
        return Grid(0, _WIDTHS_NS[0], 1, (1, 10))
    # A few requests whose clock is wrong must not press all others into one column; they go to the outermost.
    low, high = (int(value) for value in np.quantile(start, (0.002, 0.998), method="nearest"))
    first, last = int(start.min()), int(start.max())
    if last - first <= 20 * max(high - low, 1_000_000_000):
        low, high = first, last
    width_ns = next(
        (width for width in _WIDTHS_NS if high // width - low // width < MAX_COLUMNS), _WIDTHS_NS[-1]
    )
    first_ns = low // width_ns * width_ns
    columns = min(MAX_COLUMNS, high // width_ns - low // width_ns + 1)
    least, most = max(1_000, int(total.min())), max(2_000, int(total.max()))
    for steps in (20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1):
        bottom, top = math.floor(math.log10(least) * steps), math.floor(math.log10(most) * steps) + 1
        if top - bottom <= MAX_ROWS:
            break
    edges = sorted({round(10 ** (step / steps)) for step in range(bottom, top + 1)})
    return Grid(first_ns, width_ns, columns, tuple(edges))


def _build_pairs(
    values: list[int | str | None],
    cell_of: npt.NDArray[np.intp],
    number_of: npt.NDArray[np.signedinteger[Any]],
    slowest: npt.NDArray[np.bool_],
    sums: dict[str, npt.NDArray[np.generic]],
) -> Pairs:
    width = len(values)
    found, pair_of, counts = _find_keys(cell_of.astype(np.int64) * width + number_of)
    return Pairs(
        tuple(values),
        (found // width).tolist(),
        (found % width).tolist(),
        counts.tolist(),
        {name: _sum(pair_of, column, len(found)) for name, column in sums.items()},
        np.bincount(number_of[slowest], minlength=width).tolist(),
    )


def _sum(number_of: npt.NDArray[np.intp], values: npt.NDArray[np.generic], size: int) -> list[int]:
    sums: list[int] = _add_up(number_of, values, size).tolist()
    return sums


def _add_up(number_of: npt.NDArray[np.intp], values: npt.NDArray[np.generic], size: int) -> Integers:
    """Sum whole numbers by number; exact below 2**53, 104 days of ns."""
    return np.bincount(number_of, weights=values, minlength=size).astype(np.int64)


def _find_keys(keys: Integers) -> tuple[Integers, npt.NDArray[np.intp], Integers]:
    """Return the keys that occur, in order; which of them each row has; and how many rows each has.

    As `np.unique` does, but without sorting: the keys are small, of cells or of pairs.
    """
    counts = np.bincount(keys)
    found = np.flatnonzero(counts)
    places = np.zeros(len(counts), np.intp)
    places[found] = np.arange(len(found))
    return found, places[keys], counts[found]
