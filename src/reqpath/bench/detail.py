"""What a result has beyond its verdict: latencies whole, every run that was made, and with what.

The page draws it. The layers below are `verdict`, which says which runs count, and `histogram`::

    detail = describe_result(result)
    detail.distributions['point-query/tcp/tcp/4x1/pooled'].points   →  ((0.0, 612_351), (0.109, 700_415), …)
    detail.runs[0].mean_ns                                          →  1_040_090.5
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reqpath.bench.histogram import merge_histograms, percentiles_ns
from reqpath.bench.result import Capacity, Configuration, Result, RunRecord, Slice
from reqpath.bench.verdict import find_counted

#: A percentile is told as far as so many requests took longer.
FEWEST_BEYOND: Final = 10
_PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)
#: Points of a distribution for each tenth of the requests that are beyond the one before.
_POINTS_A_DECADE: Final = 20


@dataclass(frozen=True, slots=True)
class Distribution:
    """The latencies of the requests of which a cell's figures are made."""

    requests: int
    #: (Share of the requests, ns that these took at most), both rising.
    points: tuple[tuple[float, int], ...]
    #: Percentile → ns.
    percentiles_ns: dict[float, int]
    highest_ns: int | None


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run that was made."""

    #: From 1, in the order in which they were made.
    number: int
    block: int
    cell: str
    twin: bool
    start_ns: int
    planned: int
    answered: int
    #: Of all its requests, and of the slowest hundredth; None of a saturated cell, and without any request.
    mean_ns: float | None
    slowest_ns: float | None
    cpu_share: float | None
    generator_share: float | None
    steal_share: float | None
    #: Why no figure is made of it; empty: it counts.
    left_out: str


@dataclass(frozen=True, slots=True)
class Detail:
    """All that a page shows beside the verdict."""

    #: By cell; a saturated one has none.
    distributions: dict[str, Distribution]
    runs: tuple[RunFigures, ...]
    #: The A/A comparison's (block, difference of the means).
    control_ns: tuple[tuple[int, float], ...]
    rates: dict[str, float]
    capacities: tuple[Capacity, ...]
    configurations: tuple[Configuration, ...]


def describe_result(result: Result) -> Detail:
    """Return what a result has beyond its verdict."""
    counted, twins = find_counted(result)
    counts = {id(run) for run in [*twins, *(run for runs in counted.values() for run in runs)]}
    figures = {
        key: _describe_latencies([run.latency for run in runs]) for key, runs in counted.items() if runs
    }
    return Detail(
        distributions=figures,
        runs=tuple(
            _describe_run(number, run, counts=id(run) in counts, saturated=run.cell not in counted)
            for number, run in enumerate(result.runs, 1)
        ),
        control_ns=_subtract(counted.get(result.plan.twin, []), twins),
        rates=result.rates,
        capacities=result.capacities,
        configurations=result.configurations,
    )


def _describe_latencies(histograms: Sequence[str]) -> Distribution:
    merged = merge_histograms(histograms)
    requests = merged.get_total_count()
    # Evenly over 1 / (1 - share), as far as enough requests are beyond.
    steps = math.floor(math.log10(max(1, requests / FEWEST_BEYOND)) * _POINTS_A_DECADE + 1e-9)
    percents = [100 * (1 - 10 ** (-step / _POINTS_A_DECADE)) for step in range(steps + 1)]
    named = [
        percent for percent in _PERCENTILES if round(requests * (100 - percent) / 100, 6) >= FEWEST_BEYOND
    ]
    found = percentiles_ns(merged, [*percents, *named, 100.0])
    return Distribution(
        requests=requests,
        points=tuple((percent / 100, found[percent]) for percent in percents if percent in found),
        percentiles_ns={percent: found[percent] for percent in named},
        highest_ns=found.get(100.0),
    )


def _describe_run(number: int, run: RunRecord, *, counts: bool, saturated: bool) -> RunFigures:
    # Its times are those of a queue.
    hidden = saturated or run.saturated
    return RunFigures(
        number=number,
        block=run.block,
        cell=run.cell,
        twin=run.twin,
        start_ns=run.start_ns,
        planned=run.planned,
        answered=run.answered,
        mean_ns=None if hidden else _mean_ns(run.whole),
        slowest_ns=None if hidden else _mean_ns(run.slowest),
        cpu_share=run.cpu_share,
        generator_share=run.generator_share,
        steal_share=run.steal_share,
        left_out="" if counts else _say_why(run, saturated=saturated),
    )


def _say_why(run: RunRecord, *, saturated: bool) -> str:
    """Say why a run does not count."""
    reasons = [reason.text for reason in run.invalid]
    if run.saturated:
        reasons += ["saturated", *(reason.text for reason in run.limits if reason.name == "saturated")]
    elif saturated:
        reasons.append("most other runs of it were saturated")
    elif not run.whole.requests:
        reasons.append("no request was answered whose path is known")
    return "; ".join(reasons) or "made again"


def _subtract(first: Sequence[RunRecord], second: Sequence[RunRecord]) -> tuple[tuple[int, float], ...]:
    """Return what the second runs have beyond the first, for each block that has both."""
    before, after = (
        {run.block: run.whole.client_ns / run.whole.requests for run in runs} for runs in (first, second)
    )
    return tuple((block, after[block] - before[block]) for block in sorted(before.keys() & after.keys()))


def _mean_ns(requests: Slice) -> float | None:
    return requests.client_ns / requests.requests if requests.requests else None
