"""The figures of one group of requests: those of a route, or all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import IntArray
from reqpath.analyse.figures import (
    Group,
    Latency,
    Lens,
    LensFigures,
    Residual,
    SegmentFigures,
    Slice,
    common_resolution,
    resolution_of,
)
from reqpath.tiers import INDEX, SEGMENTS, STAMPS

Indices = npt.NDArray[np.intp]


class Mark(NamedTuple):
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


Marks = list[tuple[Mark, int]]


class GroupBuilder:
    """The figures of one group of requests, column by column, so that one column is unpacked at a time."""

    def __init__(self, route: int | None, rows: slice, by_total: Indices) -> None:
        """`rows` are where the group's values are in each column; `by_total` are its rows in that order."""
        self.route = route
        self._rows = rows
        size = len(by_total)
        self._size = size
        # Copies, so that the order of all is not kept for them.
        self._median = by_total[math.floor(size * 0.45) : math.ceil(size * 0.55)].copy()
        self._slowest = by_total[size - math.ceil(size / 100) :].copy()
        self._segments: list[SegmentFigures] = []
        self._slow_routes: list[tuple[int, float] | None] = []
        self._lens: list[LensFigures] = []
        self._lens_known = 0
        self._sum_ns = 0

    def take_total(self, total: IntArray) -> None:
        """Take the totals, ns."""
        values = total[self._rows]
        self._sum_ns = _sum(values)
        if self._size:
            p50, p90, p99 = _ranks(values, 0.5, 0.9, 0.99)
            self._total = Latency(self._sum_ns / self._size, p50, p90, p99, int(values.max()))
        else:
            self._total = Latency(0.0, 0, 0, 0, 0)
        self._median_slice = _slice_of(total[self._median])
        self._slowest_slice = _slice_of(total[self._slowest])

    def take_residual(self, residual: IntArray, total: IntArray) -> None:
        """Take the residuals, ns, which can be negative."""
        values = residual[self._rows]
        magnitudes = np.abs(values)
        sum_ns = self._sum_ns or 1
        self._residual = Residual(
            _mean(values),
            _sum(values) / sum_ns,
            _sum(magnitudes) / sum_ns,
            _mean(residual[self._median]),
            _mean(residual[self._slowest]),
        )
        own = 1 - magnitudes / np.maximum(total[self._rows], 1)
        self._attributed_median = max(0.0, float(np.median(own))) if self._size else 0.0

    def take_segment(self, i: int, column: IntArray, route_of: IntArray) -> None:
        """Take segment `i`, ns, `UNKNOWN` where it is; in the order of `SEGMENTS`."""
        known = _known(column[self._rows])
        sum_ns = _sum(known)
        count = len(known)
        p50, p99 = _ranks(known, 0.5, 0.99) if count else (None, None)
        slow = column[self._slowest]
        slow_route, slow_share = None, 0.0
        if self.route is None and (slow_sum := _sum(np.maximum(slow, 0))):
            sums = np.bincount(route_of[self._slowest], weights=np.maximum(slow, 0))
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
                _known_mean(column[self._median]),
                _known_mean(slow),
                1,
            )
        )

    def take_lens(self, name: str, values: IntArray, known: npt.NDArray[np.bool_] | None) -> None:
        """Take a part of the worker's time, ns, and in which requests it is known, None: in all."""
        own, median, slowest = (
            values[rows] if known is None else values[rows][known[rows]]
            for rows in (self._rows, self._median, self._slowest)
        )
        self._lens_known = len(own)
        self._lens.append(
            LensFigures(
                name,
                _mean(own),
                _mean(median) if len(median) else None,
                _mean(slowest) if len(slowest) else None,
            )
        )

    def build(self, route: str | None, marks: Marks, operations: int, names: list[str]) -> Group:
        """Build the figures of what was taken; `names` are the routes' by number."""
        if self.route is not None:
            marks = [(mark, count) for mark, count in marks if mark.route == self.route]
        resolutions = count_marks(marks, lambda mark: mark.resolution_ns)
        resolution_ns = common_resolution(resolutions)
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
        missing = count_each(marks, lambda mark: mark.missing)
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
                sorted(count_marks(marks, lambda mark: mark.status).items(), key=lambda item: item[0] or 0)
            ),
            missing_stamps={stamp: missing[stamp] for stamp in STAMPS if stamp in missing},
            skewed=in_order(count_each(marks, lambda mark: mark.skewed)),
            clamped=in_order(count_each(marks, lambda mark: mark.clamped)),
            abandoned=count_marks(marks, lambda mark: mark.abandoned).get(True, 0),
            operations_mean=operations / self._size if self._size else 0.0,
            resolutions=dict(sorted(resolutions.items())),
        )


def _rank(size: int, share: float) -> int:
    """Return the position of the nearest rank, from 0."""
    return max(0, math.ceil(size * share) - 1)


def _ranks(values: IntArray, *shares: float) -> tuple[int, ...]:
    # One at a time: numpy is quicker at that than at several together.
    positions = [_rank(len(values), share) for share in shares]
    return tuple(int(np.partition(values, position)[position]) for position in positions)


def _sum(values: IntArray) -> int:
    return int(values.sum(dtype=np.int64))


def _mean(values: IntArray) -> float:
    return _sum(values) / len(values) if len(values) else 0.0


def _known(values: IntArray) -> IntArray:
    return values if len(values) and values.min() >= 0 else values[values >= 0]


def _known_mean(values: IntArray) -> float | None:
    """Return the mean over all of `values`, unknown ones as nothing; None when all are unknown."""
    known = _known(values)
    return _sum(known) / len(values) if len(known) else None


def _slice_of(values: IntArray) -> Slice:
    return Slice(len(values), _mean(values))


def count_marks(marks: Marks, key: Callable[[Mark], Any]) -> dict[Any, int]:
    """Count requests by a key of their marks."""
    counts: Counter[Any] = Counter()
    for mark, count in marks:
        counts[key(mark)] += count
    return dict(counts)


def count_each(marks: Marks, keys: Callable[[Mark], tuple[str, ...]]) -> dict[str, int]:
    """Count requests by each of several keys of their marks."""
    counts: Counter[str] = Counter()
    for mark, count in marks:
        for name in keys(mark):
            counts[name] += count
    return dict(counts)


def in_order(counts: dict[str, int]) -> dict[str, int]:
    """Order counts by segment as a request meets them, other names last."""
    return dict(sorted(counts.items(), key=lambda item: INDEX.get(item[0], len(INDEX))))
