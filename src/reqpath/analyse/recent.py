"""The last minutes, as a report has them: what `reqpath serve` shows, kept up to date as request paths come.

`live` has the last minute for a terminal; this has the breakdown and the cube that a page is made of, by the
same builders as a report. The requests lie in *parts* by when they ended, a sixtieth of the window each, so
that the oldest can be forgotten; to build takes time by the requests held, and to add does not::

    window = RecentWindow(900 * 10**9)
    window.extend(paths, now_ns)
    breakdown, cube = window.build()
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Final

from reqpath.analyse.breakdown import BreakdownBuilder
from reqpath.analyse.cube import Cube, CubeBuilder
from reqpath.analyse.figures import Breakdown
from reqpath.path import RequestPath
from reqpath.spool import SpoolLosses

#: Requests held at most.
MAX_REQUESTS: Final = 500_000
#: Of the window: what is forgotten at one time.
_PARTS: Final = 60
_LEAST_PART_NS: Final = 1_000_000_000
#: Of one part are held whole, beside its slowest.
_CANDIDATES: Final = 64


class _Part:
    """Requests that ended close to each other."""

    __slots__ = ("breakdown", "cube")

    def __init__(self) -> None:
        self.breakdown = BreakdownBuilder()
        self.cube = CubeBuilder(candidates=_CANDIDATES)


class RecentWindow:
    """The requests that ended in the last `window_ns`, or as many of the newest as may be held."""

    def __init__(self, window_ns: int, *, max_requests: int = MAX_REQUESTS) -> None:
        self.window_ns = window_ns
        #: Changes whenever a request comes or goes.
        self.version = 0
        #: How many requests are held.
        self.requests = 0
        #: The end of the newest request that was ever seen, also of one that was too old.
        self.newest_ns: int | None = None
        self.max_requests = max_requests
        self._part_requests = max(1, max_requests // _PARTS)
        self._part_ns = max(window_ns // _PARTS, _LEAST_PART_NS)
        #: By the end of their requests, in parts' lengths since the epoch; several where there are many.
        self._parts: dict[int, list[_Part]] = {}
        #: The youngest part of which requests were forgotten because there were too many.
        self._cut: int | None = None

    @property
    def cut(self) -> bool:
        """Whether requests of the window were forgotten because there were too many."""
        return self._cut is not None

    def extend(self, paths: Iterable[RequestPath], now_ns: int) -> None:
        """Add requests; those that ended before the window began are left out."""
        first, last = self._first(now_ns), now_ns // self._part_ns
        by_part: dict[int, list[RequestPath]] = {}
        for path in paths:
            end_ns = sum(path.extent)
            if self.newest_ns is None or end_ns > self.newest_ns:
                self.newest_ns = end_ns
            # A clock that is ahead must not keep a request for longer than others.
            at = min(end_ns // self._part_ns, last)
            if at >= first:
                by_part.setdefault(at, []).append(path)
        for at, own in by_part.items():
            parts = self._parts.setdefault(at, [_Part()])
            if parts[-1].breakdown.requests >= self._part_requests:
                parts.append(_Part())
            part = parts[-1]
            part.breakdown.extend(part.cube.watch(own))
            self.requests += len(own)
            self.version += 1
        self.forget(now_ns)

    def forget(self, now_ns: int) -> None:
        """Forget what is older than the window, and the oldest of too many."""
        first = self._first(now_ns)
        for at in sorted(self._parts):
            parts = self._parts[at]
            while parts and (at < first or self.requests > self.max_requests):
                self.requests -= parts.pop(0).breakdown.requests
                self.version += 1
                if at >= first:
                    self._cut = at
            if parts:
                break
            del self._parts[at]
        if self._cut is not None and self._cut < first:
            self._cut = None

    def build(self, losses: SpoolLosses | None = None) -> tuple[Breakdown, Cube]:
        """Build the figures of at least one request; `losses` are the spool's."""
        breakdown, cube = BreakdownBuilder(), CubeBuilder()
        for part in chain.from_iterable(parts for _, parts in sorted(self._parts.items())):
            breakdown.absorb(part.breakdown)
            cube.absorb(part.cube)
        figures = breakdown.build(losses)
        return figures, cube.build(figures)

    def _first(self, now_ns: int) -> int:
        """Return the first part that lies in the window as a whole."""
        return (now_ns - self.window_ns) // self._part_ns + 1
