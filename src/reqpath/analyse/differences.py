"""What differs between two sets of requests, as plain data.

`analyse.comparison` builds it from request paths; `render` turns it into text, JSON and a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reqpath.analyse.estimate import Estimate
from reqpath.analyse.figures import Latency

Outcome = Literal["different", "none", "undecided"]
#: From where, and to where, the times of both sides are taken: stamps that nearly all requests of both have.
Start = Literal["nginx_start", "accept", "app_start"]
End = Literal["nginx_end", "closed"]


@dataclass(frozen=True, slots=True)
class SliceMean:
    """The requests that started in one slice of a side's time."""

    #: Wall clock, ns since the epoch.
    start_ns: int
    requests: int
    #: Sum of their times.
    total_ns: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sets of requests."""

    #: What was read.
    title: str
    #: Those that are compared.
    requests: int
    #: Those that are not: without the stamps that the others have; with times that no request takes.
    left_out: int
    broken: int
    #: Wall clock, ns since the epoch: the first start, the last end; None without requests.
    first_ns: int | None
    last_ns: int | None
    #: Statuses of 500 and more.
    errors: int
    #: Sum of the times.
    total_ns: int
    latency: Latency
    #: Of the stamps that bound the times, but for what less than a hundredth of the requests have.
    resolution_ns: int
    #: Those with requests; the evidence that an interval comes from.
    slices: tuple[SliceMean, ...]
    #: How many there were before neighbours that resemble each other were put together.
    slices_cut: int
    #: How many equally full ones they are worth.
    slices_effective: int
    #: Stamp → requests without it, of all.
    missing_stamps: dict[str, int]
    #: Read from traces, which are those that were kept.
    traces: bool

    @property
    def mean_ns(self) -> float | None:
        """The mean time; None without requests."""
        return self.total_ns / self.requests if self.requests else None

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second from the first start to the last end; None for less than two."""
        if (
            self.requests < 2
            or self.first_ns is None
            or self.last_ns is None
            or self.last_ns <= self.first_ns
        ):
            return None
        return self.requests / (self.last_ns - self.first_ns) * 1e9


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of the two sides, the residual, or the total; means are over all requests of a side."""

    name: str
    tier: str
    #: Sums over the requests, so that the parts' add up to the total's exactly.
    first_sum_ns: int
    second_sum_ns: int
    first_ns: float
    second_ns: float
    #: Second less first; it is `within` and `mix` together.
    difference: Estimate
    #: As it would be if both had the same shares of each route, those halfway between.
    within: Estimate
    #: By other shares of the routes.
    mix: Estimate
    #: Of the coarser side's stamps.
    resolution_ns: int
    #: Where the sides' stamps are unlike, the difference that this can make.
    floor_ns: int
    #: The difference is none of chance: Holm's correction holds among all parts.
    differs: bool


@dataclass(frozen=True, slots=True)
class RoutePart:
    """One segment, the residual or the total within one route."""

    name: str
    tier: str
    first_ns: float
    second_ns: float
    difference: Estimate
    #: As of `Part`, among the parts of this route.
    differs: bool


@dataclass(frozen=True, slots=True)
class RouteDifference:
    """One route on the two sides."""

    route: str
    first_requests: int
    second_requests: int
    first_sum_ns: int
    second_sum_ns: int
    #: Second less first; None when one side has no request of it.
    difference: Estimate | None
    #: Its part of the whole difference: by being slower or faster; by other shares of the requests.
    within_ns: float
    mix_ns: float
    #: As of `Part`, among all routes.
    differs: bool
    #: Empty for routes beyond those with the most to tell, and where one side has none of it.
    parts: tuple[RoutePart, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A segment that is not compared."""

    name: str
    #: Requests of each side in which it is unknown.
    first: int
    second: int
    #: The stamps that one of the sides lacks for it.
    stamps: tuple[str, ...]
    #: Its time is left out of both totals; else it is in both residuals.
    outside: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """What else is not the same on both sides, as text."""

    what: str
    first: str
    second: str
    #: What this can do to the difference.
    meaning: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of requests, compared."""

    first: Side
    second: Side
    start: Start
    end: End
    #: Of the total: `none` is no difference above what its interval holds, `undecided` no verdict.
    outcome: Outcome
    #: Why there is none.
    reason: str
    total: Part
    #: In the order in which a request meets them, the residual last.
    parts: tuple[Part, ...]
    #: The one with the most of the difference first.
    routes: tuple[RouteDifference, ...]
    unknown: tuple[Unknown, ...]
    changed: tuple[Changed, ...]
