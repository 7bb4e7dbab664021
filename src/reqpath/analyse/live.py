"""The last seconds: what `reqpath top` shows, kept up to date as request paths come.

A request belongs to the second in which it ended. Each second's requests become one array of figures when the
next figures are asked for, so these cost the same however long it has been running, and what is older than a
minute is forgotten::

    window = LiveWindow()
    window.extend(paths, now_ns)
    window.build(now_ns, seconds=10).total.p99_ns

As in a breakdown, means add up and percentiles don't, so what the slow ones are made of is told by means over
the slowest 1 %.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from reqpath.analyse.columns import Names
from reqpath.analyse.figures import common_resolution
from reqpath.instants import find_end_ns, find_first_ns
from reqpath.path import RequestPath
from reqpath.tiers import INDEX, SEGMENTS, TIERS

#: Seconds that are remembered.
KEPT_S: Final = 60
#: Requests of each second that can be looked at.
_SLOWEST: Final = 20
_MAX_ROUTES: Final = 500
_S: Final = 1_000_000_000
#: Columns of a row: the segments, and these.
_TOTAL, _RESIDUAL, _WORKER, _ROUTE, _STATUS, _FIRST, _LAST, _END, _RESOLUTION = range(
    len(SEGMENTS), len(SEGMENTS) + 9
)
_QUEUE: Final = INDEX["queue"]
_GIL: Final = INDEX["uwsgi.gil"]
_COLUMNS_OF: Final = {
    **{tier: [i for i, segment in enumerate(SEGMENTS) if segment.tier == tier] for tier in TIERS},
    "residual": [_RESIDUAL],
}

_Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LiveTotal:
    """All requests of the window; percentiles are of the nearest rank. All 0 without any."""

    requests: int
    errors: int
    mean_ns: float
    p50_ns: float
    p99_ns: float
    max_ns: float
    resolution_ns: int
    #: Requests that were in the listen queue at one time, on average: rate times mean wait.
    waiting: float


@dataclass(frozen=True, slots=True)
class LiveTier:
    """One tier, or the residual."""

    name: str
    #: Requests that spent any time in it.
    requests: int
    #: Over all requests of the window, so that the tiers' add up to the total's.
    mean_ns: float
    p99_ns: float
    #: Mean over the slowest 1 % of all requests, at least one.
    slowest_ns: float
    share: float
    #: The mean of each of the last seconds, the newest last; None where no request ended.
    history_ns: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """One worker."""

    #: uWSGI's, or outside it the process's.
    number: str
    host: str
    slots: int
    requests: int
    #: Of the window and the slots: time from accept to closed of the requests that have ended.
    busy_share: float
    #: Means of its requests; None where it is unknown.
    queue_ns: float | None
    gil_ns: float | None


@dataclass(frozen=True, slots=True)
class LiveRoute:
    """One route."""

    route: str
    requests: int
    errors: int
    p50_ns: float
    p99_ns: float
    #: Of the time of all requests.
    share: float


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """The window at one instant."""

    now_ns: int
    seconds: int
    total: LiveTotal
    #: Mean of each segment and the residual, as `build_bar` takes them.
    parts: tuple[tuple[str, float], ...]
    #: Those in which any time was spent, in the order in which a request meets them.
    tiers: tuple[LiveTier, ...]
    workers: tuple[LiveWorker, ...]
    routes: tuple[LiveRoute, ...]
    #: The slowest requests, the slowest first.
    slowest: tuple[RequestPath, ...]
    #: The end of the newest request that was ever seen.
    newest_ns: int | None


class _Second:
    """The requests that ended in one second."""

    __slots__ = ("_arrays", "rows", "slowest")

    def __init__(self) -> None:
        self.rows: list[tuple[float | None, ...]] = []
        self._arrays: list[_Rows] = []
        self.slowest: list[tuple[int, int, RequestPath]] = []

    def read(self) -> _Rows:
        """Return its rows as one array; None is NaN."""
        if self.rows:
            self._arrays.append(np.array(self.rows, np.float64))
            self.rows = []
        if len(self._arrays) > 1:
            self._arrays = [np.concatenate(self._arrays)]
        return self._arrays[0] if self._arrays else np.zeros((0, _RESOLUTION + 1))


class LiveWindow:
    """The requests of the last minute."""

    def __init__(self) -> None:
        self._seconds: dict[int, _Second] = {}
        self._routes = Names(_MAX_ROUTES, "(others)")
        self._workers = Names(_MAX_ROUTES, "(others)")
        self._slots: dict[int, int] = {}
        self._count = 0
        self._newest_ns: int | None = None

    def extend(self, paths: Iterable[RequestPath], now_ns: int) -> None:
        """Take requests; those that ended before the window began are left out."""
        first = now_ns // _S - KEPT_S
        seconds = self._seconds
        for path in paths:
            timing = path.timing
            total_ns = timing.total_ns
            end_ns = timing.start_ns + total_ns
            if self._newest_ns is None or end_ns > self._newest_ns:
                self._newest_ns = end_ns
            at = end_ns // _S
            if at < first:
                continue
            second = seconds.get(at)
            if second is None:
                second = seconds[at] = _Second()
            worker = path.worker
            second.rows.append(
                (
                    *timing.segments,
                    total_ns,
                    timing.residual_ns,
                    -1 if worker is None else self._number_worker(path),
                    self._routes.number(path.route),
                    path.status,
                    None if worker is None else find_first_ns(worker),
                    None if worker is None else find_end_ns(worker),
                    end_ns,
                    timing.resolution_ns,
                )
            )
            self._count += 1
            entry = (total_ns, self._count, path)
            if len(second.slowest) < _SLOWEST:
                heapq.heappush(second.slowest, entry)
            elif total_ns > second.slowest[0][0]:
                heapq.heapreplace(second.slowest, entry)
        for at in [at for at in seconds if at < first]:
            del seconds[at]

    def build(self, now_ns: int, seconds: int, *, history: int = 0) -> LiveFigures:
        """Return the figures of the last `seconds`, with the tiers' means of `history` seconds before now."""
        last = now_ns // _S
        begin_ns = now_ns - seconds * _S
        # A clock that was set back leaves requests of the future; they are the newest.
        wanted = [second for at, second in self._seconds.items() if at >= begin_ns // _S]
        rows = np.concatenate([second.read() for second in wanted]) if wanted else _Second().read()
        rows = rows[rows[:, _END] > begin_ns]
        total = rows[:, _TOTAL]
        known = np.nan_to_num(rows, copy=True, nan=0.0)
        count = len(rows)
        order = np.argsort(total, kind="stable")
        slow = order[count - -(-count // 100) :]
        sum_ns = float(total.sum()) or 1.0
        status = known[:, _STATUS]
        resolutions, counts = np.unique(rows[:, _RESOLUTION], return_counts=True)
        resolution_ns = common_resolution(
            {int(ns): int(number) for ns, number in zip(resolutions, counts, strict=True)}
        )
        histories = [
            self._seconds[at].read() if at in self._seconds else None for at in range(last - history, last)
        ]
        means = known.mean(axis=0).tolist() if count else [0.0] * (_RESOLUTION + 1)
        tiers = []
        for tier, columns in _COLUMNS_OF.items():
            values = known[:, columns].sum(axis=1)
            if not values.any():
                continue
            tiers.append(
                LiveTier(
                    tier,
                    int((values > 0).sum()),
                    float(values.mean()),
                    _rank(values, 0.99),
                    float(values[slow].mean()),
                    float(values.sum()) / sum_ns,
                    tuple(
                        None
                        if each is None or not len(each)
                        else float(np.nansum(each[:, columns]) / len(each))
                        for each in histories
                    ),
                )
            )
        slowest = heapq.nlargest(
            _SLOWEST,
            (entry for second in wanted for entry in second.slowest if _end_of(entry[2]) > begin_ns),
        )
        return LiveFigures(
            now_ns,
            seconds,
            LiveTotal(
                count,
                int((status >= 500).sum()),
                means[_TOTAL],
                _rank(total, 0.5),
                _rank(total, 0.99),
                float(total.max()) if count else 0.0,
                resolution_ns,
                float(known[:, _QUEUE].sum()) / seconds / _S,
            ),
            (
                *((segment.tier, mean_ns) for segment, mean_ns in zip(SEGMENTS, means, strict=False)),
                ("residual", means[_RESIDUAL]),
            ),
            tuple(tiers),
            self._build_workers(rows, now_ns, seconds),
            self._build_routes(rows, sum_ns),
            tuple(path for _, _, path in slowest),
            self._newest_ns,
        )

    def _build_workers(self, rows: _Rows, now_ns: int, seconds: int) -> tuple[LiveWorker, ...]:
        begin_ns = float(now_ns - seconds * _S)
        busy_ns = np.clip(rows[:, _LAST], begin_ns, now_ns) - np.clip(rows[:, _FIRST], begin_ns, now_ns)
        workers = []
        numbers = rows[:, _WORKER]
        for number in np.unique(numbers[numbers >= 0]).astype(int).tolist():
            own = numbers == number
            slots = self._slots.get(number, 1)
            name, _, host = self._workers.names[number].partition(" ")
            workers.append(
                LiveWorker(
                    name,
                    host,
                    slots,
                    int(own.sum()),
                    float(busy_ns[own].sum()) / seconds / _S / slots,
                    _known_mean(rows[own, _QUEUE]),
                    _known_mean(rows[own, _GIL]),
                )
            )
        return tuple(workers)

    def _build_routes(self, rows: _Rows, sum_ns: float) -> tuple[LiveRoute, ...]:
        routes = []
        numbers = rows[:, _ROUTE]
        for number in np.unique(numbers).astype(int).tolist():
            own = rows[numbers == number]
            total = own[:, _TOTAL]
            routes.append(
                LiveRoute(
                    self._routes.names[number],
                    len(own),
                    int((own[:, _STATUS] >= 500).sum()),
                    _rank(total, 0.5),
                    _rank(total, 0.99),
                    float(total.sum()) / sum_ns,
                )
            )
        return tuple(routes)

    def _number_worker(self, path: RequestPath) -> int:
        info = path.info
        if info is None:
            return self._workers.number("?")
        name = f"{info.pid}" if info.worker is None else f"{info.worker}"
        number = self._workers.number(f"{name} {info.host}")
        self._slots[number] = info.threads or 1
        return number


def _end_of(path: RequestPath) -> int:
    timing = path.timing
    return timing.start_ns + timing.total_ns


def _rank(values: npt.NDArray[np.float64], share: float) -> float:
    """Return the value of the nearest rank; 0 of none."""
    if not len(values):
        return 0.0
    position = max(0, int(np.ceil(len(values) * share)) - 1)
    return float(np.partition(values, position)[position])


def _known_mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
