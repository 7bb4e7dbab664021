"""Decides which request paths are exported; the others stay in the spool, and count in its reports.

The layer below is `join`, which brings whole paths, nginx included. What goes out is the reason to keep one,
or None::

    keeper = Keeper()
    keeper.decide(path)      -> "error" | "slow" | "route_slow" | "parent" | "app" | "steady" | None

`error`: the client, an upstream or the app saw a failure: 5xx, 499, an exception, a span that the app marked.
`slow`: it took longer than an absolute bound. `route_slow`: it took longer than 99 % of the latest paths of
its route. `parent`: a trusted caller has its own part of the trace sampled. `app`: the app's own SDK has, and
its spans would hang on nothing. `steady`: it is one of the first of its route and second. Where everything is
kept, what has no reason of its own is kept for `all`.

The clock is the paths' own: a backlog is judged as it would have been when it was new.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from reqpath.path import METHODS, RequestPath

SECOND_NS: Final = 1_000_000_000

#: Routes whose latencies are remembered; beyond, the one that was unused longest is forgotten. At most 10 KB
#: each.
MAX_ROUTES: Final = 1_000
#: The quantile that a path must exceed to be slow for its route.
QUANTILE: Final = 0.99
#: Paths of a route before there is a quantile of it.
MIN_PATHS: Final = 128
#: The quantile is of a route's latest `GENERATION` to twice as many paths.
GENERATION: Final = 1_024
#: Paths between two computations of a route's quantile; a part of a generation.
_REFRESH: Final = 64
#: The client went away, or the server failed.
_FAILURES: Final = frozenset((499, *range(500, 1000)))


class RecentLatencies:
    """A quantile of the latest values, in bounded memory.

    Values are counted in buckets a sixteenth of a power of two wide, in two generations: when the younger one
    has `GENERATION` values it becomes the older one, which is forgotten.
    """

    __slots__ = ("_count", "_older", "_uncounted", "_younger", "bound_ns")

    def __init__(self) -> None:
        self._older: dict[int, int] = {}
        self._younger: dict[int, int] = {}
        self._count = 0
        #: The latest values, counted `_REFRESH` at a time.
        self._uncounted: list[int] = []
        #: At least `QUANTILE` of the values that it was computed of are not above; None: too few values.
        self.bound_ns: int | None = None

    def add(self, value_ns: int) -> None:
        """Take a value, 0 or more."""
        self._uncounted.append(value_ns)
        if len(self._uncounted) == _REFRESH:
            self._count_values()

    def _count_values(self) -> None:
        younger = self._younger
        for value_ns in self._uncounted:
            shift = max(0, value_ns.bit_length() - 5)
            # The value's five leading bits, and how many follow: `_bucket_end_ns` is the way back.
            bucket = (shift << 5) | (value_ns >> shift)
            younger[bucket] = younger.get(bucket, 0) + 1
        self._uncounted.clear()
        self._count += _REFRESH
        if self._older or self._count >= MIN_PATHS:
            self._refresh()
        if self._count == GENERATION:
            self._older, self._younger, self._count = younger, {}, 0

    def _refresh(self) -> None:
        older, younger = self._older, self._younger
        values = self._count + (GENERATION if older else 0)
        above = int(values * (1 - QUANTILE))
        # The largest values first: there are few of them to pass.
        for bucket in sorted(older.keys() | younger.keys(), reverse=True):
            above -= older.get(bucket, 0) + younger.get(bucket, 0)
            if above < 0:
                self.bound_ns = _bucket_end_ns(bucket)
                return


def _bucket_end_ns(bucket: int) -> int:
    """Return the largest value that is counted in a bucket."""
    shift = bucket >> 5
    return (((bucket & 31) + 1) << shift) - 1


class _Route:
    """What is remembered of one route."""

    __slots__ = ("kept", "latencies", "second")

    def __init__(self) -> None:
        self.latencies = RecentLatencies()
        #: The latest second in which a path ended, and the paths kept in it to have a few.
        self.second = 0
        self.kept = 0


class Keeper:
    """Gives each path the reason to keep it; remembers a bounded number of routes."""

    def __init__(
        self,
        *,
        everything: bool = False,
        slower_ns: int = SECOND_NS,
        per_second: int = 2,
        max_routes: int = MAX_ROUTES,
    ) -> None:
        #: Paths kept, by reason; those not kept under None.
        self.counts: Counter[str | None] = Counter()
        self._everything = everything
        self._slower_ns = slower_ns
        self._per_second = per_second
        self._max_routes = max_routes
        self._routes: OrderedDict[tuple[str, str, str | None], _Route] = OrderedDict()

    @property
    def routes(self) -> int:
        """How many routes are remembered."""
        return len(self._routes)

    def decide(self, path: RequestPath) -> str | None:
        """Return why a path is to be kept; None: it is not."""
        start_ns, total_ns = path.extent
        route = self._find_route(path)
        latencies = route.latencies
        bound_ns = latencies.bound_ns
        latencies.add(total_ns)
        second = (start_ns + total_ns) // SECOND_NS
        # A path that comes late counts in the latest second, so that lateness makes no room.
        if second > route.second:
            route.second, route.kept = second, 0
        reason: str | None = None
        if is_error(path):
            reason = "error"
        elif total_ns > self._slower_ns:
            reason = "slow"
        elif bound_ns is not None and total_ns > bound_ns:
            reason = "route_slow"
        elif has_sampled_parent(path):
            reason = "parent"
        elif is_sampled_by_app(path):
            reason = "app"
        elif route.kept < self._per_second:
            route.kept += 1
            reason = "steady"
        elif self._everything:
            reason = "all"
        self.counts[reason] += 1
        return reason

    def _find_route(self, path: RequestPath) -> _Route:
        worker, info = path.head, path.info
        key: tuple[str, str, str | None]
        if worker is None:
            key = ("", path.route, None)
        else:
            # As `RequestPath.route` tells them apart, without putting its text together.
            method = worker.method if worker.method in METHODS else "_OTHER"
            key = ("" if info is None else info.service_name, method, worker.route)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= self._max_routes:
                self._routes.popitem(last=False)
            route = self._routes[key] = _Route()
        else:
            self._routes.move_to_end(key)
        return route


def is_error(path: RequestPath) -> bool:
    """Tell whether something failed on a path: for the client, at an upstream, or in the app."""
    nginx, worker = path.nginx, path.head
    if nginx is not None:
        if nginx.status in _FAILURES:
            return True
        for attempt in nginx.attempts:
            if attempt.status in _FAILURES:
                return True
    return worker is not None and (
        worker.status in _FAILURES
        or worker.exception is not None
        or (worker.span_status is not None and worker.span_status[0] == "ERROR")
    )


def is_sampled_by_app(path: RequestPath) -> bool:
    """Tell whether the app's own OpenTelemetry SDK exports spans of this path."""
    worker = path.head
    return worker is not None and (worker.app_span is not None or worker.app_samples)


def has_sampled_parent(path: RequestPath) -> bool:
    """Tell whether a trusted caller's span, itself sampled, is the parent of this path."""
    nginx = path.nginx
    if nginx is not None:
        return bool(nginx.parent_id) and nginx.sampled
    worker = path.worker
    # With a stamp of nginx's the parent is nginx's own span, whose line has not come.
    return (
        worker is not None
        and bool(worker.parent_id)
        and worker.sampled
        and worker.nginx_start_ns is None
        and worker.nginx_pass_ns is None
    )
