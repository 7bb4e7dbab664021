"""What comes out of a result: questions with their differences, and each cell's figures, as plain data.

`verdict` builds them, `render.bench` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from reqpath.bench.plan import Cell, Factor, Plan, Workload
from reqpath.bench.result import Host
from reqpath.bench.statistics import Estimate

Outcome = Literal["different", "none", "undecided"]

#: A segment that has less of a difference does not carry it.
CARRIES: Final = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """What one segment, or one part of the worker's time, has of a difference."""

    name: str
    tier: str
    #: With the first level, the mean per request.
    base_ns: float
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two levels, over all requests of the runs or over the slowest hundredth of each."""

    #: With the first level, the mean per request.
    base_ns: float
    #: Of the client's latency, from the first level to the second: below 0, the second one is faster.
    client: Estimate
    #: The client's p among all comparisons; None with too few blocks.
    p_adjusted: float | None
    #: What would have been found with 80 % chance; None with too few blocks.
    resolvable_ns: float | None
    #: The segments with any time, in the order in which a request meets them; they add up to `client`.
    parts: tuple[Part, ...]
    #: What the worker's thread did meanwhile; lies across the segments.
    lens: tuple[Part, ...]
    outcome: Outcome = "undecided"
    #: Why it is undecided.
    reason: str = ""

    @property
    def parts_sum_ns(self) -> float:
        """The sum of the parts' estimates."""
        return sum(part.difference.value_ns for part in self.parts)

    @property
    def adds_up(self) -> bool:
        """Whether the parts' sum lies in the client's interval."""
        low_ns, high_ns = self.client.low_ns, self.client.high_ns
        if low_ns is None or high_ns is None:
            return True
        # Values that are all equal have an interval without a width.
        return low_ns - 1 <= self.parts_sum_ns <= high_ns + 1

    @property
    def carriers(self) -> tuple[Part, ...]:
        """The segments in which the difference is, the one with the most first: their intervals exclude 0."""
        least_ns = abs(self.client.value_ns) * CARRIES
        found = (
            part
            for part in self.parts
            if part.difference.excludes_zero and abs(part.difference.value_ns) >= least_ns
        )
        return tuple(sorted(found, key=lambda part: -abs(part.difference.value_ns)))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cells that differ in the question's factor alone."""

    first: Cell
    second: Cell
    #: In which both have a valid run.
    blocks: int
    #: Why it is not in the question's answer; empty: it is.
    left_out: str
    #: Of the mean latency; None when it is left out.
    client: Estimate | None
    #: Its difference is not that of the question's other pairs.
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """One factor, two of its levels, one workload."""

    workload: Workload
    #: None where that is the factor.
    connection: str | None
    factor: Factor
    first: str
    second: str
    pairs: tuple[Pair, ...]
    #: None when no pair could be compared.
    mean: Comparison | None
    slowest: Comparison | None
    #: The segments that the factor lies in, summed: there a difference shows that is lost in the whole
    #: latency's noise. None when nothing could be compared, or the factor lies in no segment of its own.
    own: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """The A/A comparison: a cell with itself; without parts."""

    cell: Cell
    mean: Comparison | None
    slowest: Comparison | None


@dataclass(frozen=True, slots=True)
class CellFigures:
    """What the valid runs of one cell measured; of a saturated cell, nothing about time."""

    cell: Cell
    workload: Workload
    runs: int
    valid: int
    #: More than half of its runs were.
    saturated: bool
    capacity_per_s: float | None
    rate_per_s: float | None
    #: Good answers over what is planned, of all runs.
    answered_per_s: float | None
    planned: int
    failures: dict[str, int]
    dropped: int
    #: Of the runs that know it.
    listen_overflows: int | None
    mean_ns: float | None
    p50_ns: int | None
    p90_ns: int | None
    p99_ns: int | None
    lag_p99_ns: int | None
    #: Sampled requests under way over what Little's law expects: the run that is furthest from 1.
    little: float | None
    #: Mean per request of each segment with any time.
    segments_ns: dict[str, float]
    slowest_ns: float | None
    slowest_segments_ns: dict[str, float]

    @property
    def failed(self) -> int:
        """Arrivals without a good answer."""
        return sum(self.failures.values()) + self.dropped


@dataclass(frozen=True, slots=True)
class Remark:
    """A reason that runs have given, for all of its name."""

    name: str
    #: Of one of the runs, in words.
    example: str
    runs: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that a result says."""

    plan: Plan
    host: Host
    created_ns: int
    command: str
    #: Begun.
    blocks: int
    #: Fewer give no verdict.
    blocks_needed: int
    #: Made; of them valid.
    runs: int
    valid: int
    complete: bool
    questions: tuple[Question, ...]
    control: Control
    cells: tuple[CellFigures, ...]
    #: Why runs do not count.
    invalid: tuple[Remark, ...]
    #: What is to be known beside the figures.
    limits: tuple[Remark, ...]
    #: The coarsest of nginx's stamps.
    resolution_ns: int


@dataclass(frozen=True, slots=True)
class CellShift:
    """One cell in two results."""

    cell: Cell
    workload: Workload
    #: None when they are not compared.
    mean: Comparison | None
    slowest: Comparison | None
    #: Why they are not compared.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResultComparison:
    """Two results, cell by cell."""

    #: What else differs between them, in words; what two benchmarks do not share can be any of it.
    differences: tuple[str, ...]
    cells: tuple[CellShift, ...]
    #: Keys of cells that only one of them has.
    alone: tuple[str, ...]
